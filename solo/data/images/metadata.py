"""The structure of PNG and JPEG files, as far as needed to remove metadata.

A text, profile or comment can make Pillow refuse a file whose pixels are sound.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

PNG = b"\x89PNG\r\n\x1a\n"
# Chunks that a decoder can ignore begin with a small letter. These two define the meaning of the pixels.
_KEPT_CHUNKS = {b"tRNS", b"eXIf"}
# Markers of JPEG segments.
_START_OF_SCAN, _JFIF, _EXIF, _ADOBE, _LAST_APPLICATION, _COMMENT = 0xDA, 0xE0, 0xE1, 0xEE, 0xEF, 0xFE


def without_metadata(data: bytes) -> bytes | None:
    """Returns a PNG or JPEG file without what decoding does not need; None for other formats.

    The EXIF section stays, for the orientation, as does what defines the meaning of the pixels: transparency in PNG,
    the JFIF and Adobe segments in JPEG, if they are whole.
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
    """Yields the type of each chunk, its first byte and the byte after it, which is past the end if it was cut off."""
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
    """Yields the marker of each segment before the first scan, its first byte and the byte after it."""
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
    """Returns the most bits that a value of a JPEG 2000 file has; None if it does not say."""
    at = data.find(b"\xff\x4f\xff\x51")  # the beginning of the codestream and of its SIZ segment
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
