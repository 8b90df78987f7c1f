"""Readers: one file per dataset format, found by name. To add a format, add a file and import it below."""

from solo.data.readers import (
    coco,
    folder,
    frames,
    imagefolder,
    interleaved,
    llava,
    messages,
    parquet,
    sniff,
    solo_base64,
    text,
    tfds,
    vqa,
    webdataset,
)
from solo.data.readers.generated import digits, lines, pictograms, scenes, topics
from solo.data.readers.registry import (
    Examples,
    Ignored,
    Omitted,
    Part,
    Reader,
    Unreadable,
    open_reader,
    read,
    reader,
    reader_names,
)
from solo.data.readers.sniff import AUTO, Chosen, choose_reader

# Importing a module registers its readers.
FORMATS = (
    *(coco, folder, frames, imagefolder, interleaved, llava, messages, parquet, sniff, solo_base64, text, tfds, vqa),
    *(webdataset, digits, lines, pictograms, scenes, topics),
)

__all__ = [
    "AUTO",
    "FORMATS",
    "Chosen",
    "Examples",
    "Ignored",
    "Omitted",
    "Part",
    "Reader",
    "Unreadable",
    "choose_reader",
    "open_reader",
    "read",
    "reader",
    "reader_names",
]
