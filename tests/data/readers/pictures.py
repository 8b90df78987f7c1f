"""Small image files, and what readers make of sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image as PillowImage

from solo.data.readers import Ignored, Unreadable, read
from solo.data.record import Image, Record, encode_png


def picture(colour: str | tuple[int, int, int], size: tuple[int, int] = (3, 2)) -> Image:
    return encode_png(PillowImage.new("RGB", size, colour))


RED, BLUE = picture("red"), picture("blue")


def write(folder: Path, files: dict[str, bytes | str | Image]) -> Path:
    """Writes files, and the folders that they are in."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.data if isinstance(content, Image) else content
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def read_source(
    name: str, limit: int | None = None, /, **options: Any
) -> tuple[dict[str, Any], dict[str, str], set[str]]:
    """Returns the contents of all turns by record id, reasons by unreadable id, and the keys that were ignored."""
    found = list(read(name, options, limit))
    records = [example for example in found if isinstance(example, Record)]
    assert all(example.place is not None for example in found)
    assert len({record.id for record in records}) == len(records)
    return (
        {record.id: tuple(part for turn in record.turns for part in turn.content) for record in records},
        {example.id: example.reason for example in found if isinstance(example, Unreadable)},
        {example.key for example in found if isinstance(example, Ignored)},
    )
