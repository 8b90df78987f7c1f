"""Handles SIGTERM, with which clusters end a process: the run saves its last step and ends soon.

A cluster sends SIGKILL half a minute to a few minutes later. While a process prepares data, compiles or writes the
report, nothing is lost by ending immediately, so SIGTERM raises `Interrupted`. During the steps, SIGTERM only sets a
flag, and the training loop saves. Further SIGTERMs are ignored, because schedulers repeat them; Ctrl-C still ends the
run immediately.

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

# A compilation or a read from an unresponsive disk does not return to Python, where signals are handled.
PATIENCE_SECONDS = 5.0
# The files of a run in a bucket are stored, and its lock is released.
ENDING_SECONDS = 20.0


class Interrupted(BaseException):
    """SIGTERM was received; the run is saved and can be resumed.

    It is not an `Exception`, so that no `except Exception` catches it.
    """


class Stop:
    """Whether a run should stop.

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
        """Handles SIGTERM within the context. Main thread only."""
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
        """Within the context, SIGTERM only sets `requested`."""
        try:
            with self._mode(noted_only=True, first=self._first):
                yield
        finally:
            self._heard = self.requested

    @contextlib.contextmanager
    def at_once(self, first: Callable[[], object] = lambda: None) -> Iterator[None]:
        """Within the context, SIGTERM raises `Interrupted`, even if it was received before.

        Args:
            first: called before the process is ended during work that does not return to Python.
        """
        with self._mode(noted_only=False, first=first):
            if self.requested:
                self._heard = True
                raise Interrupted
            yield

    def agreed(self) -> bool:
        """Returns whether all processes stop now. They must call it equally often; see `stop_agreed`."""
        return stop_agreed(self.requested)

    def check(self) -> None:
        """Raises `Interrupted` if all processes stop now. They must call it equally often."""
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
        """Ends the process if SIGTERM did not, for example because the main thread does not return from a library."""
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
