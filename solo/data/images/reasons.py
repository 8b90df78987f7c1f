"""Explains why bytes cannot be read as an image: what they are, and whether they were cut off."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from PIL import UnidentifiedImageError

from solo.data.images.metadata import PNG, jpeg_segments, png_chunks


class ImageError(OSError):
    """An image that cannot be used. The message explains why, in plain words."""


# Formats that are read: Pillow's name -> whether the first bytes are those of such a file.
_IMAGES: dict[str, Callable[[bytes], bool]] = {
    "JPEG": lambda data: data.startswith(b"\xff\xd8"),
    "PNG": lambda data: data.startswith(PNG),
    "GIF": lambda data: data.startswith((b"GIF87a", b"GIF89a")),
    "WebP": lambda data: data.startswith(b"RIFF") and data[8:12] == b"WEBP",
    "TIFF": lambda data: data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    "AVIF": lambda data: data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis"),
    "BMP": lambda data: data.startswith(b"BM") and len(data) > 6,
    "JPEG 2000": lambda data: data.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")),
    "PNM": lambda data: re.match(rb"P[1-6fFy]\s", data) is not None,
}
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# Other kinds of files that turn up where an image was expected.
_OTHERS: dict[str, Callable[[bytes], bool]] = {
    "a HEIC image": lambda data: data[4:8] == b"ftyp" and data[8:12] in _HEIC,
    "an MP4 or QuickTime video": lambda data: data[4:8] == b"ftyp",
    "a JPEG XL image": lambda data: data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")),
    "an SVG drawing": lambda data: re.search(rb"<svg[\s>]", data[:4096], re.IGNORECASE) is not None,
    "an HTML page": lambda data: re.search(rb"<(!doctype html|html|head)\b", data[:4096], re.IGNORECASE) is not None,
    "an XML document": lambda data: data.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"<?xml"),
    "a PDF document": lambda data: data.startswith(b"%PDF"),
    "a PostScript document": lambda data: data.startswith(b"%!PS"),
    "an icon file": lambda data: data.startswith((b"\0\0\1\0", b"\0\0\2\0", b"icns")),
    "a Matroska or WebM video": lambda data: data.startswith(b"\x1a\x45\xdf\xa3"),
    "an AVI video": lambda data: data.startswith(b"RIFF") and data[8:12] == b"AVI ",
    "an MPEG video": lambda data: data.startswith((b"\0\0\1\xb3", b"\0\0\1\xba")),
    "a ZIP archive": lambda data: data.startswith(b"PK\3\4"),
    "gzip-compressed": lambda data: data.startswith(b"\x1f\x8b"),
    "zstd-compressed": lambda data: data.startswith(b"\x28\xb5\x2f\xfd"),
    "a NumPy array": lambda data: data.startswith(b"\x93NUMPY"),
    "an OpenEXR image": lambda data: data.startswith(b"\x76\x2f\x31\x01"),
    "a pointer to a file in Git LFS, not the file": lambda data: data.startswith(b"version https://git-lfs"),
    "only zero bytes": lambda data: not any(data),
    "a text file": lambda data: _is_text(data),
}


def reason(data: bytes, error: Exception) -> str:
    """Returns why `data` cannot be read as an image. `error` is the error that Pillow raised."""
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    if not data:
        return "it is an empty file"
    name = next((name for name, begins in _IMAGES.items() if begins(data)), None)
    if name is None and isinstance(error, UnidentifiedImageError):
        other = next((name for name, is_it in _OTHERS.items() if is_it(data)), None)
        return f"it is {other}" if other else f"its format is unknown (it begins with the bytes {data[:8].hex(' ')})"
    kind = f"{'an' if name == 'AVIF' else 'a'} {name} file" if name else "an image"
    length = _length(data)
    if length is not None and length > len(data):
        return f"it is {kind} that was cut off after {len(data):,} of {length:,} bytes or more"
    if _ends_early(error):
        return f"it is {kind} that was cut off after {len(data):,} bytes"
    if (bits := _jpeg_bits(data)) not in (None, 8):
        return f"it is a JPEG file of {bits} bits per value; 8 can be read"
    if isinstance(error, UnidentifiedImageError):
        return f"it is {kind} that is damaged, or of a kind that Pillow does not read"
    return f"it is {kind} that is damaged, or of a kind that Pillow does not read ({_words(error)})"


def _is_text(data: bytes) -> bool:
    start = data[:1024]
    try:
        text = start.decode()
    except UnicodeDecodeError as error:
        # The inspected bytes may end in the middle of a character.
        if error.start < len(start) - 4 or error.start == 0:
            return False
        text = start[: error.start].decode()
    return all(character.isprintable() or character.isspace() for character in text)


def _ends_early(error: Exception) -> bool:
    return (
        isinstance(error, EOFError)
        or re.search(
            r"truncated|broken data stream|not enough image data|unexpected end|incomplete", str(error), re.IGNORECASE
        )
        is not None
    )


def _words(error: Exception) -> str:
    """Returns the message of an error on one line, without memory addresses."""
    message = re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "the file", str(error))
    return " ".join(message.split())[:200] or type(error).__name__


def _length(data: bytes) -> int | None:
    """Returns the minimum length of the complete file according to its own structure, or None if unknown."""
    if data.startswith(PNG):
        ends = [end for _, _, end in png_chunks(data)]
        return max(ends[-1] if ends else 0, len(PNG) + 25)
    if data.startswith(b"RIFF") and len(data) >= 8:
        return 8 + struct.unpack_from("<I", data, 4)[0]
    if data.startswith(b"BM") and len(data) >= 6:
        return struct.unpack_from("<I", data, 2)[0]
    if data[4:8] == b"ftyp":
        return _boxes_length(data)
    return None


def _boxes_length(data: bytes) -> int:
    """Returns the end of the last top-level box of an ISO media file (AVIF)."""
    at = 0
    while at + 16 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        size = struct.unpack_from(">Q", data, at + 8)[0] if size == 1 else size
        if size < 8:  # 0: the box extends to the end of the file
            break
        at += size
    return at


def _jpeg_bits(data: bytes) -> int | None:
    frames = {0xC0 + number for number in range(16)} - {0xC4, 0xC8, 0xCC}
    for marker, start, end in jpeg_segments(data):
        if marker in frames and end > start + 4:
            return data[start + 4]
    return None
