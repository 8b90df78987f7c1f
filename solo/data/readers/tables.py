"""Rows of table files: Parquet, and the Arrow files that `datasets` saves.

A table is split by row groups, which its footer lists; a large row group is split into slices. Rows are decoded in
small batches of the needed columns, so memory use does not depend on the size of a file or row group.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, cast

import pyarrow as pa
import pyarrow.parquet as pq

from solo.config import ConfigError, nearest
from solo.data.readers.file_kinds import file_kind
from solo.data.readers.listing import is_hidden
from solo.data.readers.paths import READ_ERRORS, Paths, expand, natural, open_bytes, open_regular
from solo.data.readers.registry import Part
from solo.data.readers.text_files import DamagedError, short_names
from solo.files import is_remote

SUFFIXES = (".parquet", ".arrow")
_BATCH_BYTES = 32 << 20
_BATCH_ROWS = 512
# To read a slice, its row group is decoded from the start, so a row group is split into few slices.
_SLICES = 8
_SHARD = re.compile(r"(.+?)-\d+-of-\d+.*")
_SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation")


class Table(Protocol):
    """An open table file. A group is a row group of a Parquet file, or a record batch of an Arrow file."""

    schema: pa.Schema

    def groups(self) -> tuple[list[int], str | None]:
        """Returns the number of rows of each group, and the fault after the last group if the file is damaged."""

    def batches(self, first: int, last: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Yields the rows of the groups `first` to `last - 1`, in batches of limited size."""


@dataclass(frozen=True)
class Columns:
    """The columns of a table, with their metadata from `datasets`."""

    schema: pa.Schema

    @cached_property
    def features(self) -> dict[str, Any]:
        """The `datasets` feature of each column, such as `{"_type": "Image"}`; empty for other tables."""
        with suppress(KeyError, TypeError, ValueError, AttributeError, RecursionError):
            noted = json.loads(self.schema.metadata[b"huggingface"])["info"]["features"]
            return {name: noted[name] for name in self.schema.names if name in noted}
        return {}

    def class_names(self, column: str) -> list[str] | None:
        """Returns the class names of a label column, or None."""
        feature = self.features.get(column)
        names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
        return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None

    def find(self, column: str | None, usual: Sequence[str], option: str, what: str) -> str | None:
        """Returns the column that an option names, else the first usual column that exists, else None.

        Raises:
            ConfigError: the named column does not exist.
        """
        if column is None:
            return next((name for name in usual if name in self.schema.names), None)
        if column in self.schema.names:
            return column
        hint = nearest(column, self.schema.names)
        raise ConfigError(f"{what}: option {option!r}: there is no column {column!r}{hint}\n{self}")

    def type(self, column: str) -> pa.DataType:
        """Returns the type of a column; for a dictionary-encoded column, the type of its values."""
        found = self.schema.field(column).type
        return found.value_type if pa.types.is_dictionary(found) else found

    def __str__(self) -> str:
        lines = []
        for field in self.schema:
            feature = self.features.get(field.name)
            kind = feature.get("_type") if isinstance(feature, dict) else None
            lines.append(f"  {field.name}: {kind if kind in ('Image', 'ClassLabel') else str(field.type)[:80]}")
        return "columns:\n" + "\n".join(lines)


# --------------------------------------------------------------------------------------------- files


def table_files(paths: Paths, split: str | None, what: str) -> list[str]:
    """Returns the table files of paths. A folder stands for one split of the dataset in it.

    Raises:
        ConfigError: a path does not exist, a folder contains no tables, or a split must be named.
    """
    found: list[str] = []
    folders = 0
    for path in expand(paths, what):
        if not is_remote(path) and os.path.isdir(path):
            found += _folder(Path(path), split, what)
            folders += 1
        elif not is_remote(path) and not os.path.isfile(path):
            raise ConfigError(f"{what}: {path} is not a regular file")
        else:
            found.append(path)
    if split is not None and not folders:
        raise ConfigError(f"{what}: option 'split' chooses files of a folder, but 'path' names files")
    return found


def _folder(folder: Path, split: str | None, what: str) -> list[str]:
    """Returns the files of a split in a folder that `datasets` saved or that was downloaded from the Hub."""
    if (folder / "dataset_dict.json").is_file():
        listing = folder / "dataset_dict.json"
        splits = _read_json(listing, what).get("splits", [])
        if not isinstance(splits, list) or not all(isinstance(name, str) for name in splits):
            raise ConfigError(f"{what}: 'splits' in {listing} is not a list of names")
        return _saved(folder / _choose(split, splits, folder, what), what)
    if (folder / "state.json").is_file():
        return _saved(folder, what)
    files = [path for path in folder.rglob("*.parquet") if not is_hidden(path.relative_to(folder))]
    if not files:
        raise ConfigError(f"{what}: {folder} holds neither parquet files nor a dataset of `save_to_disk`")
    of = {path: _split_of(path, folder) for path in files}
    splits = sorted({name for name in of.values() if name is not None})
    if split is not None or len(splits) > 1:
        chosen = _choose(split, splits, folder, what)
        files = [path for path in files if of[path] == chosen]
    return sorted(map(str, files), key=natural)


def _choose(split: str | None, splits: list[str], folder: Path, what: str) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None:
        raise ConfigError(f"{what}: {folder} holds the splits {', '.join(splits)}; choose one with `split`")
    if split not in splits:
        raise ConfigError(f"{what}: {folder} has no split {split!r}; it has {', '.join(splits) or 'no named splits'}")
    return split


def _split_of(path: Path, folder: Path) -> str | None:
    """Returns the split that a file or its folder is named after: `train-00000-of-00002`, `train/0000`, `train`."""
    shard = _SHARD.fullmatch(path.stem)
    if shard:
        return shard[1]
    names = [path.stem, *reversed(path.relative_to(folder).parts[:-1])]
    return next((name.removeprefix("partial-") for name in names if name.removeprefix("partial-") in _SPLITS), None)


def _saved(folder: Path, what: str) -> list[str]:
    """Returns the files of a dataset written by `save_to_disk`, in order."""
    try:
        files = [str(folder / entry["filename"]) for entry in _read_json(folder / "state.json", what)["_data_files"]]
    except (KeyError, TypeError):
        files = []
    if not files:
        raise ConfigError(f"{what}: '_data_files' in {folder / 'state.json'} lists no files")
    missing = [path for path in files if not os.path.isfile(path)]
    if missing:
        raise ConfigError(f"{what}: {missing[0]} does not exist, but {folder / 'state.json'} lists it")
    return files


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        with open_regular(str(path)) as file:
            found = json.loads(file.read())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{what}: cannot read {path}: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{what}: {path} does not hold a JSON object")
    return found


# --------------------------------------------------------------------------------------------- parts


def table_parts(files: Sequence[str], size: int, limit: int | None = None) -> Iterator[Part]:
    """Yields parts of about `size` rows. A file that cannot be opened becomes a part of its own.

    Files beyond the first `limit` rows are not opened.
    """
    rows = 0
    for path, name in zip(files, short_names(files), strict=True):
        if limit is not None and rows >= limit:
            return
        try:
            table = open_table(path)
        except DamagedError as fault:
            yield Part(name, (path,), ("damaged", str(fault)))
            continue
        group_rows, damage = table.groups()
        for first, last, skip, count, row in _spans(group_rows, size):
            yield Part(f"{name}:{row + 1}-{row + count}", (path,), (first, last, skip, count, row))
            rows += count
        if damage is not None:
            yield Part(f"{name}:damaged", (path,), ("damaged", damage))


def _spans(group_rows: list[int], size: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yields (first group, last group + 1, rows to skip, rows, preceding rows of the file) for each part."""
    row = group = 0
    while group < len(group_rows):
        last, rows = group + 1, group_rows[group]
        while last < len(group_rows) and rows + group_rows[last] <= size:
            rows += group_rows[last]
            last += 1
        length = max(size, -(-rows // _SLICES))
        for skip in range(0, rows, length):
            yield group, last, skip, min(length, rows - skip), row + skip
        row += rows
        group = last


def table_rows(part: Part, columns: list[str]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yields the number of each row of a part, from 1, and its values, or the reason why it cannot be read.

    If a file is damaged, the last number and reason apply to all rows from there on.

    Raises:
        DamagedError: the file can no longer be opened.
    """
    path = part.files[0]
    if part.span[0] == "damaged":
        yield 1, cast(str, part.span[1])
        return
    first, last, skip, count, row = part.span
    number, end = row + 1, row + count
    try:
        for batch in open_table(path).batches(first, last, columns):
            batch, skip = batch.slice(skip), max(0, skip - batch.num_rows)
            for values in _values(batch.slice(0, end + 1 - number)):
                yield number, values
                number += 1
            if number > end:
                return
    except (pa.ArrowException, ValueError, *READ_ERRORS) as error:
        yield number, f"rows {number:,} to {end:,} cannot be read: {_say(error)}"
        return
    yield number, f"rows {number:,} to {end:,} are missing: the file has changed"


def _values(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """Yields the values of each row as Python objects."""
    try:
        yield from _checked(batch)
    except (ValueError, OverflowError, pa.ArrowException):  # one bad row fails the batch: bad UTF-8, date out of range
        for index in range(batch.num_rows):
            try:
                yield _checked(batch.slice(index, 1))[0]
            except (ValueError, OverflowError, pa.ArrowException) as error:
                yield f"its values cannot be read: {_say(error)}"


def _checked(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Returns the rows of a batch, after checking that offsets of a damaged Arrow file do not exceed its buffers."""
    batch.validate(full=True)
    return cast(list[dict[str, Any]], batch.to_pylist())


# ------------------------------------------------------------------------------------------- formats


def open_table(path: str) -> Table:
    """Opens a Parquet or Arrow file.

    Raises:
        DamagedError: the file cannot be opened.
    """
    try:
        with open_bytes(path) as file:
            head = file.read(512)
        table: Table | None = None
        if head.startswith(b"PAR1"):
            table = _Parquet(path)
        elif head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
            table = _Arrow(path, head.startswith(b"ARROW1"))
        if table is not None:
            _ = table.schema.names, str(table.schema)  # fails if a name is not valid Unicode
            return table
    except (pa.ArrowException, ValueError, *READ_ERRORS) as error:
        raise DamagedError(f"the file cannot be read: {_say(error)}") from None
    if head.startswith(b"PARE"):
        raise DamagedError("its footer is encrypted")
    raise DamagedError(f"it is {file_kind(head) or 'neither a parquet nor an Arrow file'}" if head else "it is empty")


class _Parquet:
    def __init__(self, path: str):
        source = open_bytes(path) if is_remote(path) else path
        # With a buffer, pages are read on demand, instead of a whole row group at once.
        self._file = pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False)
        self._footer = self._file.metadata
        self.schema: pa.Schema = self._file.schema_arrow

    def groups(self) -> tuple[list[int], str | None]:
        return [self._footer.row_group(group).num_rows for group in range(self._footer.num_row_groups)], None

    def batches(self, first: int, last: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        for group in range(first, last):
            facts = self._footer.row_group(group)
            # The size of the needed columns alone would be more accurate, but pyarrow aborts the process if their
            # metadata is damaged.
            rows = max(1, min(_BATCH_ROWS, facts.num_rows * _BATCH_BYTES // max(facts.total_byte_size, 1)))
            if facts.num_rows:
                yield from self._file.iter_batches(rows, [group], columns, use_threads=False)


class _Arrow:
    def __init__(self, path: str, random_access: bool):
        self._source = pa.PythonFile(open_bytes(path), mode="r") if is_remote(path) else pa.memory_map(path)
        self._random_access = random_access
        self.schema: pa.Schema = self._open().schema

    def groups(self) -> tuple[list[int], str | None]:
        rows: list[int] = []
        try:
            for batch in self._all(self._open()):
                rows.append(batch.num_rows)
        except (pa.ArrowException, OSError) as error:
            return rows, f"what follows row {sum(rows):,} cannot be read: {_say(error)}"
        return rows, None

    def batches(self, first: int, last: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        for batch in islice(self._all(self._open()), first, last):
            rows = max(1, min(_BATCH_ROWS, batch.num_rows * _BATCH_BYTES // max(batch.get_total_buffer_size(), 1)))
            for begin in range(0, batch.num_rows, rows):
                yield batch.slice(begin, rows).select(columns)

    def _open(self) -> Any:
        self._source.seek(0)
        return pa.ipc.open_file(self._source) if self._random_access else pa.ipc.open_stream(self._source)

    def _all(self, reader: Any) -> Iterator[pa.RecordBatch]:
        if self._random_access:
            return (reader.get_batch(number) for number in range(reader.num_record_batches))
        return iter(reader)


def _say(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    if "magic bytes not found in footer" in text or "Parquet file size" in text:
        return "it is cut short, or its footer is damaged"
    return text.splitlines()[0][:200]
