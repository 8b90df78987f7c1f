"""Trains runs on this machine, several at a time. Each has its own process, so a crash affects only one run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

from solo.config import ConfigError
from solo.scaling.sweep.folder import SweepFolder
from solo.scaling.sweep.points import Point

_POLL_SECONDS = 1.0


class LocalRunner:
    """Starts the missing runs and waits for them, with one thread for each of `jobs` processes."""

    def __init__(self, folder: SweepFolder, points: Sequence[Point], jobs: int, say: Callable[[str], None]):
        """Prepares the runs. `say` is called with a line for each event.

        Raises:
            ConfigError: there are fewer GPUs than jobs.
        """
        self.folder, self.jobs, self.say = folder, jobs, say
        gpus = _visible_gpus()
        if 0 < len(gpus) < jobs:
            raise ConfigError(
                f"{jobs} concurrent runs need a GPU each, and {len(gpus)} are visible: lower jobs, or set"
                " JAX_PLATFORMS=cpu"
            )
        # Stable runs come first, because branches wait for them; then the most expensive runs.
        self._waiting = sorted(points, key=lambda point: (not point.is_stable, -point.estimate.paid_flops))
        self._tried: set[str] = set()
        self._choosing, self._stopping = threading.Lock(), threading.Event()
        self._processes: set[subprocess.Popen[bytes]] = set()

    def run(self) -> bool:
        """Trains all runs without a result. Returns False after SIGTERM or SIGINT, once the current runs are saved."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with ThreadPoolExecutor(self.jobs) as pool:
                for worker in [pool.submit(self._work, slot) for slot in range(self.jobs)]:
                    worker.result()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return not self._stopping.is_set()

    def _work(self, slot: int) -> None:
        while not self._stopping.is_set():
            with self._choosing:
                self._waiting = [point for point in self._waiting if self.folder.result(point.id) is None]
                if not self._waiting:
                    return
                point = next(filter(self._is_ready, self._waiting), None)
                if point is not None:
                    self._waiting.remove(point)
            if point is None:
                self._stopping.wait(_POLL_SECONDS)
            else:
                self._train(point, slot)

    def _is_ready(self, point: Point) -> bool:
        """Returns whether no other process trains the run, and its stable run has the checkpoint or never will."""
        if self.folder.status(point.id) == "running":
            return False
        if point.stable_run is None or self.folder.has_checkpoint(point.stable_run, point.branch_step):
            return True
        return point.stable_run in self._tried or self.folder.result(point.stable_run) is not None

    def _train(self, point: Point, slot: int) -> None:
        started, log = time.monotonic(), self.folder.log(point.id)
        log.parent.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "solo.cli", "sweep", str(self.folder.path), "--run", point.id]
        with log.open("ab") as output:
            # In its own session, the process does not receive Ctrl-C. `_stop` sends SIGTERM, upon which a run saves.
            process = subprocess.Popen(
                words, stdout=output, stderr=output, env=self._environment(slot), start_new_session=True
            )
        self._processes.add(process)
        if self._stopping.is_set():
            process.terminate()
        _pin(process.pid, slot, self.jobs)
        self.say(f"started  {describe(point)}")
        code = process.wait()
        self._processes.remove(process)
        status, took = self.folder.status(point.id), time.monotonic() - started
        with self._choosing:
            if status == "running":  # another process took the run first; wait for its result
                self._waiting.append(point)
            else:
                self._tried.add(point.id)
        self.say(f"{status:8} {describe(point)}, {took:.0f} s{self._outcome(point, status, code)}")

    def _environment(self, slot: int) -> dict[str, str]:
        found = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(self.folder.path.absolute() / "compiled")}
        if gpus := shares(_visible_gpus(), self.jobs)[slot]:
            found["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        return found

    def _outcome(self, point: Point, status: str, code: int) -> str:
        result = self.folder.result(point.id)
        if result and "losses" in result:
            return ": " + ", ".join(f"{name} {loss:.4f}" for name, loss in result["losses"].items())
        if result and "error" in result:
            return f": {result['error'].splitlines()[0]}"
        if status == "running":
            return ": another process trains it"
        return "" if status == "stable" else f": its process ended with {code}; see {self.folder.log(point.id)}"

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping.set()
        self.say("stopping: the current runs are saved")
        for process in list(self._processes):
            process.terminate()


def describe(point: Point) -> str:
    """Returns a short description of a run."""
    labels = "".join(f", {name} {value}" for name, value in point.labels.items())
    kind = "stable steps" if point.is_stable else f"steps from {point.branch_step}" if point.stable_run else "steps"
    return f"{point.id} (width {point.config.model.width}{labels}, {point.steps:,} {kind})"


def shares(items: Sequence[Any], parts: int) -> list[list[Any]]:
    """Splits items into consecutive parts of nearly equal size; some are empty if there are fewer items than parts."""
    return [list(items[len(items) * part // parts : len(items) * (part + 1) // parts]) for part in range(parts)]


def _pin(pid: int, slot: int, jobs: int) -> None:
    """Restricts a process to its share of the CPUs, before JAX counts them."""
    if hasattr(os, "sched_setaffinity"):
        mine = shares(sorted(os.sched_getaffinity(0)), jobs)[slot]
        if mine and jobs > 1:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(pid, mine)


def _visible_gpus() -> list[str]:
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name not in ("", "-1")]
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]
