"""Runs on this machine, so many at a time, each in a process of its own: one that dies takes no other with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from solo.scaling.sweep.folder import BAD, SweepFolder
from solo.scaling.sweep.points import Point

_POLL_SECONDS = 0.5
_PATIENT_POLL_SECONDS = 2.0


@dataclass
class Dispatcher:
    """Starts what is missing, and waits for it.

    spec     the sweep's file, as the processes are to be given it
    jobs     runs at a time
    say      is given a line for everything that happens
    """

    spec: Path
    folder: SweepFolder
    points: Sequence[Point]
    jobs: int
    say: Callable[[str], None]
    _busy: dict[int, tuple[Point, subprocess.Popen[bytes], float]] = field(default_factory=dict)
    _tried: set[str] = field(default_factory=set)
    _stopping: bool = False

    def run(self) -> bool:
        """Run all that has no result. Returns False where SIGTERM or SIGINT came; the runs under way are saved."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            while True:
                self._collect()
                waiting = [] if self._stopping else self._missing()
                for point in waiting:
                    if len(self._busy) < self.jobs and self._is_ready(point):
                        self._start(point)
                if not self._busy and not waiting:
                    return not self._stopping
                time.sleep(_POLL_SECONDS if self._busy else _PATIENT_POLL_SECONDS)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _missing(self) -> list[Point]:
        """Runs without a result that were not tried yet, those that take longest first."""
        under_way = {point.id for point, _, _ in self._busy.values()}
        found = [
            point
            for point in self.points
            if point.id not in self._tried | under_way and self.folder.result(point.id) is None
        ]
        return sorted(found, key=lambda point: (not point.is_trunk, -point.estimate.paid_flops))

    def _is_ready(self, point: Point) -> bool:
        """Whether its trunk has come to where it branches, or will not, and nobody else is at it."""
        if self.folder.status(point.id) == "running":
            return False
        if point.trunk is None or self.folder.has_checkpoint(point.trunk, point.branch_step):
            return True
        done = self.folder.result(point.trunk)
        return bool(done and done["status"] in BAD) or point.trunk in self._tried

    def _start(self, point: Point) -> None:
        slot = next(number for number in range(self.jobs) if number not in self._busy)
        log = self.folder.log(point.id)
        log.parent.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "solo.cli", "sweep", str(self.spec), "--run", point.id]
        with log.open("ab") as output:
            # A session of its own: Ctrl-C comes to us, and we pass on what lets a run save itself.
            process = subprocess.Popen(
                words, stdout=output, stderr=output, env=self._environment(slot), start_new_session=True
            )
        _pin(process.pid, slot, self.jobs)
        self._busy[slot] = (point, process, time.monotonic())
        self.say(f"started  {describe(point)}")

    def _environment(self, slot: int) -> dict[str, str]:
        found = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(self.folder.path.absolute() / "compiled")}
        if gpus := shares(_visible_gpus(), self.jobs)[slot]:
            found["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        return found

    def _collect(self) -> None:
        for slot, (point, process, started) in list(self._busy.items()):
            if process.poll() is None:
                continue
            del self._busy[slot]
            if not self._stopping:
                self._tried.add(point.id)
            status, took = self.folder.status(point.id), time.monotonic() - started
            self.say(f"{status:8} {describe(point)}, {took:.0f} s{self._outcome(point, status, process.returncode)}")

    def _outcome(self, point: Point, status: str, code: int) -> str:
        result = self.folder.result(point.id)
        if result and "losses" in result:
            return ": " + ", ".join(f"{name} {loss:.4f}" for name, loss in result["losses"].items())
        if result and "error" in result:
            return f": {result['error'].splitlines()[0]}"
        return "" if status == "trunk" else f": its process ended with {code}; see {self.folder.log(point.id)}"

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        self.say("stopping: the runs under way are saved")
        for _, process, _ in self._busy.values():
            process.terminate()


def describe(point: Point) -> str:
    """A run in a few words."""
    labels = "".join(f", {name} {value}" for name, value in point.labels.items())
    kind = "trunk" if point.is_trunk else f"steps from {point.branch_step}" if point.trunk else "steps"
    return f"{point.id} (width {point.config.model.width}{labels}, {point.steps:,} {kind})"


def shares(items: Sequence[Any], parts: int) -> list[list[Any]]:
    """Items shared out over parts, in order; with fewer items than parts some have none."""
    return [list(items[len(items) * part // parts : len(items) * (part + 1) // parts]) for part in range(parts)]


def _pin(pid: int, slot: int, jobs: int) -> None:
    """Give a process its share of the processors, before it counts them."""
    if hasattr(os, "sched_setaffinity"):
        mine = shares(sorted(os.sched_getaffinity(0)), jobs)[slot]
        if mine and jobs > 1:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(pid, mine)


def _visible_gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]
