"""Shows the progress of a preparation: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_SECONDS = 10.0  # seconds between two lines


class Amount(NamedTuple):
    """Amounts that a preparation has processed: records, their images, and examples that were left out."""

    records: int = 0
    images: int = 0
    quarantined: int = 0

    def plus(self, other: Amount) -> Amount:
        """Returns the sum of two amounts."""
        return Amount(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def minus(self, other: Amount) -> Amount:
        """Returns the difference of two amounts."""
        return Amount(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


class Watcher:
    """Receives the progress of a preparation. This base class shows nothing."""

    def say(self, line: str) -> None:
        """Shows a permanent line."""

    def begin(self, what: str, parts: int) -> None:
        """Starts the display for a number of parts."""

    def advance(self, amount: Amount, parts: int = 0) -> None:
        """Reports progress: an amount made since the last call, and parts completed."""

    def end(self) -> None:
        """Ends the display."""


class Figures:
    """Adds up the amounts and computes the speed."""

    def __init__(self, parts: int) -> None:
        self.parts, self.done = parts, 0
        self.amount = Amount()
        self._began = time.monotonic()

    def add(self, amount: Amount, parts: int) -> None:
        """Adds an amount and completed parts."""
        self.amount, self.done = self.amount.plus(amount), self.done + parts

    def __str__(self) -> str:
        records, images, quarantined = self.amount
        speed = records / max(time.monotonic() - self._began, 1e-9)
        return f"{records:,} records, {images:,} images, {quarantined:,} quarantined, {speed:,.0f} records/s"


class Lines(Watcher):
    """Shows a line every ten seconds, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._figures, self._what, self._next = Figures(0), "", 0.0

    def say(self, line: str) -> None:
        """See `Watcher`."""
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def begin(self, what: str, parts: int) -> None:
        """See `Watcher`."""
        self._figures, self._what, self._next = Figures(parts), what, time.monotonic() + _SECONDS

    def advance(self, amount: Amount, parts: int = 0) -> None:
        """See `Watcher`."""
        self._figures.add(amount, parts)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _SECONDS
            self.say(f"{self._what}: {self._figures.done:,} of {self._figures.parts:,} parts, {self._figures}")


class Bar(Watcher):
    """Shows a progress bar with the remaining time, for terminals."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._figures = Figures(0)

    def say(self, line: str) -> None:
        """See `Watcher`."""
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def begin(self, what: str, parts: int) -> None:
        """See `Watcher`."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.end()
        self._figures = Figures(parts)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("parts, {task.fields[figures]}, left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._bar.add_task(what, total=parts, figures="")
        self._bar.start()

    def advance(self, amount: Amount, parts: int = 0) -> None:
        """See `Watcher`."""
        self._figures.add(amount, parts)
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=self._figures.done, figures=str(self._figures))

    def end(self) -> None:
        """See `Watcher`."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def watcher(console: Console) -> Watcher:
    """Returns the watcher for a console: a bar on a terminal, lines elsewhere."""
    return Bar(console) if console.is_terminal else Lines(console)
