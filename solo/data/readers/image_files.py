"""Loads images in the forms that datasets use: a path, a data URI, base64 text, bytes, or `{"bytes", "path"}`."""

from __future__ import annotations

import base64
import binascii
import os
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from PIL import Image as PillowImage

from solo.data.readers.paths import READ_ERRORS, open_bytes, open_regular
from solo.data.readers.registry import UnreadableFileError
from solo.data.readers.wording import kind
from solo.data.record import Image, encode_png
from solo.files import is_remote

MAX_BYTES = 1 << 30
"""Bytes of an encoded image at most."""

_WEB = ("http://", "https://", "ftp://", "ftps://", "//")
# The first bytes of JPEG, PNG, GIF, WebP, TIFF and BMP files, in base64.
_BASE64 = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkqA", "TU0AK", "Qk")


def load_image(value: Any, folder: str = ".") -> Image:
    """Returns an image without decoding it.

    Args:
        value: a path, absolute or relative to `folder`, possibly percent-encoded or with backslashes; a `file://` or
            object store URL; a data URI; base64 text; bytes; a Pillow image; or a mapping with "bytes", "path" or
            "url", as in Hugging Face datasets. Links to files are followed.
        folder: local folder, or a URL.

    Raises:
        ValueError: the image cannot be found or read; the message says why.
    """
    if isinstance(value, str | Path):
        return _text(str(value), folder)
    if isinstance(value, bytes | bytearray | memoryview):
        return Image(bytes(value))
    if isinstance(value, Mapping):
        return _mapping(value, folder)
    if isinstance(value, Image):
        return value
    if isinstance(value, PillowImage.Image):
        return encode_png(value)
    raise ValueError(f"an image must be a path, a data URI or bytes, not {kind(value)}")


def _mapping(value: Mapping[Any, Any], folder: str) -> Image:
    data = value.get("bytes")
    if isinstance(data, str):
        return Image(_decode_base64(data))
    if data is not None:
        return load_image(data)
    for key in ("path", "url", "image", "base64", "data"):
        found = value.get(key)
        if isinstance(found, str | Path) and str(found):
            text = str(found)
            return Image(_decode_base64(text)) if key in ("base64", "data") else _text(text, folder)
    raise ValueError(f"an image's mapping must have 'bytes', 'path' or 'url'; it has {sorted(map(str, value))[:8]}")


def _text(text: str, folder: str) -> Image:
    if text[:5].lower() == "data:":
        return _data_uri(text)
    if text.lower().startswith(_WEB):
        raise ValueError(f"it is a web address, and nothing is fetched from the network: {_shown(text)}")
    if not text.strip():
        raise ValueError("an image's path is empty")
    if "\0" in text:
        raise ValueError(f"an image's path holds a null character: {_shown(text)}")
    if len(text) > 4096 or (text.startswith(_BASE64) and len(text) >= 64 and not os.path.lexists(text)):
        return Image(_decode_base64(text))
    if text[:6].lower() == "file:/":
        text = unquote(urlsplit(text).path)
    if is_remote(text) or is_remote(folder):
        return _read(text if is_remote(text) else f"{folder.rstrip('/')}/{text}")
    for path in _spellings(os.path.join(folder, text)):
        if os.path.lexists(path):
            return _read(path)
    path = os.path.join(folder, text)
    raise UnreadableFileError(f"the file does not exist: {_shown(path)}", path)


def _spellings(path: str) -> Iterator[str]:
    """Yields a path, then the spellings that the same name may have on other systems."""
    yield path
    if "%" in path:
        yield unquote(path)
    if "\\" in path:
        yield path.replace("\\", "/")
    for form in ("NFC", "NFD"):
        yield unicodedata.normalize(form, path)


def _read(path: str) -> Image:
    try:
        with open_bytes(path) if is_remote(path) else open_regular(path) as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UnreadableFileError(f"the file does not exist: {_shown(path)}", path) from None
    except ImportError as error:
        raise ValueError(f"{error}: {_shown(path)}") from None
    except READ_ERRORS as error:
        reason = getattr(error, "strerror", None)
        said = f"the file cannot be read: {reason.lower()}" if reason else str(error)
        raise UnreadableFileError(said if path in said else f"{said}: {_shown(path)}", path) from None
    if len(data) > MAX_BYTES:
        raise ValueError(f"the file has more than {MAX_BYTES >> 30} GiB: {_shown(path)}")
    return Image(data, path)


def _data_uri(text: str) -> Image:
    head, comma, data = text.partition(",")
    if not comma:
        raise ValueError(f"a data URI needs a comma before its data: {_shown(text)}")
    kind = head[5:].split(";")[0].lower()
    if kind and not kind.startswith("image/") and kind != "application/octet-stream":
        raise ValueError(f"the data URI holds {kind}, not an image")
    return Image(_decode_base64(data) if ";base64" in head.lower() else unquote_to_bytes(data))


def _decode_base64(text: str) -> bytes:
    """Decodes base64, including URL-safe base64, with line breaks or without padding."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    try:
        joined = "".join(unquote(text).split()).translate({ord("-"): "+", ord("_"): "/"}).rstrip("=")
        return base64.b64decode(joined + "=" * (-len(joined) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"it is neither a path nor base64: {_shown(text)}") from None


def _shown(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:100]}... ({len(text):,} characters)"
