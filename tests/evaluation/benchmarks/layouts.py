"""Small files in the layouts that benchmarks are published in, written with the library of each format."""

from __future__ import annotations

import base64
import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
from PIL import Image as PillowImage

from solo.data.record import Image, encode_png

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))
PICTURES: tuple[Image, ...] = tuple(encode_png(PillowImage.new("RGB", (9, 7), colour)) for colour in COLOURS)


def encoded(number: int) -> str:
    """Picture `number` as VLMEvalKit keeps it: base64 without a prefix."""
    return base64.b64encode(PICTURES[number].data).decode()


def tsv(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """A TSV as pandas writes it, with an empty field for each missing value."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, delimiter="\t", restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def parquet(path: Path, rows: list[dict[str, Any]], features: Mapping[str, Any] | None = None) -> str:
    """A parquet file as `datasets` writes it: an image is a struct of bytes and path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [name for name in rows[0] if any(isinstance(row[name], Image) for row in rows) or name == "image_2"]
    known = dict.fromkeys(pictures, datasets.Image()) | dict(features or {})
    inferred = datasets.Dataset.from_list([{k: v for k, v in row.items() if k not in known} for row in rows]).features
    every = datasets.Features({name: known.get(name) or inferred[name] for name in rows[0]})
    columns = {name: [_cell(row[name]) for row in rows] for name in rows[0]}
    datasets.Dataset.from_dict(columns, every).to_parquet(str(path))
    return str(path)


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return [_cell(one) for one in value]
    return {"bytes": value.data, "path": None} if isinstance(value, Image) else value
