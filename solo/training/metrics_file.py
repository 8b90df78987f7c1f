"""Truncates and repairs `metrics.jsonl` when a run resumes.

A kill truncates the last line, a power failure leaves null bytes, and two processes that write the same file mix their
lines. Every line that can be read is kept.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from solo.files import json_line, parse_json_line

_BLOCK = 1 << 16
_AT_ONCE = 50  # lines that are parsed before other threads get their turn


_NUMBER = (int, float)
_VALUE = (int, float, type(None))  # null stands for a number that is not finite
# The fields that reports need, by kind of line.
_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "train": {
        "stage": str,
        "loss": _VALUE,
        "tokens": int,
        "visual_tokens": int,
        "useful_share": _NUMBER,
        "timing.step_seconds": _NUMBER,
    },
    "held_out": {"task": str, "loss": _VALUE, "targets": int},
    "evaluation": {"task": str, "metric": str, "score": _NUMBER, "examples": int},
    "samples": {"task": str, "examples": list},
    "integration_rate": {"task": str, "rate": _VALUE},
}


def reportable(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the lines that have the fields of their kind; damaged ones would break a report."""

    def value(line: Mapping[str, Any], name: str) -> Any:
        found: Any = line
        for part in name.split("."):
            found = found.get(part, ...) if isinstance(found, Mapping) else ...
        return found

    return [
        line
        for line in lines
        if all(isinstance(value(line, name), kinds) for name, kinds in _FIELDS.get(line["kind"], {}).items())
    ]


def whole_line(line: Mapping[str, Any] | None) -> bool:
    """Returns whether an object is a line of `metrics.jsonl`: it has a kind and a step."""
    return line is not None and isinstance(line.get("kind"), str) and type(line.get("step")) is int


def end_of(path: Path) -> int:
    """Returns the size of a file in bytes."""
    return path.stat().st_size


def cut(path: Path, step: int) -> Path | None:
    """Drops the lines of steps after `step`.

    The file is read backwards up to a line of an earlier training step, so the time does not depend on its length.

    Returns:
        A copy of the original file if lines after that line are damaged, apart from a truncated last line. Otherwise
        None.
    """
    if not path.exists():
        return None
    kept: list[bytes] = []
    place, damaged, last = 0, False, True
    with path.open("rb") as file:
        for start, text in lines_backwards(file, end_of(path)):
            line = parse_line(text)
            if line is not None and line["step"] <= step:
                if line["kind"] == "train":
                    place = start + len(text) + 1
                    break
                kept.append(text + b"\n")
            elif line is not None and line["kind"] == "resumed":  # changed keys stay in force
                kept.append(json_line({**line, "step": step}).encode())
            damaged |= line is None and not last and bool(text.strip())
            last = False
    aside = set_aside(path) if damaged else None
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if place > size:  # the end of the line is missing
            file.write(b"\n")
        file.seek(place)
        tail = b"".join(reversed(kept))
        if file.read(len(tail) + 1) == tail and place <= size:
            return aside  # nothing to drop
        # The lines to keep move towards the start of the file, so a kill at this point loses none of them.
        file.seek(place)
        file.write(tail)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
    return aside


def lines_backwards(file: BinaryIO, end: int) -> Iterator[tuple[int, bytes]]:
    """Yields the lines before an offset in a file in reverse, as (offset, bytes without the line end).

    The first item is what follows the last line end, even if it is empty.
    """
    rest, block, place = b"", _BLOCK, end
    while place:
        block = min(block, place)
        place -= block
        file.seek(place)
        first, *whole = (file.read(block) + rest).split(b"\n")
        stop = place + len(first) + 1 + sum(len(text) + 1 for text in whole)
        for text in reversed(whole):
            stop -= len(text) + 1
            yield stop, text
        rest, block = first, _BLOCK if whole else 2 * block
    yield 0, rest


def lines_after(file: BinaryIO, end: int, step: int) -> list[dict[str, Any]]:
    """Returns the lines before an offset in a file whose steps follow `step`, and reads little of the other lines."""
    found = []
    for _, text in lines_backwards(file, end):
        line = parse_line(text)
        if line is None:
            continue
        if line["step"] > step:
            found.append(line)
        elif line["kind"] == "train":
            break
    return found[::-1]


@dataclass(frozen=True)
class Damage:
    """The faults of a file.

    broken    lines that cannot be read
    repeated  lines of training steps that have a later line, or of steps that will be repeated
    missing   messages about lines that are missing
    """

    broken: int
    repeated: int
    missing: list[str]

    @property
    def needs_repair(self) -> bool:
        """Whether the file has lines that should not be there."""
        return bool(self.broken or self.repeated)

    @property
    def what_was_wrong(self) -> str:
        """The lines that should not be there, in words."""
        parts = [f"{_lines(self.broken)} that cannot be read"] if self.broken else []
        parts += [f"{_lines(self.repeated)} of repeated steps"] if self.repeated else []
        return "left out: " + ", ".join(parts)


def missing_lines(path: Path, end: int, step: int, began_after: int | None) -> Damage:
    """Examines the lines before an offset in a file.

    Args:
        path: the file.
        end: the offset.
        step: the step that the run resumes after.
        began_after: the step that its first attempt began after; None if it is unknown.
    """
    broken = repeated = 0
    steps: set[int] = set()
    for line in _each(path, end):
        if line is None:
            broken += 1
        elif line["step"] > step or (line["kind"] == "train" and line["step"] in steps):
            repeated += 1
        elif line["kind"] == "train":
            steps.add(line["step"])
    first = min(steps, default=step + 1) if began_after is None else began_after + 1
    missing = sorted(set(range(first, step + 1)) - steps)
    if not missing:
        return Damage(broken, repeated, [])
    where = f"steps {missing[0]} to {missing[-1]}" if len(missing) > 1 else f"step {missing[0]}"
    text = f"missing in {where}, although a later checkpoint was saved: {_lines(len(missing))}"
    return Damage(broken, repeated, [text])


def repair(path: Path, end: int, step: int) -> Path:
    """Removes damaged and repeated lines before an offset in a file. The rest of the file stays.

    Returns:
        The copy of the original file.
    """
    last: dict[int, int] = {}
    for number, line in enumerate(_each(path, end)):
        if line is not None and line["kind"] == "train":
            last[line["step"]] = number
    whole = path.with_name(f".{path.name}.{os.getpid()}")
    with path.open("rb") as old, whole.open("wb") as new:
        for number, text in enumerate(_texts(old, end)):
            line = parse_line(text)
            if line is None or line["step"] > step or (line["kind"] == "train" and last[line["step"]] != number):
                continue
            new.write(text.rstrip(b"\r\n") + b"\n")
        old.seek(end)
        shutil.copyfileobj(old, new)
        new.flush()
        os.fsync(new.fileno())
    aside = set_aside(path)
    whole.replace(path)
    return aside


def set_aside(path: Path) -> Path:
    """Copies a damaged file to `<name>.damaged-1`, or the next number that is free."""
    names = (path.with_name(f"{path.name}.damaged-{number}") for number in count(1))
    aside = next(name for name in names if not name.exists())
    shutil.copyfile(path, aside)
    return aside


def _each(path: Path, end: int) -> Iterator[dict[str, Any] | None]:
    """Yields every line before an offset, or None for a damaged line. Gives other threads time to run."""
    with path.open("rb") as file:
        for number, text in enumerate(_texts(file, end)):
            if number % _AT_ONCE == 0:
                time.sleep(0)
            yield parse_line(text)


def _texts(file: BinaryIO, end: int) -> Iterator[bytes]:
    """Yields the lines before an offset, except empty ones."""
    place = 0
    while place < end and (text := file.readline()):
        place += len(text)
        if text.strip():
            yield text


def _lines(count: int) -> str:
    return "1 line" if count == 1 else f"{count:,} lines"


def parse_line(text: bytes) -> dict[str, Any] | None:
    """Returns a line of `metrics.jsonl`; None if it is damaged."""
    line = parse_json_line(text)
    return line if whole_line(line) else None
