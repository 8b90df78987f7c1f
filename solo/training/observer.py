"""Observers of a run: silent by default, a progress bar on a terminal, lines elsewhere (`solo.training.log_lines`)."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_log = logging.getLogger(__name__)


class Observer:
    """Shows nothing; warnings go to Python's logging. Any thread may call `say` and `warn`."""

    profile_requested: bool = False

    def __init__(self) -> None:
        self.warned: set[str] = set()

    def listen_for_profiles(self) -> None:
        """Makes SIGUSR2 request a trace of the next steps; by default it ends a process. Main thread only."""
        signal.signal(signal.SIGUSR2, self._request_profile)

    def note(self, text: str) -> None:
        """Shows the current activity before, between or after the steps. The text before a colon is its name."""

    def say(self, text: str) -> None:
        """Shows a fact about the run, once."""

    def warn(self, text: str) -> None:
        """Shows a message that the user should act on, or at least know about."""
        self.warned.add(text)
        _log.warning("%s", text)

    def start(self, num_steps: int) -> None:
        """Training starts."""

    def step(self, line: Mapping[str, Any], num_steps: int) -> None:
        """Shows a finished step; `line` is its line of `metrics.jsonl`."""

    def evaluated(self, line: Mapping[str, Any]) -> None:
        """Shows a measurement of the weights; `line` is its line of `metrics.jsonl`."""

    def finish(self) -> None:
        """Training is over."""

    def _request_profile(self, number: int, frame: FrameType | None) -> None:
        self.profile_requested = True


class Silent(Observer):
    """Shows nothing at all. Processes other than the first use it."""

    def warn(self, text: str) -> None:
        """Does nothing, because the first process shows the message."""


class ProgressBar(Observer):
    """A progress bar: stage, loss, tokens per second, share of slots in use, time left. Messages stay above it."""

    def __init__(self, console: Console):
        super().__init__()
        self._console = console
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._status = console.status("starting")

    def note(self, text: str) -> None:
        """Shows the current activity, in place of the previous note."""
        if self._task is None:
            self._status.update(text)
            self._status.start()
        else:
            self._bar.update(self._task, description=text)

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    def warn(self, text: str) -> None:
        """Prints a line above the bar."""
        self.warned.add(text)
        self.say(f"note: {text}")

    def start(self, num_steps: int) -> None:
        """Shows the bar."""
        self._status.stop()
        self._task = self._bar.add_task("starting", total=num_steps, figures="")
        self._bar.start()

    def step(self, line: Mapping[str, Any], num_steps: int) -> None:
        """Advances the bar."""
        assert self._task is not None
        loss = "nan" if line["loss"] is None else f"{line['loss']:.3f}"
        figures = f"loss {loss}  {line['timing']['tokens_per_second']:,.0f} tokens/s  useful {line['useful_share']:.1%}"
        self._bar.update(self._task, completed=line["step"], description=line["stage"], figures=figures)

    def finish(self) -> None:
        """Removes the bar, or the note."""
        self._bar.stop()
        self._status.stop()
        self._task = None


def observer_for(log_every_seconds: float) -> Observer:
    """Returns an observer for standard output: a progress bar on a terminal, otherwise a line every few seconds."""
    # Rich also treats CI systems and FORCE_COLOR as terminals, but their logs need lines.
    if sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown"):
        return ProgressBar(Console())
    from solo.training.log_lines import LogLines

    return LogLines(log_every_seconds)
