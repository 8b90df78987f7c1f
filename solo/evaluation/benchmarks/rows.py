"""Rows of the files that benchmarks are published in: VLMEvalKit's TSV, and parquet or Arrow tables of Hugging Face.

The format of a file is detected from its first bytes, not from its name. A folder stands for the tables in it.
"""

from __future__ import annotations

import codecs
import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv

from solo.config import ConfigError
from solo.data.readers.file_kinds import file_kind
from solo.data.readers.listing import is_hidden
from solo.data.readers.paths import COMPRESSED, READ_ERRORS, expand, natural, open_bytes, suffix
from solo.data.readers.tables import SUFFIXES, Columns, open_table, table_files, table_parts, table_rows
from solo.data.readers.text_files import DamagedError, explain
from solo.data.record import Place
from solo.files import is_remote

_TEXT_SUFFIXES = (".tsv", ".csv")
_TABLE = (b"PAR1", b"PARE", b"ARROW1", b"\xff\xff\xff\xff")
_SHARD = re.compile(r"(.+?)-\d+-of-\d+.*")
# A block holds a row at least. Rows with many images in base64 may need a larger one.
_BLOCKS = (1 << 26, 1 << 28, 1 << 30)


class Row(NamedTuple):
    """A row. `values` are Python objects; of a TSV file texts, or None where a field is empty."""

    values: Mapping[str, Any]
    place: Place


@dataclass(frozen=True)
class Source:
    """A file with its columns."""

    path: str
    columns: tuple[str, ...]
    is_text: bool
    listing: str  # the columns, for error messages
    what: str  # who asks

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """Yields the rows with some of the columns.

        Raises:
            ConfigError: the file is damaged; the message names the first row that cannot be read.
        """
        if self.is_text:
            yield from self._text_rows(columns)
            return
        for part in table_parts([self.path], 1 << 20):
            for number, values in table_rows(part, list(columns)):
                if isinstance(values, str):
                    raise ConfigError(f"{self.what}: {self.path}: row {number:,}: {values}")
                yield Row(values, Place(self.path, number))

    def _text_rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """Yields rows as texts. Only an empty field is missing; pandas would take "None" and "NA" for missing too."""
        number = 0
        for block in _BLOCKS:
            try:
                for batch in _batches(self.path, columns, block, skip=number):
                    for values in batch.to_pylist():
                        number += 1
                        yield Row(values, Place(self.path, number))
                return
            except pa.ArrowInvalid as error:
                if "straddling" not in str(error) or block == _BLOCKS[-1]:
                    where = f"{self.what}: {self.path}: row {number + 1:,} or a later one cannot be read"
                    raise ConfigError(f"{where}: {_say(error)}") from None
            except READ_ERRORS as error:
                raise ConfigError(f"{self.what}: {self.path}: after row {number:,}: {explain(error)}") from None


def open_sources(
    paths: Sequence[str], splits: Sequence[Sequence[str]], folders: Sequence[str], what: str
) -> list[Source]:
    """Opens the files of a benchmark.

    Args:
        paths: files, globs and folders.
        splits: in order of preference, the splits that a folder may hold the benchmark in.
        folders: names of folders that hold the benchmark in a repository with several.
        what: what the files are read for, in error messages, such as "benchmark 'pope'".

    Raises:
        ConfigError: a path does not exist or cannot be read, or a folder does not say which of its tables to read.
    """
    found: list[str] = []
    for path in expand(tuple(paths), what):
        is_folder = not is_remote(path) and os.path.isdir(path)
        found += _folder(Path(path), splits, folders, what) if is_folder else [path]
    return [_open(path, what) for path in found]


def _folder(folder: Path, splits: Sequence[Sequence[str]], folders: Sequence[str], what: str) -> list[str]:
    for saved in ("dataset_dict.json", "state.json"):
        if (folder / saved).is_file():
            kept = [name for names in splits for name in names if (folder / name).is_dir()]
            return table_files(str(folder), kept[0] if kept and saved == "dataset_dict.json" else None, what)
    files = [path for path in folder.rglob("*") if path.is_file() and not is_hidden(path.relative_to(folder))]
    found = [path for path in files if suffix(path.name) in (*SUFFIXES, *_TEXT_SUFFIXES)]
    inside = [path for path in found if {part.lower() for part in path.relative_to(folder).parts} & set(folders)]
    found = inside or found
    if not found:
        raise ConfigError(f"{what}: {folder} holds no .tsv, .parquet or .arrow files")
    kinds = {suffix(path.name) for path in found}
    if len(kinds) > 1:
        raise ConfigError(f"{what}: {folder} holds {' and '.join(sorted(kinds))} files; name those to read")
    known = dict.fromkeys(split for names in splits for split in names)
    if "train" not in known and all(_is_of_train(path.relative_to(folder)) for path in found):
        wanted = " or ".join(known)
        raise ConfigError(
            f"{what}: {folder} holds the split train alone, not {wanted}; name its files to read them anyway"
        )
    of = {path: _split_of(path.relative_to(folder), splits) for path in found}
    if len(set(of.values())) > 1:
        chosen = next((set(names) for names in splits if set(names) <= set(of.values())), None)
        if chosen is None:
            listed = ", ".join(sorted(str(path.relative_to(folder)) for path in found)[:8])
            raise ConfigError(
                f"{what}: {folder} holds several tables, none of a known split; name those to read: {listed}"
            )
        found = [path for path in found if of[path] in chosen]
    return sorted(map(str, found), key=natural)


def _is_of_train(path: Path) -> bool:
    name, *folders = (part.lower() for part in reversed(path.parts))
    return "train" in (re.split(r"\W", name)[0], *folders)


def _split_of(path: Path, splits: Sequence[Sequence[str]]) -> str | None:
    """Returns the split that a file or its folder is named after: `test-00000-of-00002`, `test/0000`."""
    name = path.name
    for ending in (*COMPRESSED, *SUFFIXES, *_TEXT_SUFFIXES):
        name = name.removesuffix(ending)
    shard = _SHARD.fullmatch(name)
    if shard:
        return shard[1]
    known = {split for names in splits for split in names}
    return next((part for part in (name, *reversed(path.parts[:-1])) if part in known), None)


def _open(path: str, what: str) -> Source:
    try:
        with open_bytes(path) as file:
            head = file.read(1 << 16)
        if head.startswith(_TABLE) or suffix(path) in SUFFIXES:
            schema = open_table(path).schema
            return Source(path, tuple(schema.names), False, str(Columns(schema)), what)
    except DamagedError as fault:
        raise ConfigError(f"{what}: {path}: {fault}") from None
    except READ_ERRORS as error:
        raise ConfigError(f"{what}: {path}: {explain(error)}") from None
    names = _names(head, path, what)
    return Source(path, tuple(names), True, f"columns: {', '.join(names)[:500]}", what)


def _names(head: bytes, path: str, what: str) -> list[str]:
    try:
        line = head.split(b"\n", 1)[0].decode("utf-8-sig").rstrip("\r")
        names = next(csv.reader([line], delimiter=_delimiter(line)), [])
    except (UnicodeDecodeError, csv.Error):
        names = []
    if len(names) < 2 or not all(name.isprintable() for name in names):
        kind = "UTF-16 text (save it as UTF-8)" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else None
        kind = kind or file_kind(head)
        found = f"; it is {kind}" if kind else ""
        raise ConfigError(f"{what}: {path} is neither a TSV file with a header nor a parquet or Arrow file{found}")
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ConfigError(f"{what}: {path} has two columns {repeated!r}")
    return names


def _delimiter(line: str) -> str:
    return "\t" if "\t" in line else ","


# ---------------------------------------------------------------------------------------------- text


def _say(error: pa.ArrowInvalid) -> str:
    """Returns what pyarrow says, without the row itself, which may be a whole image. It counts the header as row 1."""
    text = re.sub(r"^CSV parse error: |(?<=, got) (\d+):.*", r" \1", str(error), flags=re.DOTALL).strip()
    text = re.sub(r"Row #(\d+)", lambda row: f"row {int(row[1]) - 1}", text)[:300]
    return f"{text}; save the file as UTF-8" if "invalid UTF8" in text else text


def _batches(path: str, columns: Sequence[str], block: int, skip: int) -> Iterator[pa.RecordBatch]:
    with open_bytes(path) as file:
        first = file.readline().decode("utf-8-sig")
        names = next(csv.reader([first.rstrip("\r\n")], delimiter=_delimiter(first)))
        left = file.read(1)  # pyarrow raises an error if nothing follows the header
    if not left:
        return
    with open_bytes(path) as file:
        yield from pyarrow.csv.open_csv(
            pa.PythonFile(file, mode="r"),
            pyarrow.csv.ReadOptions(
                use_threads=False, block_size=block, column_names=names, skip_rows=1, skip_rows_after_names=skip
            ),
            pyarrow.csv.ParseOptions(delimiter=_delimiter(first), newlines_in_values=True),
            pyarrow.csv.ConvertOptions(
                include_columns=list(columns),
                column_types=dict.fromkeys(names, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )
