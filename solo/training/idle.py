"""Measures how long the devices were idle while the host waited."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

import jax


class IdleWatch:
    """Records when the devices finished their latest work. Waits that overlap with work do not count as idle."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="idle-watch")
        self._done: Future[float] | None = None

    def given(self, result: jax.Array) -> None:
        """Records that the devices were given work that ends in this result."""
        self._done = self._thread.submit(_when_ready, result)

    def idle(self, start: float, end: float) -> float:
        """Returns the idle seconds between two readings of `time.perf_counter`. `end` must be about now."""
        if self._done is None:
            return end - start
        if not self._done.done() or self._done.exception():
            return 0.0
        return max(0.0, end - max(start, self._done.result()))

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=False)


def _when_ready(result: jax.Array) -> float:
    result.block_until_ready()
    return time.perf_counter()
