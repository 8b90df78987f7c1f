"""`goodput.jsonl`: how a run spent its time, over all attempts to finish it.

`metrics.jsonl` shows every step once and drops, on resuming, the steps after the checkpoint. Those lost steps are
counted here, so this file is only ever appended to. Its lines are:

    {"try": 2, "began": t}                                start of the second attempt
    {"try": 2, "resumed": step, "on": {...}}              the step it resumes from; devices, mesh, compiler options;
                                                          `changes` of its config: key -> [old, new]
    {"try": 2, "spent": what, "seconds": s, "at": t}      an interval of time; intervals leave no gaps
    {"try": 2, "ended": how, "at": t}                     done, interrupted or failed

Lines of steps also have `step` and, if the devices idled for lack of data, `data_wait`: seconds in addition to
`seconds`. Times are seconds since 1970. Process 0 writes, by its own clock.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solo.config import ConfigError
from solo.files import JsonLinesFile, parse_json_line, read_json_lines

# The uses of an interval of time.
#   start-up    joining the other hosts, preparing and planning data, creating or loading parameters, the first batch
#   checkpoint  blocking on a save; writing that overlaps with steps costs nothing
SPENT = ("start-up", "compile", "step", "checkpoint", "evaluation")
# The parts of the summary, which add up to all time.
PARTS = ("start-up", "compile", "step", "data wait", "checkpoint", "evaluation", "lost to restarts", "between attempts")


class Ledger:
    """Records the intervals of one attempt, in a file after `open` was called.

    Args:
        began: start of the attempt in seconds since 1970; default: now.
    """

    def __init__(self, began: float | None = None):
        # Durations come from a monotonic clock.
        self._offset = time.time() - time.perf_counter()
        self._last = self.now() if began is None else began
        self._waited = 0.0
        self._attempt = 1
        self._file: JsonLinesFile | None = None

    def now(self) -> float:
        """Returns seconds since 1970."""
        return self._offset + time.perf_counter()

    def open(self, path: Path) -> None:
        """Starts writing after the lines of earlier attempts."""
        self._attempt = 1 + sum("began" in line for line in _lines_with("began", path))
        self._file = JsonLinesFile(path)
        self._write({"began": self._last})

    def resumed(
        self, step: int, on: Mapping[str, Any] | None = None, changes: Mapping[str, list[Any]] | None = None
    ) -> None:
        """Records that the attempt resumes after this step (0: from the start).

        Args:
            step: step of the checkpoint.
            on: description of the machine.
            changes: changed keys of the config -> [old value, new value].
        """
        self._write({"resumed": step, **({"on": on} if on else {}), **({"changes": changes} if changes else {})})

    def spent(self, what: str, step: int | None = None) -> float:
        """Records the time since the last call, without reported waits, as spent on `what`, one of `SPENT`.

        Returns:
            Seconds since the last call, waits included.
        """
        assert what in SPENT
        now = self.now()
        seconds = now - self._last
        line: dict[str, Any] = {"spent": what, "seconds": max(0.0, seconds - self._waited), "at": now}
        if step is not None:
            line["step"] = step
        if self._waited:
            line["data_wait"] = self._waited
        self._write(line)
        self._last, self._waited = now, 0.0
        return seconds

    def waited(self, seconds: float) -> None:
        """Records that the devices idled this long for lack of data since the last `spent`."""
        self._waited += seconds

    def sync(self) -> None:
        """Returns once all lines are stored durably."""
        if self._file is not None:
            self._file.sync()

    def close(self, how: str) -> None:
        """Records the end of the attempt: done, interrupted or failed."""
        self._write({"ended": how, "at": self.now()})
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write({"try": self._attempt, **line})


@dataclass(frozen=True)
class Goodput:
    """How a run spent its time.

    seconds   seconds by part, in the order of `PARTS`; they add up to the time from the first start to the last reading
    attempts  number of starts
    steps     steps that count: the last one done
    last      seconds since 1970 of the last reading
    state     done, interrupted or failed; `running or killed` if the last attempt has not recorded its end
    broken    number of lines that could not be read, for example because a kill truncated them
    """

    seconds: Mapping[str, float]
    attempts: int
    steps: int
    last: float
    state: str
    broken: int

    @property
    def total(self) -> float:
        """Seconds from the first start to the last reading."""
        return sum(self.seconds.values())

    def share_of(self, part: str) -> float:
        """Share of all time. Goodput is the share of `step`, the steps that count."""
        return self.seconds[part] / self.total if self.total else 0.0

    def as_json(self) -> dict[str, Any]:
        """Returns all fields and the shares, for JSON."""
        return {
            "goodput": self.share_of("step"),
            "total_seconds": self.total,
            "seconds": dict(self.seconds),
            "shares": {part: self.share_of(part) for part in self.seconds},
            "attempts": self.attempts,
            "steps": self.steps,
            "last_reading": self.last,
            "state": self.state,
            "broken_lines": self.broken,
        }


def read_ledger(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Returns all intact lines of a ledger, and the number of others."""
    found, broken = read_json_lines(path)
    whole = [line for line in found if _is_whole(line)]
    return whole, broken + len(found) - len(whole)


def _is_whole(line: Mapping[str, Any]) -> bool:
    numbers = [line[name] for name in ("began", "seconds", "at", "resumed", "data_wait") if name in line]
    if "spent" in line and not (line["spent"] in SPENT and "seconds" in line):
        return False
    return type(line.get("try")) is int and all(isinstance(number, int | float) for number in numbers)


def began_after(path: Path) -> int | None:
    """Returns the step after which a run's first attempt began: 0, or the step of a branch; None if it is unknown."""
    return next((line["resumed"] for line in _lines_with("resumed", path)), None)


def _lines_with(name: str, path: Path) -> list[dict[str, Any]]:
    """Returns the intact lines that have a key. The other lines, one per step, are not parsed, to save time."""
    content = path.read_bytes() if path.exists() else b""
    mark = f'"{name}"'.encode()
    found = (parse_json_line(text) for text in content.split(b"\n") if mark in text)
    return [line for line in found if line is not None and name in line and _is_whole(line)]


def goodput(path: Path) -> Goodput:
    """Sums up a ledger.

    A step is lost if a later attempt resumed from before it, because it has to be repeated. The time of a killed
    attempt after its last line counts as time between attempts, like the wait for machines.

    Raises:
        ConfigError: there is no ledger, or no line of it can be read.
    """
    lines, broken = read_ledger(path)
    attempts = _attempts(lines)
    if not attempts:
        what = f"none of its {broken} lines can be read" if broken else "it is missing or empty"
        raise ConfigError(f"{path} has no readings: {what}; `solo train` writes it in a run's folder")
    seconds = dict.fromkeys(PARTS, 0.0)
    kept, end = 0, attempts[0][0]["began"]
    for number, attempt in enumerate(attempts):
        # The clocks of two hosts may disagree.
        seconds["between attempts"] += max(0.0, attempt[0]["began"] - end)
        later = [line["resumed"] for other in attempts[number + 1 :] for line in other if "resumed" in line]
        resumed_from = min(later, default=None)
        for line in attempt:
            if "spent" in line:
                lost = resumed_from is not None and line.get("step", 0) > resumed_from
                if line["spent"] == "step" and not lost:
                    kept = max(kept, line["step"])
                _add(seconds, line, lost)
        end = max([end, *(line["at"] for line in attempt if "at" in line)])
    state = next((line["ended"] for line in reversed(attempts[-1]) if "ended" in line), "running or killed")
    return Goodput(seconds, len(attempts), kept, end, state, broken)


def _attempts(lines: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Returns the lines of each attempt, from its start on."""
    found: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        if "began" in line or line["try"] in found:
            found.setdefault(line["try"], []).append(line)
    return [found[number] for number in sorted(found)]


def _add(seconds: dict[str, float], line: Mapping[str, Any], lost: bool) -> None:
    lost = lost and line["spent"] == "step"
    seconds["lost to restarts" if lost else line["spent"]] += line["seconds"]
    seconds["lost to restarts" if lost else "data wait"] += line.get("data_wait", 0.0)
