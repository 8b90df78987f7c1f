"""Reads tables of runs from CSV, JSON lines or parquet files, or from the results of a sweep."""

from __future__ import annotations

import codecs
import csv
import hashlib
import importlib
import io
import json
import operator
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from solo.config import ConfigError

RESULTS = "results.jsonl"
_SEPARATORS = ",;\t"

Row = dict[str, Any]

_OPERATORS = {
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}


def read_rows(path: str | Path) -> tuple[list[Row], str]:
    """Returns the rows of a table, with nested mappings flattened to dotted names, and the SHA-256 of the file.

    Raises:
        ConfigError: the file is missing, has an unknown format, or contains a malformed line.
    """
    path = Path(path)
    path = path / RESULTS if path.is_dir() else path
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read results {path}: {error.strerror}") from None
    readers = {".csv": _csv, ".jsonl": _json_lines, ".parquet": _parquet}
    if path.suffix not in readers:
        raise ConfigError(f"{path}: expected one of {', '.join(readers)}, or a sweep's folder with a {RESULTS}")
    rows = readers[path.suffix](data, path)
    if not rows:
        raise ConfigError(f"{path} has no rows")
    return rows, hashlib.sha256(data).hexdigest()


def flat(row: Mapping[str, Any], prefix: str = "") -> Row:
    """Flattens a row: {"losses": {"text": 2.0}} becomes {"losses.text": 2.0}.

    Raises:
        ValueError: two values get the same name, as in {"losses": {"text": 2.0}, "losses.text": 3.0}.
    """
    found: Row = {}
    for name, value in row.items():
        part = flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + str(name): value}
        if repeated := found.keys() & part.keys():
            raise ValueError(f"several columns are named {min(repeated)!r}; give each its own name")
        found |= part
    return found


def number(value: Any) -> float:
    """Returns a value as a number; NaN if it is not one, or the cell is empty."""
    try:
        return float("nan") if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def text(value: Any) -> str:
    """Returns a value as text; empty for None and NaN."""
    return "" if value is None or (isinstance(value, float) and value != value) else str(value)


def where(rows: Sequence[Row], conditions: Sequence[str]) -> list[Row]:
    """Returns the rows that meet all conditions: `column=value`, or !=, <, <=, >, >=. Numbers compare as numbers.

    Raises:
        ConfigError: a condition does not have this form, or names an unknown column.
    """
    kept = list(rows)
    for condition in conditions:
        match = re.fullmatch(r"([^<>=!]+)(!=|<=|>=|=|<|>)(.*)", condition)
        if not match:
            raise ConfigError(f"--where {condition!r}: expected COLUMN=VALUE, or one of != < <= > >= in place of =")
        column, sign, value = match[1].strip(), match[2], match[3].strip()
        if not any(column in row for row in rows):
            raise ConfigError(f"--where {condition!r}: there is no column {column!r}; columns: {columns_of(rows)}")
        if sign in "<=>=" and sign != "=" and number(value) != number(value):
            raise ConfigError(f"--where {condition!r}: {value!r} is not a number")
        kept = [row for row in kept if _holds(row.get(column), sign, value)]
    return kept


def columns_of(rows: Sequence[Row]) -> str:
    """Returns the names of all columns, for messages."""
    return ", ".join(dict.fromkeys(name for row in rows for name in row))


def _holds(cell: Any, sign: str, value: str) -> bool:
    left, right = number(cell), number(value)
    if isfinite(left) and isfinite(right):  # an id such as 8e8062709994 is not a number
        return bool(_OPERATORS[sign](left, right))
    return sign in ("=", "!=") and bool(_OPERATORS[sign](text(cell), value))


def _csv(data: bytes, path: Path) -> list[Row]:
    """Parses CSV. The separator is the most frequent of comma, semicolon and tab in the first line."""
    content = _decoded(data, path)
    separator = max(_SEPARATORS, key=content.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    rows: list[Row] = []
    line = 1  # first line of the row; a quoted cell may contain line breaks
    try:
        header = [name.strip() for name in next(reader, [])]
        _refuse_repeated(header, path)
        line = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(header):
                raise ConfigError(
                    f"{path}, line {line}: the number of cells differs from that of the header,"
                    f" {len(cells)} instead of {len(header)}"
                )
            if cells:
                rows.append(dict(zip(header, cells, strict=True)))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ConfigError(f"{path}, line {line}: not CSV: {error}") from None
    return rows


def _refuse_repeated(names: Sequence[str], path: Path) -> None:
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(f"{path}: several columns are named {repeated[0]!r}; give each its own name")


def _json_lines(data: bytes, path: Path) -> list[Row]:
    rows = []
    # JSON strings may contain other characters at which `splitlines` would split.
    for place, line in enumerate(_decoded(data, path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_without_repeats)
            if not isinstance(row, dict):
                raise ValueError(f"expected an object, found {type(row).__name__}")
            rows.append(flat(row))
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}, line {place}: not JSON: {error.msg}") from None
        except (ValueError, RecursionError) as error:  # a repeated key, a number of 5,000 digits, 10,000 brackets
            raise ConfigError(f"{path}, line {place}: {error}") from None
    return rows


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"several columns are named {repeated!r}; give each its own name")
    return found


def _decoded(data: bytes, path: Path) -> str:
    # Spreadsheets save "Unicode text" as UTF-16, which begins with a byte order mark.
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        content = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        name = encoding.removesuffix("-sig").upper()
        raise ConfigError(f"{path}, line {line}: not {name}; save the table as UTF-8") from None
    if (place := content.find("\0")) >= 0:
        line = content.count("\n", 0, place) + 1
        raise ConfigError(f"{path}, line {line}: contains NUL; if the table is UTF-16, save it as UTF-8")
    return content


def _parquet(data: bytes, path: Path) -> list[Row]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ConfigError(f"{path}: reading parquet needs pyarrow: pip install pyarrow, or save as CSV") from None
    try:
        file = parquet.ParquetFile(io.BytesIO(data))
        _refuse_repeated(file.schema_arrow.names, path)
        return [flat(row) for row in file.read().to_pylist()]
    except ConfigError:
        raise
    except (ValueError, OSError) as error:  # pyarrow's own errors are subclasses of these
        raise ConfigError(f"{path}: cannot read it as parquet: {str(error).splitlines()[0]}") from None
