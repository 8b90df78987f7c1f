"""Observers of a run: silent by default, a progress bar on the command line."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Observer:
    """Shows nothing. SIGTERM sets `stop_requested` once `listen` was called."""

    stop_requested: bool = False

    def listen(self) -> None:
        """Makes SIGTERM request a stop, after the current step is finished and saved. Main thread only."""
        signal.signal(signal.SIGTERM, self._request_stop)

    def note(self, text: str) -> None:
        """Shows the current activity before or after the steps."""

    def start(self, num_steps: int) -> None:
        """Training starts."""

    def step(self, line: Mapping[str, Any], num_steps: int) -> None:
        """Shows a finished step; `line` is its line of `metrics.jsonl`."""

    def finish(self) -> None:
        """Training is over."""

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop_requested = True


class ProgressBar(Observer):
    """One line: stage, loss, tokens per second, useful share of slots, time left."""

    def __init__(self, console: Console):
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

    def start(self, num_steps: int) -> None:
        """Shows the bar."""
        self._status.stop()
        self._task = self._bar.add_task("compiling", total=num_steps, figures="")
        self._bar.start()

    def step(self, line: Mapping[str, Any], num_steps: int) -> None:
        """Advances the bar."""
        assert self._task is not None
        figures = (
            f"loss {line['loss']:.3f}  {line['timing']['tokens_per_second']:,.0f} tokens/s"
            f"  useful {line['useful_share']:.1%}"
        )
        self._bar.update(self._task, completed=line["step"], description=line["stage"], figures=figures)

    def finish(self) -> None:
        """Removes the bar, or the note."""
        self._bar.stop()
        self._status.stop()
        self._task = None
