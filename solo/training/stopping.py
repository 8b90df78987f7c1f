"""SIGTERM, with which clusters end a process: the run saves its last step and ends soon, whatever it is doing.

A cluster sends SIGKILL half a minute later, or a few minutes at most. While a process prepares data, compiles or writes
the report, nothing is lost by ending at once: SIGTERM raises `Interrupted`. During the steps it is only noted, and the
training loop saves. Further SIGTERMs change nothing, because schedulers repeat them; Ctrl-C still ends at once.

Among several processes, JAX listens instead; see `solo.training.distributed.stop_agreed`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from solo.statuses import INTERRUPTED
from solo.training.distributed import stop_agreed

# A compilation or a read from a dead disk does not return to Python, where signals are handled.
PATIENCE_SECONDS = 5.0
# The files of a run in a bucket are stored, and its lock is released.
ENDING_SECONDS = 20.0


class Interrupted(BaseException):
    """SIGTERM was received; the run is saved and can be resumed. No `except Exception` may keep it from ending."""


class Stop:
    """Whether a run is asked to stop.

    Attributes:
        requested: whether SIGTERM was received, while the run listens for it.
    """

    def __init__(self) -> None:
        self.requested = False
        self._noted_only = False
        self._heard = False  # whether the main thread is ending the run
        self._first: Callable[[], object] = lambda: None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handles SIGTERM while the context lasts. Main thread only."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        ended = threading.Event()
        watch = threading.Thread(target=self._watch, args=(reader, ended), name="sigterm", daemon=True)
        watch.start()
        handler = signal.signal(signal.SIGTERM, self._receive)
        descriptor = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(descriptor)
            signal.signal(signal.SIGTERM, handler)
            ended.set()
            os.close(writer)

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """While the context lasts, SIGTERM sets `requested` and nothing else."""
        try:
            with self._mode(noted_only=True, first=self._first):
                yield
        finally:
            self._heard = self.requested

    @contextlib.contextmanager
    def at_once(self, first: Callable[[], object] = lambda: None) -> Iterator[None]:
        """While the context lasts, SIGTERM raises `Interrupted`, also if it was noted before.

        Args:
            first: called before the process is ended in the middle of work that does not return to Python.
        """
        with self._mode(noted_only=False, first=first):
            if self.requested:
                self._heard = True
                raise Interrupted
            yield

    def agreed(self) -> bool:
        """Returns whether all processes stop now; they call it equally often. See `stop_agreed`."""
        return stop_agreed(self.requested)

    def check(self) -> None:
        """Raises `Interrupted` if all processes stop now; they call it equally often."""
        if self.agreed():
            raise Interrupted

    @contextlib.contextmanager
    def _mode(self, noted_only: bool, first: Callable[[], object]) -> Iterator[None]:
        before = self._noted_only, self._first
        self._noted_only, self._first = noted_only, first
        try:
            yield
        finally:
            self._noted_only, self._first = before

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again, self.requested = self.requested, True
        if not (again or self._noted_only):
            self._heard = True
            raise Interrupted

    def _watch(self, reader: int, ended: threading.Event) -> None:
        """Ends the process if SIGTERM has not ended it, as when the main thread does not return from a library."""
        received = b""
        with open(reader, "rb", buffering=0) as pipe:
            while signal.SIGTERM not in received:
                received = pipe.read(64)
                if not received:
                    return
            ending = 0.0
            while not ended.wait(PATIENCE_SECONDS):
                if self._noted_only:
                    continue
                ending += PATIENCE_SECONDS
                if not self._heard or ending > ENDING_SECONDS:
                    self._first()
                    print("solo: stopped by SIGTERM; the same command resumes", file=sys.stderr, flush=True)
                    os._exit(INTERRUPTED)
