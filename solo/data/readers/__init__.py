"""Readers: one file per dataset format, found by name. To add a format, add a file and import it below."""

from solo.data.readers import folder, interleaved, llava, messages, parquet, solo_base64, text, tfds, webdataset
from solo.data.readers.generated import digits, lines, scenes, topics
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

# Importing a module registers its readers.
FORMATS = (
    *(digits, folder, interleaved, lines, llava, messages, parquet, scenes, solo_base64, text, tfds, topics),
    webdataset,
)

__all__ = [
    "FORMATS",
    "Examples",
    "Ignored",
    "Omitted",
    "Part",
    "Reader",
    "Unreadable",
    "open_reader",
    "read",
    "reader",
    "reader_names",
]
