"""Folders of captioned images, in the format of Hugging Face's `imagefolder` or with a text file next to each image."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from solo.config import ConfigError, nearest
from solo.data.readers import json_files
from solo.data.readers.captions import Captions, caption_records
from solo.data.readers.image_files import load_image
from solo.data.readers.listing import Entry, list_folder, walk
from solo.data.readers.paths import READ_ERRORS, open_bytes
from solo.data.readers.registry import Examples, Part, Reader, Unreadable, reader
from solo.data.readers.wording import kind, shown
from solo.data.record import Place

_WHAT = "reader 'imagefolder'"
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".jp2")
)
# An example of a part: (name, line in the metadata, files, captions, fault).
_Found = tuple[str, int | None, tuple[str, ...], tuple[str, ...], str]


@reader("imagefolder")
@dataclass(frozen=True)
class CaptionedImages(Reader):
    """Images of a folder, captioned by a table or by a text file next to each image.

    path      the folder. Its `metadata.jsonl`, `metadata.csv` or `metadata.parquet` has one row per image, with a
              caption and `file_name`, a path relative to the folder, or `file_names`, a list of such paths
    text      the column of the caption: a text, or a list of texts
    captions  each: one record per caption; all: one record per row, one caption per line; first: the first caption
    beside    suffix of the text files. With `.txt`, `a.txt` is the caption of `a.jpg`, and there is no table

    An image that is not in the table is unreadable, and so is a row whose image is missing.
    """

    path: str
    text: str = "text"
    captions: Captions = "each"
    beside: str | None = None

    def parts(self, size: int, limit: int | None) -> Iterator[Part]:
        """Reads the table or lists the folder, and yields its examples in groups."""
        files, examples = self._open()
        examples = iter(examples)
        start = 0
        while limit is None or start < limit:
            chunk = tuple(islice(examples, size if limit is None else min(size, limit - start)))
            if not chunk:
                return
            yield Part(f"{start + 1}-{start + len(chunk)}", files, chunk)
            start += len(chunk)

    def read(self, part: Part) -> Examples:
        """Yields the records of a part. Its span contains the examples."""
        for name, line, files, captions, fault in part.span:
            place = Place(part.files[0] if part.files else self._file(name), line)
            try:
                if fault:
                    raise ValueError(fault)
                images = [load_image(self._file(file)) for file in files]
                texts = [self._read_text(name)] if self.beside else captions
                yield from caption_records(name, images, texts, self.captions, place)
            except ValueError as error:
                yield Unreadable.because(error, name, place)

    def _open(self) -> tuple[tuple[str, ...], Iterable[_Found]]:
        """Returns the caption files, and the examples."""
        top = list_folder(self.path, "", _WHAT)
        if self.beside is not None:
            return (), self._pairs()
        names = [entry.name for entry in top]
        metadata = next((name for name in METADATA if name in names), None)
        if metadata is None:
            raise self._no_metadata(top)
        return (self._file(metadata),), self._rows(metadata)

    def _no_metadata(self, top: list[Entry]) -> ConfigError:
        for entry in top:
            below = (
                {below.name for below in list_folder(self._file(entry.name), "", _WHAT)} if entry.is_folder else set()
            )
            if found := below.intersection(METADATA):
                return ConfigError(
                    f"{_WHAT}: {self.path} has no {METADATA[0]}, but {entry.name} has {min(found)}; set path to"
                    f" {self._file(entry.name)}"
                )
        return ConfigError(
            f"{_WHAT}: {self.path} has none of {', '.join(METADATA)}; if each image has a text file, set beside: .txt"
        )

    def _pairs(self) -> Iterator[_Found]:
        """Yields every image with the text file of the same name, and the files that have no counterpart."""
        beside = str(self.beside)
        entries = list(walk(self.path, ""))
        found = {entry.name for entry in entries}
        images = {os.path.splitext(name)[0]: name for name in found if _is_image(name)}
        for entry in entries:
            stem, suffix = os.path.splitext(entry.name)
            if entry.fault:
                yield entry.name, None, (), (), entry.fault
            elif suffix == beside:
                if stem not in images:
                    yield entry.name, None, (), (), "there is no image of its name"
            elif _is_image(entry.name):
                fault = "" if stem + beside in found else f"it has no caption: there is no {stem + beside}"
                yield entry.name, None, (entry.name,), (), fault

    def _rows(self, metadata: str) -> Iterator[_Found]:
        named: set[str] = set()
        rows = _READ[os.path.splitext(metadata)[1]](self._file(metadata))
        columns: tuple[str, ...] | None = None
        for line, row in rows:
            name = f"{metadata}:{line}"
            if isinstance(row, str):
                yield name, line, (), (), row
                continue
            columns = columns or self._check_columns(metadata, row)
            try:
                files = _texts(next((row[key] for key in _file_columns(row) if row.get(key)), None), "file_name")
                files = tuple(os.path.normpath(file) for file in files)
                named.update(files)
                yield files[0], line, files, _texts(row.get(self.text), self.text), ""
            except ValueError as error:
                yield name, line, (), (), str(error)
        for entry in walk(self.path, ""):
            if entry.fault or (_is_image(entry.name) and entry.name not in named):
                yield entry.name, None, (), (), entry.fault or f"{metadata} does not name it"

    def _check_columns(self, metadata: str, row: dict[str, Any]) -> tuple[str, ...]:
        known = [key for key in row if isinstance(key, str)]
        if not _file_columns(row):
            raise ConfigError(f"{_WHAT}: {self._file(metadata)} has no column 'file_name'; columns: {known}")
        if self.text not in row:
            hint = nearest(self.text, known) or f"; columns: {known}"
            raise ConfigError(f"{_WHAT}: option 'text': {self._file(metadata)} has no column {self.text!r}{hint}")
        return tuple(known)

    def _read_text(self, name: str) -> str:
        path = self._file(os.path.splitext(name)[0] + str(self.beside))
        try:
            with open_bytes(path) as file:
                return file.read().decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"its caption is not UTF-8: {error.reason} at byte {error.start}") from None
        except READ_ERRORS as error:
            raise ValueError(f"cannot read its caption: {error}") from None

    def _file(self, name: str) -> str:
        return os.path.join(self.path, name)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _file_columns(row: dict[str, Any]) -> list[str]:
    return [key for key in row if isinstance(key, str) and (key + "s").endswith(("file_names", "file_namess"))]


def _texts(value: Any, what: str) -> tuple[str, ...]:
    found = tuple(value) if isinstance(value, list) else (value,)
    if not found or not all(isinstance(text, str) and text for text in found):
        raise ValueError(f"{what!r} must be a text or a list of texts, not {shown(value)}")
    return found


def _jsonl(path: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for part in json_files.parts(path, 1 << 30, _WHAT):
        for found in json_files.elements(part):
            if isinstance(found, Unreadable):
                yield (found.place.line if found.place else None) or 0, found.reason
            else:
                place, row = found
                fault = f"a row must be a mapping, not {kind(row)}"
                yield place.line or 0, row if isinstance(row, dict) else fault


def _csv(path: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    try:
        with open_bytes(path) as file:
            table = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
            for row in table:
                whole = None not in row and None not in row.values()
                yield (
                    table.line_num,
                    row if whole else f"the row does not have the {len(table.fieldnames or ())} cells of the header",
                )
    except (*READ_ERRORS, ValueError, csv.Error) as error:
        raise ConfigError(f"{_WHAT}: cannot read {path}: {error}") from None


def _parquet(path: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    import pyarrow
    import pyarrow.parquet

    line = 0
    try:
        with open_bytes(path) as file:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
                for row in batch.to_pylist():
                    line += 1
                    yield line, row
    except (*READ_ERRORS, ValueError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{_WHAT}: cannot read {path}: {error}") from None


_READ = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
