"""Boards show the lines of `metrics.jsonl` elsewhere, such as TensorBoard. They never stop or delay training."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any, BinaryIO, Protocol

from solo.files import finite
from solo.training.metrics_file import lines_after

_FLUSH_SECONDS = 10.0
_CLOSE_SECONDS = 120.0
_WAITING = 200_000  # lines


class Board(Protocol):
    """Shows lines. All methods are called from one thread, which is not the training loop's."""

    name: str

    def begin(self, resume_step: int) -> int:
        """Opens the board for a run that resumes after a step. Returns the last step whose lines it has."""
        ...

    def show(self, line: Mapping[str, Any]) -> None:
        """Shows a line of `metrics.jsonl`."""
        ...

    def flush(self) -> None:
        """Stores what was shown, so that the next attempt need not show it again."""
        ...

    def close(self) -> None:
        """Closes the board. All lines of all steps so far were shown."""
        ...


class Shown:
    """A board and the thread that feeds it, first with the lines that it lacks and then with those of the run.

    Args:
        board: the board.
        path: `metrics.jsonl`.
        end: size of the file before the run's first line.
        resume_step: the step that the run resumes after.
        tell: called with a message if the board fails, at most once.
    """

    def __init__(self, board: Board, path: Path, end: int, resume_step: int, tell: Callable[[str], None]):
        self._board, self._tell = board, tell
        self._lines: Queue[Mapping[str, Any] | None] = Queue(_WAITING)
        self._failed = False
        file = path.open("rb")  # which keeps its content if another thread mends the file meanwhile
        self._thread = threading.Thread(
            target=self._work, args=(file, end, resume_step), name=f"board-{board.name}", daemon=True
        )
        self._thread.start()

    def put(self, line: Mapping[str, Any]) -> None:
        """Shows a line, later."""
        if not self._failed:
            try:
                self._lines.put_nowait(line)
            except Full:
                self._fail("it is too slow")

    def close(self) -> None:
        """Waits until all lines are shown, for a limited time."""
        if self._failed:
            return
        with suppress(Full):
            self._lines.put(None, timeout=_CLOSE_SECONDS)
            self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            self._fail(f"it did not finish within {_CLOSE_SECONDS:.0f} s")

    def _work(self, file: BinaryIO, end: int, resume_step: int) -> None:
        try:
            with file:
                known = self._board.begin(resume_step)
                missing = lines_after(file, end, known) if known < resume_step else []
            for line in missing:
                self._board.show(line)
                time.sleep(0)  # yields to the training loop
            self._follow()
        except BaseException as error:  # SystemExit of a library, too
            self._fail(f"{type(error).__name__}: {error}")

    def _follow(self) -> None:
        flushed, pending = time.monotonic(), False
        while not self._failed:
            try:
                line = self._lines.get(timeout=_FLUSH_SECONDS)
            except Empty:
                pass
            else:
                if line is None:
                    self._board.close()
                    return
                self._board.show(finite(line))
                pending = True
            if pending and time.monotonic() - flushed >= _FLUSH_SECONDS:
                self._board.flush()
                flushed, pending = time.monotonic(), False

    def _fail(self, why: str) -> None:
        if not self._failed:
            self._failed = True
            self._tell(f"{self._board.name} stopped showing lines: {why}; metrics.jsonl contains all of them")
