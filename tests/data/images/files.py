"""Image files made by Pillow, OpenCV, simplejpeg and by hand."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image as PillowImage


def encoded(image: PillowImage.Image, kind: str, **options) -> bytes:
    """Encodes an image with Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def as_pillow_12_1(image: PillowImage.Image, size: tuple[int, int], resample: str) -> PillowImage.Image:
    """Resizes rows first, as Pillow did until 12.1, when the references were trained; hashes: test_resizing.py."""
    kind = PillowImage.Resampling[resample.upper()]
    return image.resize((size[0], image.height), kind).resize(size, kind)


def photograph(width: int, height: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    """Returns uint8 [height, width, channels] like a photograph: shapes of all sizes, and the noise of a sensor."""
    rng = np.random.default_rng(seed)
    found = np.full((height, width, channels), 128, np.float32)
    for cells, contrast in ((8, 45), (32, 20), (128, 10), (512, 5)):
        size = max(height * cells // max(width, height) + 2, 2), max(width * cells // max(width, height) + 2, 2)
        grid = rng.normal(size=(*size, channels)).astype(np.float32)
        for channel in range(channels):
            layer = PillowImage.fromarray(grid[..., channel]).resize((width, height), PillowImage.Resampling.BICUBIC)
            found[..., channel] += contrast * np.asarray(layer)
    found += rng.normal(scale=4, size=(height, width, 1))
    return np.clip(found, 0, 255).astype(np.uint8)


def jpeg(width: int, height: int, quality: int = 90, seed: int = 0) -> bytes:
    """Returns a photograph as JPEG with 4:2:0 subsampling, as cameras and the web make them."""
    return encoded(PillowImage.fromarray(photograph(width, height, seed)), "JPEG", quality=quality)


def chunk(kind: bytes, content: bytes) -> bytes:
    """Returns a PNG chunk."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    """Returns a PNG file with chunks after its header."""
    return png[:33] + b"".join(chunks) + png[33:]


def with_segments(data: bytes, *segments: tuple[int, bytes]) -> bytes:
    """Returns a JPEG file with segments (marker, content) at its beginning."""
    made = b"".join(struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content for marker, content in segments)
    return data[:2] + made + data[2:]


def png_header(width: int, height: int) -> bytes:
    """Returns a PNG file of a size that is claimed, with a few pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
