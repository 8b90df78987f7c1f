"""What the time of a run went into, over all its tries: `goodput.jsonl`.

A file of its own and not lines of `metrics.jsonl`: that one tells each step once, and forgets at a restart what came
after the checkpoint. Exactly that is what is to be counted here; so this file is only ever appended to.

Lines are `{"try": 2, "began": t}` at a start, `{"try": 2, "resumed": step, "on": {...}}` once it is known where it
goes on, with devices, mesh and compiler options,
`{"try": 2, "spent": what, "seconds": s, "at": t}` for every stretch of time, which follow each other without a gap
(of a step with `step` and `data_wait`, seconds on top of it in which the devices stood idle for want of data), and
`{"try": 2, "ended": how, "at": t}`. Times are seconds since 1970. Process 0 writes, by its own clock.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solo.config import ConfigError
from solo.files import JsonLinesFile, read_json_lines

# What a stretch of time can be spent on.
#   start-up    joining the other hosts, preparing and planning data, drawing or loading parameters, the first batch
#   checkpoint  waiting for a save: what goes on beside the steps costs nothing
SPENT = ("start-up", "compile", "step", "checkpoint", "evaluation")
# And how the summary divides all time.
PARTS = ("start-up", "compile", "step", "data wait", "checkpoint", "evaluation", "lost to restarts", "between tries")


class Ledger:
    """Writes the stretches of one try. Without a file it writes nothing.

    began  seconds since 1970 at which the try began; now, unless given
    """

    def __init__(self, began: float | None = None):
        # Durations by a clock that nobody sets.
        self._offset = time.time() - time.perf_counter()
        self._last = self.now() if began is None else began
        self._waited = 0.0
        self._try = 1
        self._file: JsonLinesFile | None = None

    def now(self) -> float:
        """Seconds since 1970."""
        return self._offset + time.perf_counter()

    def open(self, path: Path) -> None:
        """Begin to write, behind what earlier tries wrote."""
        self._try = 1 + sum("began" in line for line in read_ledger(path)[0])
        self._file = JsonLinesFile(path)
        self._write({"began": self._last})

    def resumed(self, step: int, on: Mapping[str, Any] | None = None) -> None:
        """The try goes on after this step (0: it begins the run), on a machine that is described by `on`."""
        self._write({"resumed": step, **({"on": on} if on else {})})

    def spent(self, what: str, step: int | None = None) -> float:
        """Files the time since the last call under `what`, one of `SPENT`; less what `waited` was told since.

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
        """So much of the time since the last `spent` was idle waiting for data."""
        self._waited += seconds

    def sync(self) -> None:
        """Returns once all lines are stored durably."""
        if self._file is not None:
            self._file.sync()

    def close(self, how: str) -> None:
        """The try is over: done, interrupted or failed."""
        self._write({"ended": how, "at": self.now()})
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write({"try": self._try, **line})


@dataclass(frozen=True)
class Goodput:
    """Where the time of a run went.

    seconds  by part, in the order of `PARTS`; they add up to the time from the first start to the last reading
    tries    how often it was started
    steps    steps that count: the last one done
    last     seconds since 1970 of the last reading
    state    done, interrupted or failed; `going or killed` where the last try has not said how it ended
    broken   lines that could not be read: kills cut them short
    """

    seconds: Mapping[str, float]
    tries: int
    steps: int
    last: float
    state: str
    broken: int

    @property
    def total(self) -> float:
        """From the first start to the last reading."""
        return sum(self.seconds.values())

    def share_of(self, part: str) -> float:
        """Of all time. Goodput is the share of `step`: of the steps that count."""
        return self.seconds[part] / self.total if self.total else 0.0

    def as_json(self) -> dict[str, Any]:
        """Everything, with shares."""
        return {
            "goodput": self.share_of("step"),
            "total_seconds": self.total,
            "seconds": dict(self.seconds),
            "shares": {part: self.share_of(part) for part in self.seconds},
            "tries": self.tries,
            "steps": self.steps,
            "last_reading": self.last,
            "state": self.state,
            "broken_lines": self.broken,
        }


def read_ledger(path: Path) -> tuple[list[dict[str, Any]], int]:
    """All whole lines of a ledger, and how many were not."""
    found, broken = read_json_lines(path)
    whole = [line for line in found if isinstance(line.get("try"), int)]
    return whole, broken + len(found) - len(whole)


def goodput(path: Path) -> Goodput:
    """Sum a ledger up.

    A step is lost if a later try went on from before it: it was done again, or will be. What a killed try did after
    its last line is not known; it counts as between tries, as does the wait for machines.

    Raises:
        ConfigError: there is no ledger, or nothing in it that could be read.
    """
    lines, broken = read_ledger(path)
    tries = _tries(lines)
    if not tries:
        what = f"none of its {broken} lines can be read" if broken else "it is not there, or empty"
        raise ConfigError(f"{path} tells nothing: {what}; `solo train` writes it in a run's folder")
    seconds = dict.fromkeys(PARTS, 0.0)
    kept, end = 0, tries[0][0]["began"]
    for number, of_try in enumerate(tries):
        # Clocks of two hosts may disagree.
        seconds["between tries"] += max(0.0, of_try[0]["began"] - end)
        later = [line["resumed"] for other in tries[number + 1 :] for line in other if "resumed" in line]
        goes_back_to = min(later, default=None)
        for line in of_try:
            if "spent" in line:
                lost = goes_back_to is not None and line.get("step", 0) > goes_back_to
                if line["spent"] == "step" and not lost:
                    kept = max(kept, line["step"])
                _add(seconds, line, lost)
        end = max([end, *(line["at"] for line in of_try if "at" in line)])
    state = next((line["ended"] for line in reversed(tries[-1]) if "ended" in line), "going or killed")
    return Goodput(seconds, len(tries), kept, end, state, broken)


def _tries(lines: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The lines of each try, from its start on."""
    found: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        if "began" in line or line["try"] in found:
            found.setdefault(line["try"], []).append(line)
    return [found[number] for number in sorted(found)]


def _add(seconds: dict[str, float], line: Mapping[str, Any], lost: bool) -> None:
    lost = lost and line["spent"] == "step"
    seconds["lost to restarts" if lost else line["spent"]] += line["seconds"]
    seconds["lost to restarts" if lost else "data wait"] += line.get("data_wait", 0.0)
