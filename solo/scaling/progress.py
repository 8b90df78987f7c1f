"""Progress of a command on standard error: a bar on a terminal, lines elsewhere if it takes long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any


class Progress:
    """A bar with a text. Used as a context manager; `pause` clears it while results are printed."""

    def __init__(self, total: int, lines: bool):
        """Prepares a bar of `total` parts. Without a terminal, texts become lines if `lines` is set."""
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.total, self.lines = total, lines
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
            from rich.progress import Progress as Bar

            text = TextColumn("{task.description}", markup=False)
            columns = [SpinnerColumn(), text, *([BarColumn(), MofNCompleteColumn()] if self.total > 1 else [])]
            self.bar = Bar(*columns, console=self.console, transient=True)
            self.task = self.bar.add_task("", total=self.total)
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def note(self, text: str) -> None:
        """Says what is being done."""
        if self.bar:
            self.bar.update(self.task, description=text)
        elif self.lines:
            self.console.print(text, markup=False)

    def advance(self) -> None:
        """Counts one part as done."""
        if self.bar:
            self.bar.advance(self.task)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Clears the bar for as long as something else is printed on the terminal."""
        if self.bar:
            self.bar.stop()
        yield
        if self.bar:
            self.bar.start()
