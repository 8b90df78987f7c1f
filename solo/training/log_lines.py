"""The log of a run without a terminal: unbuffered lines of plain ASCII on standard output.

Clusters store standard output and standard error together, or mark the latter as errors (Google Cloud Logging).
Therefore progress goes to standard output, and only errors that end the run go to standard error.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from solo.training.observer import Observer
from solo.units import duration

_TOLD_SECONDS = 1.0  # shorter activities do not get a line with their time
_WINDOW = 20  # step lines, over which the time left is estimated


class LogLines(Observer):
    """Prints a line every few seconds: the step with its figures, or the current activity.

    Args:
        every_seconds: time between two lines.
        stream: where to write; default: standard output.
        clock: returns seconds, for tests.
        now: returns the time of day as text, for tests.
    """

    def __init__(
        self,
        every_seconds: float,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], str] = lambda: time.strftime("%Y-%m-%d %H:%M:%S"),
    ):
        super().__init__()
        self._every, self._clock, self._now = every_seconds, clock, now
        self._stream = stream or sys.stdout
        self._lock = threading.Lock()
        self._activity: tuple[str, float] | None = None
        self._printed = clock()
        self._rates = Rates()
        self._steps: deque[tuple[float, int]] = deque(maxlen=_WINDOW)
        self._last_step: tuple[int, int, float] | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._tick, name="log-lines", daemon=True).start()

    def note(self, text: str) -> None:
        """Prints a new activity immediately, and updates of the same one at intervals."""
        name = text.partition(":")[0]
        if self._activity is None or self._activity[0] != name:
            self._end_activity()
            self._activity = name, self._clock()
            self._print(text)
        elif self._due():
            self._print(text)

    def say(self, text: str) -> None:
        """Prints a fact."""
        self._print(text)

    def warn(self, text: str) -> None:
        """Prints a warning."""
        self.warned.add(text)
        self._print(f"note: {text}")

    def start(self, num_steps: int) -> None:
        """Ends the preparations."""
        self._end_activity()

    def step(self, line: Mapping[str, Any], num_steps: int) -> None:
        """Prints a step if a line is due, if it is the first or the last one, or if its update was not applied."""
        now = self._clock()
        first = not self._steps
        if first or self._activity is not None:
            self._end_activity()
        if first:
            self._steps.append((now - line["timing"]["step_seconds"], line["step"] - 1))
        self._rates.add(line["timing"], line["tokens"])
        self._last_step = line["step"], num_steps, now
        bad = line.get("applied") is False
        if first or bad or line["step"] == num_steps or now - self._steps[-1][0] >= self._every:
            if line["step"] > self._steps[-1][1]:
                self._steps.append((now, line["step"]))
            self._print(step_text(line, num_steps, self._rates, self._seconds_left(num_steps)))
            self._rates = Rates()

    def evaluated(self, line: Mapping[str, Any]) -> None:
        """Prints the numbers of an evaluation."""
        self._print(f"step {line['step']}: {measured_text(line)}")

    def finish(self) -> None:
        """Ends the last activity."""
        self._end_activity()
        self._ended.set()

    def still(self) -> None:
        """Prints how long the current activity has lasted, if nothing has been printed for a while."""
        if not self._due():
            return
        activity, last = self._activity, self._last_step
        if activity is not None:
            self._print(f"{activity[0]}: for {duration(self._clock() - activity[1])} so far")
        elif last is not None and self._clock() - last[2] >= self._every:
            self._print(f"step {last[0]}/{last[1]}: the next one lasts {duration(self._clock() - last[2])} so far")

    def _tick(self) -> None:
        while not self._ended.wait(self._every / 2):
            self.still()

    def _due(self) -> bool:
        return self._clock() - self._printed >= self._every

    def _end_activity(self) -> None:
        if self._activity is not None:
            name, began = self._activity
            self._activity = None
            if (seconds := self._clock() - began) >= _TOLD_SECONDS:
                self._print(f"{name}: took {duration(seconds) if seconds >= 10 else f'{seconds:.1f} s'}")

    def _seconds_left(self, num_steps: int) -> float:
        (then, earlier), (now, step) = self._steps[0], self._steps[-1]
        return (num_steps - step) * (now - then) / max(step - earlier, 1)

    def _print(self, text: str) -> None:
        plain = "".join(letter if letter.isprintable() else " " for letter in text.strip())
        plain = plain.encode("ascii", "backslashreplace").decode()
        with self._lock:
            self._printed = self._clock()
            try:
                self._stream.write(f"{self._now()} {plain}\n")
                self._stream.flush()
            except (OSError, ValueError):  # the disk is full or the pipe is closed; training continues
                pass


class Rates:
    """Adds up the figures of steps."""

    def __init__(self) -> None:
        self._tokens = self._seconds = self._waited = self._used = 0.0

    def add(self, timing: Mapping[str, Any], tokens: int) -> None:
        """Adds a step."""
        seconds = timing["step_seconds"]
        self._tokens, self._seconds = self._tokens + tokens, self._seconds + seconds
        self._waited += timing["data_wait_seconds"]
        self._used += seconds * (math.nan if timing["mfu"] is None else timing["mfu"])

    def __str__(self) -> str:
        seconds = max(self._seconds, 1e-9)
        parts = [f"tokens/s {self._tokens / seconds:.0f}"]
        if math.isfinite(self._used):
            parts.append(f"MFU {self._used / seconds:.1%}")
        return "  ".join([*parts, f"data wait {self._waited / seconds:.1%}"])


def step_text(line: Mapping[str, Any], num_steps: int, rates: Rates, seconds_left: float) -> str:
    """Returns a step's line of the log. Rates are those since the previous line."""
    left = f"left {duration(seconds_left)}" if line["step"] < num_steps else "done"
    parts = [
        f"step {line['step']}/{num_steps}",
        f"stage {line['stage']}",
        f"loss {_number(line['loss'], '.4f')}",
        f"lr {_number(line.get('learning_rate'), '.2e')}",
        f"grad norm {_number(line.get('grad_norm'), '.3g')}",
        str(rates),
        left,
    ]
    return "  ".join(parts) + ("  (update not applied)" if line.get("applied") is False else "")


def measured_text(line: Mapping[str, Any]) -> str:
    """Returns the numbers of an evaluation's line: held_out digits: loss 0.4312."""
    about = " ".join(str(line[name]) for name in ("kind", "task", "weights") if isinstance(line.get(name), str))
    numbers = {
        name: value
        for name, value in line.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }
    return f"{about}: " + ", ".join(f"{name} {value:.6g}" for name, value in numbers.items())


def _number(value: float | None, form: str) -> str:
    return "nan" if value is None else format(value, form)
