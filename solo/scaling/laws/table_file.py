"""Tables of runs as files: CSV, JSON lines, parquet, or the results of a sweep."""

from __future__ import annotations

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
    """Returns the rows of a table, with nested mappings flattened to dotted names, and the sha256 of its file.

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
    rows = [flat(row) for row in readers[path.suffix](data, path)]
    if not rows:
        raise ConfigError(f"{path} has no rows")
    return rows, hashlib.sha256(data).hexdigest()


def flat(row: Mapping[str, Any], prefix: str = "") -> Row:
    """Returns a row without nesting: {"losses": {"text": 2.0}} becomes {"losses.text": 2.0}."""
    found: Row = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + str(name)] = value
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
    """Returns the rows that meet all conditions: `column=value`, or with !=, <, <=, >, >=; numbers compare as numbers.

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
    """Cells are separated by the most frequent of comma, semicolon and tab in the first line."""
    content = _decoded(data, path)
    separator = max(_SEPARATORS, key=content.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator)
    rows: list[Row] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        if repeated := [name for name, count in Counter(header).items() if count > 1]:
            raise ConfigError(f"{path}: several columns are named {repeated[0]!r}; give each its own name")
        for cells in filter(None, reader):
            if len(cells) != len(header):
                raise ConfigError(
                    f"{path}, line {reader.line_num}: the number of cells differs from that of the header,"
                    f" {len(cells)} instead of {len(header)}"
                )
            rows.append(dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise ConfigError(f"{path}, line {reader.line_num}: not CSV: {error}") from None
    return rows


def _json_lines(data: bytes, path: Path) -> list[Row]:
    rows = []
    # JSON may contain the other characters at which `splitlines` splits.
    for place, line in enumerate(_decoded(data, path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}, line {place}: not JSON: {error.msg}") from None
        if not isinstance(row, dict):
            raise ConfigError(f"{path}, line {place}: expected an object, found {type(row).__name__}")
        rows.append(row)
    return rows


def _decoded(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: not UTF-8; save the table as UTF-8") from None


def _parquet(data: bytes, path: Path) -> list[Row]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        try:
            pandas = importlib.import_module("pandas")
            return list(pandas.read_parquet(io.BytesIO(data)).to_dict("records"))
        except ImportError:
            raise ConfigError(f"{path}: reading parquet needs pyarrow: pip install pyarrow, or save as CSV") from None
    return list(parquet.read_table(io.BytesIO(data)).to_pylist())
