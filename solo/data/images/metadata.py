"""Parses PNG and JPEG files far enough to remove their metadata.

A text, profile or comment can make Pillow refuse a file whose pixels are fine.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

PNG = b"\x89PNG\r\n\x1a\n"
# Chunks that a decoder may ignore begin with a lower-case letter. These two affect the meaning of the pixels.
_KEPT_CHUNKS = {b"tRNS", b"eXIf"}
# Markers of JPEG segments.
_START_OF_SCAN, _JFIF, _EXIF, _ADOBE, _LAST_APPLICATION, _COMMENT = 0xDA, 0xE0, 0xE1, 0xEE, 0xEF, 0xFE


def without_metadata(data: bytes) -> bytes | None:
    """Removes everything from a PNG or JPEG file that decoding does not need. Returns None for other formats.

    The EXIF section is kept, for the orientation. So is what defines the meaning of the pixels: transparency in PNG,
    and the JFIF and Adobe segments in JPEG, if they are complete.
    """
    if data.startswith(PNG):
        kept, end = [PNG], len(PNG)
        for kind, start, end in png_chunks(data):
            if kind[:1].isupper() or kind in _KEPT_CHUNKS:
                kept.append(data[start:end])
        return b"".join([*kept, data[end:]])
    if data.startswith(b"\xff\xd8"):
        kept, end = [data[:2]], 2
        for marker, start, end in jpeg_segments(data):
            if not _is_metadata(marker, data[start + 4 : end]):
                kept.append(data[start:end])
        return b"".join([*kept, data[end:]])
    return None


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields (type, start, end) of each chunk. The end is past the end of the data if the chunk was cut off."""
    at = len(PNG)
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind = data[at + 4 : at + 8]
        if not kind.isalpha():
            return
        yield kind, at, at + 12 + length
        if kind == b"IEND":
            return
        at += 12 + length


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields (marker, start, end) of each segment before the first scan."""
    at = 2 if data.startswith(b"\xff\xd8") else len(data)
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], struct.unpack_from(">H", data, at + 2)[0]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker == _START_OF_SCAN or length < 2:
            return
        yield marker, at, at + 2 + length
        at += 2 + length


def jpeg2000_bits(data: bytes) -> int | None:
    """Returns the largest bit depth in a JPEG 2000 file; None if the file does not say."""
    at = data.find(b"\xff\x4f\xff\x51")  # start of the codestream and of its SIZ segment
    if at < 0 or len(data) < at + 45:
        return None
    (components,) = struct.unpack_from(">H", data, at + 40)
    return max((bits & 0x7F) + 1 for bits in data[at + 42 : at + 42 + 3 * max(components, 1) : 3])


def _is_metadata(marker: int, content: bytes) -> bool:
    if marker == _JFIF:
        return not content.startswith(b"JFIF\0") or len(content) < 14
    if marker == _ADOBE:
        return not content.startswith(b"Adobe") or len(content) < 12
    if marker == _EXIF:
        return not content.startswith(b"Exif\0\0")
    return marker == _COMMENT or _JFIF < marker <= _LAST_APPLICATION
