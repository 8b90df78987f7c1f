"""Readers: one file per dataset format, found by name. To add a format, add a file and import it below."""

from solo.data.readers import digits, folder, lines, llava, scenes, tfds, topics
from solo.data.readers.registry import Examples, Part, Reader, Unreadable, open_reader, read, reader, reader_names

__all__ = [
    "Examples",
    "Part",
    "Reader",
    "Unreadable",
    "digits",
    "folder",
    "lines",
    "llava",
    "open_reader",
    "read",
    "reader",
    "reader_names",
    "scenes",
    "tfds",
    "topics",
]
