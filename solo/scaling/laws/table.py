"""Turns the rows of a table into runs that can be fitted together. All other rows are set aside, with a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from solo.config import ConfigError
from solo.config.base import nearest
from solo.scaling.laws.law import Array
from solo.scaling.laws.runs import Runs, make_runs
from solo.scaling.laws.table_file import Row, columns_of, number, read_rows, text, where
from solo.scaling.laws.units import check_units

DONE, STABLE = "done", "stable"
# Losses of different tokenizers or evaluation sets are not comparable.
_UNMIXED = ("tokenizer", "evaluation_set")
# Variables of laws, and the fields of `Columns` that they come from.
_OTHERS = {
    "ratio": "total",
    "images": "images",
    "text": "images",
    "share": "images",
    "decay": "decay",
    "setting": "setting",
}
# Names that pandas gives to row numbers. Rows that differ only there are equal.
_ROW_NUMBERS = ("", "Unnamed: 0", "index", "level_0")


@dataclass(frozen=True)
class Columns:
    """Names of the columns. The defaults are those of a sweep's results; optional columns are used if they exist.

    n, d            active parameters; training tokens
    losses          columns of losses, each of which gets a law; default: all `losses.*`
    stable_run      the stable run that a run branched from
    by              a column, such as a mixture or a design; each of its values gets a law
    total           parameters in total, of sparse models
    images          tokens of images
    decay           share of a run's tokens in which the learning rate decays linearly to zero
    setting         a setting, such as the learning rate, whose best value is fitted
    """

    n: str = "n_active"
    d: str = "tokens"
    losses: tuple[str, ...] = ()
    flops: str = "flops"
    unique: str = "unique_tokens"
    id: str = "id"
    stable_run: str = "stable_run"
    status: str = "status"
    tokenizer: str = "tokenizer"
    evaluation_set: str = "evaluation_set"
    score: str | None = None
    by: str | None = None
    total: str = "n_total"
    images: str = "visual_tokens"
    decay: str = "decay"
    setting: str | None = None

    def loss(self, name: str) -> str:
        """Returns the full name of a loss, from its full or short name. Raises ConfigError if it is not one of them."""
        for loss in self.losses:
            if loss in (name, f"losses.{name}"):
                return loss
        raise ConfigError(f"{name!r} is not one of the losses: {', '.join(self.losses)}")


@dataclass(frozen=True)
class SetAside:
    """A row that is not fitted, and the reason."""

    id: str
    reason: str


@dataclass(frozen=True)
class Table:
    """The rows that can be fitted, and those that were set aside."""

    path: str
    sha256: str
    columns: Columns
    rows: tuple[Row, ...]
    read: int
    set_aside: tuple[SetAside, ...]

    def groups(self) -> list[tuple[str | None, Table]]:
        """Returns one table for each value of the column `by`, or the whole table."""
        by = self.columns.by
        if by is None:
            return [(None, self)]
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(text(row.get(by)), []).append(row)
        return [(value, replace(self, rows=tuple(rows))) for value, rows in groups.items()]

    def runs(self, loss: str, needs: Sequence[str] = ()) -> tuple[Runs, tuple[SetAside, ...]]:
        """Returns the runs with the loss of this name, and the rows in which it is not a positive number.

        Rows without one of the variables `needs` are set aside, too.

        Raises:
            ConfigError: the rows mix several tokenizers or evaluation sets, or none has a usable loss.
        """
        columns = self.columns
        kept, aside = [], []
        present = {
            field: column
            for field in dict.fromkeys(_OTHERS.values())
            for column in [getattr(columns, field)]
            if column and any(column in row for row in self.rows)
        }
        needed = {present[_OTHERS[name]] for name in needs if _OTHERS.get(name) in present}
        for row in self.rows:
            value = number(row.get(loss))
            missing = [column for column in needed if not number(row.get(column)) >= 0]
            if not (np.isfinite(value) and value > 0):
                aside.append(SetAside(self.id_of(row), f"{loss} is {text(row.get(loss)) or 'empty'}"))
            elif missing:
                aside.append(SetAside(self.id_of(row), f"{missing[0]} is {text(row.get(missing[0])) or 'empty'}"))
            else:
                kept.append(row)
        if not kept:
            raise ConfigError(f"{self.path}: no run has a usable {loss}: {count(aside)}")
        self._refuse_mixtures(kept)

        def numbers(name: str) -> Array:
            return np.array([number(row.get(name)) for row in kept])

        def optional(name: str | None) -> Any:
            return numbers(name) if name and any(name in row for row in kept) else None

        n, d = numbers(columns.n), numbers(columns.d)
        unique = optional(columns.unique)
        ids = [self.id_of(row) for row in kept]
        more: dict[str, Array] = {}
        for field, column in present.items():
            values = numbers(column)
            if field == "images":
                more |= {"images": values, "text": d - values, "share": values / d}
            else:
                more["ratio" if field == "total" else field] = values / n if field == "total" else values
        return (
            make_runs(
                n=n,
                d=d,
                loss=numbers(loss),
                flops=optional(columns.flops),
                cluster=[text(row.get(columns.stable_run)) or name for row, name in zip(kept, ids, strict=True)],
                unique=None if unique is None else np.where(np.isfinite(unique), unique, np.inf),
                id=ids,
                score=optional(columns.score),
                **more,
            ),
            tuple(aside),
        )

    def id_of(self, row: Row) -> str:
        """Returns the name of a row."""
        return text(row.get(self.columns.id))

    def _refuse_mixtures(self, rows: Sequence[Row]) -> None:
        for kind in _UNMIXED:
            column = getattr(self.columns, kind)
            found = Counter(text(row.get(column)) or "(empty)" for row in rows)
            if len(found) > 1:
                counts = ", ".join(f"{value} ({runs} runs)" for value, runs in found.most_common())
                raise ConfigError(
                    f"{self.path}: {len(found)} different values of {column!r} are mixed: {counts}. Losses are not"
                    f" comparable across them; choose one with --where {column}=..."
                )


def load_table(
    path: str | Path,
    columns: Columns,
    conditions: Sequence[str] = (),
    trust_units: bool = False,
    undecayed: bool = False,
) -> Table:
    """Reads a table and sets aside the rows that must not be fitted.

    Args:
        path: a CSV, JSON lines or parquet file, or the folder of a sweep.
        columns: names of the columns.
        conditions: as in `--where`; rows that do not meet them are dropped.
        trust_units: accept sizes and compute that `check_units` refuses.
        undecayed: also use stable runs, whose learning rate has not decayed.

    Raises:
        ConfigError: the table cannot be read, lacks a column, has no rows left, or has different rows with the same id,
            or its numbers cannot be parameters, tokens and FLOPs.
    """
    everything, sha256 = read_rows(path)
    rows = where(everything, conditions)
    if not rows:
        raise ConfigError(f"{path}: no row of {len(everything)} meets {' and '.join(conditions)}")
    columns = _resolve(columns, rows, str(path))
    columns, rows = _named(columns, rows)
    rows, aside = _without_repeats(rows, columns, str(path))
    kept = []
    for row in rows:
        reason = _unfit(row, columns, (DONE, STABLE) if undecayed else (DONE,))
        if reason:
            aside.append(SetAside(text(row.get(columns.id)), reason))
        else:
            kept.append(row)
    if not kept:
        raise ConfigError(f"{path}: no run is left to fit: {count(aside)}")
    if not trust_units:
        _check_units(kept, columns, str(path))
    return Table(str(path), sha256, columns, tuple(kept), len(everything), tuple(aside))


def count(aside: Iterable[SetAside]) -> str:
    """Summarises the rows that were set aside: each reason, with a count and the first names."""
    by_reason: dict[str, list[str]] = {}
    for item in aside:
        by_reason.setdefault(item.reason, []).append(item.id)
    return "; ".join(
        f"{len(names)} with {reason} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
        for reason, names in by_reason.items()
    )


def _resolve(columns: Columns, rows: list[Row], path: str) -> Columns:
    """Returns the columns with their full names. Raises ConfigError if one does not exist."""
    known = dict.fromkeys(name for row in rows for name in row)
    if columns.stable_run == Columns.stable_run and "trunk" in known and Columns.stable_run not in known:
        raise ConfigError(f"{path}: the column 'trunk' is named stable_run now; to use it, give --stable-run trunk")

    def full(name: str, prefix: str, option: str) -> str:
        for candidate in (name, f"{prefix}.{name}"):
            if candidate in known:
                return candidate
        raise ConfigError(
            f"{path} has no column {name!r}{nearest(name, list(known))}; name it with {option}. Columns:"
            f" {columns_of(rows)}"
        )

    losses = columns.losses or tuple(name for name in known if name.startswith("losses."))
    if not losses:
        raise ConfigError(f"{path}: name a column of losses with --loss. Columns: {columns_of(rows)}")
    given = {option: getattr(columns, option) for option in ("by", "score", "setting") if getattr(columns, option)}
    defaults = Columns()
    for option in ("flops", "unique", "id", "stable_run", "status", "total", "images", "decay", *_UNMIXED):
        if getattr(columns, option) != getattr(defaults, option):  # named by the user, so it must exist
            given[option] = getattr(columns, option)
    return replace(
        columns,
        n=full(columns.n, "", "--n"),
        d=full(columns.d, "", "--d"),
        losses=tuple(dict.fromkeys(full(name, "losses", "--loss") for name in losses)),
        **{option: full(name, "scores", f"--{option.replace('_', '-')}") for option, name in given.items()},
    )


def _named(columns: Columns, rows: list[Row]) -> tuple[Columns, list[Row]]:
    """Gives all rows the same columns and a name. Equal rows without a name get the same name."""
    if not any(columns.id in row for row in rows):
        columns = replace(columns, id="name" if _names_rows(rows) else "(row)")
    used = {getattr(columns, field.name) for field in fields(columns)}
    known = {name: None for row in rows for name in row if name in used or name not in _ROW_NUMBERS}
    named, first = [], dict[str, int]()
    for place, row in enumerate(rows, start=1):
        row = {name: row.get(name) for name in known}
        if not text(row.get(columns.id)):
            row[columns.id] = f"row {first.setdefault(repr(row), place)}"
        named.append(row)
    return columns, named


def _check_units(rows: list[Row], columns: Columns, path: str) -> None:
    def array(name: str) -> Array:
        return np.array([number(row.get(name)) for row in rows])

    names = {"n": columns.n, "d": columns.d, "flops": columns.flops}
    ids = [text(row.get(columns.id)) for row in rows]
    flops = array(columns.flops) if columns.flops in rows[0] else None
    check_units(path, names, ids, array(columns.n), array(columns.d), flops)


def _names_rows(rows: list[Row]) -> bool:
    names = [text(row.get("name")) for row in rows]
    return all(names) and len(set(names)) == len(names)


def _without_repeats(rows: list[Row], columns: Columns, path: str) -> tuple[list[Row], list[SetAside]]:
    """Returns one row for each id, and the repeated rows. Raises ConfigError if rows with the same id differ."""
    by_id: dict[str, Row] = {}
    aside, conflicts = [], []
    for row in rows:
        name = text(row.get(columns.id))
        if name not in by_id:
            by_id[name] = row
        elif repr(by_id[name]) == repr(row):  # NaN is not equal to itself
            aside.append(SetAside(name, "repeated line"))
        else:
            conflicts.append(name)
    if conflicts:
        names = list(dict.fromkeys(conflicts))
        raise ConfigError(
            f"{path}: {len(names)} ids have several different rows: {', '.join(map(repr, names[:5]))}. Give each run"
            f" its own {columns.id!r}"
        )
    return list(by_id.values()), aside


def _unfit(row: Row, columns: Columns, statuses: Sequence[str]) -> str | None:
    """Returns the reason why a row is not fitted, or None."""
    status = text(row.get(columns.status))
    if columns.status in row and status not in statuses:
        return f"status {status or '(empty)'}"
    for column in (columns.n, columns.d, columns.flops):
        value = number(row.get(column))
        if column in row and not (np.isfinite(value) and value > 0):
            return f"{column} {text(row.get(column)) or '(empty)'}"
    return None
