"""Images of a row: in the row, in a file beside it, in another row of the same file, or in a table of images."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from solo.config import ConfigError
from solo.data.readers.image_files import load_image
from solo.data.record import Image, Place
from solo.evaluation.benchmarks.rows import Source, open_sources
from solo.files import is_remote

GQA_IMAGE = "imageId"
_QUOTES = re.compile(r"""['"]\s+['"]""")
_STRING = re.compile(r"'(?:[^'\\]|\\.)*'" + r'|"(?:[^"\\]|\\.)*"', re.DOTALL)
_POINTER = 64  # a text of at most this many characters is the id of the row that has the image


class Images:
    """The images of a file's rows.

    A short text in place of an image is the id of the row that holds it, as in VLMEvalKit's files. Such
    images are kept in memory; the file is read twice more to find them. So is GQA's table of images.
    """

    def __init__(self, source: Source, columns: Sequence[str], what: str):
        self._source, self._columns, self._what = source, list(columns), what
        self._shared: dict[str, Any] | None = None
        if self._columns == [GQA_IMAGE]:
            self._shared = self._read_table()
        elif source.is_text and "index" in source.columns and self._columns == ["image"]:
            self._shared = self._read_shared()

    def of(self, values: Mapping[str, Any], place: Place) -> tuple[Image, ...]:
        """Returns the images of a row, at least one.

        Raises:
            ConfigError: one is missing or is not an image; the message names file, row and column.
        """
        found: list[Image] = []
        empty: str | None = None
        for column in self._columns:
            value = values[column]
            if self._shared is not None and isinstance(value, str) and _is_pointer(value):
                found += self._pointed(value, place, column)
                continue
            parts = _parts(value) or _parts(values.get("image_path"))
            if not parts:
                empty = empty or column
                continue
            if empty is not None:
                raise fault(self._what, place, empty, f"is empty, but {column!r} is not")
            found += [self._load(one, place, column) for one in parts]
        if not found:
            raise fault(self._what, place, self._columns[0], "holds no image")
        return tuple(found)

    def _pointed(self, name: str, place: Place, column: str) -> list[Image]:
        """Returns images that another row or table holds. Rows that name the same ones share them."""
        shared = self._shared or {}
        if name not in shared:
            raise fault(self._what, place, column, f"names the image {name!r}, which does not exist")
        if not all(isinstance(one, Image) for one in _parts(shared[name])):
            shared[name] = [self._load(one, place, column) for one in _parts(shared[name])]
        if not shared[name]:
            raise fault(self._what, place, column, f"names the image {name!r}, which is empty")
        return list(shared[name])

    def _load(self, value: Any, place: Place, column: str) -> Image:
        folder = os.path.dirname(place.file)
        stem = os.path.basename(place.file).split(".")[0]
        reason = ""
        for inside in (folder, os.path.join(folder, "images"), os.path.join(folder, "images", stem)):
            try:
                image = load_image(value, inside or ".")
                image.header()
                return image
            except (ValueError, OSError) as error:
                reason = reason or str(error)
                if not isinstance(value, str) or is_remote(value):
                    break
        raise fault(self._what, place, column, f"cannot be read as an image: {reason}")

    def _read_shared(self) -> dict[str, Any]:
        """Returns the images that other rows point to, by the ids of their rows."""
        wanted = {row.values["image"] for row in self._source.rows(["image"]) if _is_pointer(row.values["image"] or "")}
        if not wanted:
            return {}
        rows = self._source.rows(["index", "image"])
        return {row.values["index"]: row.values["image"] for row in rows if row.values["index"] in wanted}

    def _read_table(self) -> dict[str, Any]:
        """Returns the images of GQA by id. Their table lies in a folder of its own beside that of the questions."""
        folder = os.path.dirname(self._source.path)
        beside = folder.removesuffix("_instructions") + "_images"
        if not os.path.isdir(beside):
            raise ConfigError(
                f"{self._what}: {self._source.path} names its images in column {GQA_IMAGE!r}, and their table belongs"
                f" into {beside}, which does not exist; keep the folders as they are published"
            )
        tables = open_sources([beside], (("testdev",),), (), self._what)
        return {str(row.values["id"]): row.values["image"] for table in tables for row in table.rows(["id", "image"])}


def fault(what: str, place: Place, column: str | None, text: str) -> ConfigError:
    """Returns an error that names file, row and column."""
    where = f"column {column!r} " if column else ""
    return ConfigError(f"{what}: {place.file}, row {place.line}: {where}{text}")


def listed(value: Any) -> Any:
    """Returns the list that a text writes out as Python, NumPy or JSON does, and anything else as it is."""
    if isinstance(value, str) and value.startswith("[") and value.rstrip().endswith("]"):
        for read in (lambda text: ast.literal_eval(_with_commas(text)), json.loads):
            with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                found = read(value.strip())
                if isinstance(found, list):
                    return found
    return value


def _with_commas(text: str) -> str:
    """Returns a list with commas between all its texts. NumPy leaves them out, and Python would join such texts."""
    if _QUOTES.search(text) is None:
        return text
    pieces, place = [], 0
    for found in _STRING.finditer(text):
        pieces.append(text[place : found.start()])
        if place and not pieces[-1].strip():
            pieces[-1] = ", "
        pieces.append(found[0])
        place = found.end()
    return "".join([*pieces, text[place:]])


def is_missing(value: Any) -> bool:
    """Returns whether a field of an image holds none. Some writers store a mapping of nothing in its place."""
    if isinstance(value, Mapping):
        return all(each is None for each in value.values())
    return value is None or value in ("", "nan")


def _parts(value: Any) -> list[Any]:
    value = listed(value)
    if is_missing(value):
        return []
    return value if isinstance(value, list) else [value]


def _is_pointer(text: str) -> bool:
    return 0 < len(text) <= _POINTER and "." not in text and "/" not in text
