"""Kills the processes of a run at many moments; its metrics must be those of a run that nothing disturbed.

    python -m tests.soak [--minutes 20] [--processes 8] [--seed 0] [--folder FOLDER]

runs until the time is over, and prints a table of the kills. `tests/launch/test_soak.py` runs a few of them.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from solo.launch.supervisor import Group
from solo.statuses import INTERRUPTED, TRANSIENT
from solo.training.metrics import read_metrics
from tests.launch.tiny_run import environment, steps, write_config

EVALUATION = {
    "every_steps": 5,
    "losses": {"digits": {"source": "digits", "batches": 2}, "topics": {"source": "topics", "batches": 2}},
}
# Nothing of an attempt lasts longer, but for the patience of a machine that is busy otherwise.
ATTEMPT_SECONDS = 400.0


@dataclass(frozen=True)
class Kill:
    """A kill.

    what     KILL or TERM: the signal; worker: SIGKILL to a process that reads data for the process
    process  its number
    step     it happens once the metrics of this step are written
    moment   step, save, evaluation: the first such moment from that step on; start: before any step of the attempt
    """

    what: str
    process: int
    step: int = 0
    moment: str = "step"

    @property
    def statuses(self) -> tuple[int, ...]:
        """The exit statuses with which the attempt may end: a launch restarts the run after each of them.

        A process that misses a killed one may end within the same poll of the launch, and then its status counts.
        """
        return {"KILL": (137, TRANSIENT), "TERM": (INTERRUPTED, 143), "worker": (TRANSIENT,)}[self.what]


@dataclass
class Soak:
    """A run of several processes with one virtual device each, in a folder of its own."""

    folder: Path
    processes: int = 8
    stages: int = 2
    stage_steps: int = 20
    ends: Counter[tuple[str, str, int]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.config = write_config(self.folder)
        settings = yaml.safe_load(self.config.read_text())
        settings["stages"] = [{**stage, "steps": self.stage_steps} for stage in settings["stages"][-self.stages :]]
        self.config.write_text(yaml.safe_dump({**settings, "evaluation": EVALUATION}))
        prepare = [sys.executable, "-m", "solo.cli", "prepare", str(self.config), "--workers", "1"]
        subprocess.run(prepare, env=environment(), check=True, capture_output=True)

    @property
    def steps(self) -> int:
        """Number of steps of the run, over all stages."""
        return self.stages * self.stage_steps

    def attempt(self, name: str, kill: Kill | None = None) -> int:
        """Starts or resumes a run, kills one of its processes, and returns the exit status.

        Raises:
            AssertionError: it did not end, or with another status than that of the kill.
        """
        workers = ("data.worker_processes=1",) if kill is not None and kill.what == "worker" else ()
        words = [f"name={name}", "watch.log_every_seconds=1000", *workers]
        command = [sys.executable, "-m", "solo.cli", "train", str(self.config), *words]
        logs = self.folder / "logs" / name
        with _variables(environment()):
            group = Group(command, self.processes, 1, logs)
        ended = threading.Event()
        killed: list[bool] = []
        if kill is not None:
            threading.Thread(
                target=lambda: killed.append(self._kill(name, kill, group, ended)), name="kill", daemon=True
            ).start()
        try:
            status = group.wait(time.monotonic() + ATTEMPT_SECONDS)
        finally:
            ended.set()
        said = "".join(path.read_text() for path in sorted(logs.glob("*.log")))[-6000:]
        done = kill is not None and not any(killed)  # the run was over before the moment came
        assert status in ((0,) if kill is None or done else kill.statuses), f"{kill} ended with {status}:\n{said}"
        if kill is not None:
            self.ends[kill.what, "too late" if done else kill.moment, status] += 1
        return status

    def lines(self, name: str) -> list[dict]:
        """Returns the metrics without the clock's readings, and without notes about attempts."""
        lines = read_metrics(self.folder / "runs" / name / "metrics.jsonl")
        return [{key: value for key, value in line.items() if key != "timing"} for line in lines if _of_run(line)]

    def _kill(self, name: str, kill: Kill, group: Group, ended: threading.Event) -> bool:
        """Waits for the moment, and kills. Returns whether there was somebody to kill."""
        before = len(steps(self.folder, name))
        while not self._is_moment(name, kill, before):
            if ended.wait(0.005):
                return False
        victim = group.pids[kill.process]
        if kill.what == "worker":
            found = _children(victim)
            if not found:
                return False
            victim = found[-1]
        try:
            os.kill(victim, signal.SIGTERM if kill.what == "TERM" else signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def _is_moment(self, name: str, kill: Kill, before: int) -> bool:
        run = self.folder / "runs" / name
        if kill.moment == "start":
            return (run / "heartbeat.json").exists()
        lines = read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
        done = [line["step"] for line in lines if line["kind"] == "train"]
        if len(done) == before or done[-1] < kill.step:  # this attempt has not made a step yet
            return False
        if kill.moment == "save":
            return any((run / "checkpoints").glob("*orbax*"))
        if kill.moment == "evaluation":
            return lines[-1]["kind"] in ("held_out", "evaluation")
        return True


def _of_run(line: dict) -> bool:
    return line["kind"] != "resumed"


def _children(pid: int) -> list[int]:
    """Returns the processes that a process has started to read data, the newest last."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = path.read_text().rpartition(")")[2].split()[1]
            command = (path.parent / "cmdline").read_text()
        except OSError:
            continue
        if int(parent) == pid and "spawn_main" in command and "resource_tracker" not in command:
            found.append(int(path.parent.name))
    return sorted(found)


@contextmanager
def _variables(wanted: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def random_kill(rng: random.Random, soak: Soak, newest: int) -> Kill:
    """Returns a kill of any process at any moment after the newest checkpoint."""
    what = rng.choice(("KILL", "KILL", "TERM", "worker"))
    moment = "step" if what == "worker" else rng.choice(("start", "step", "step", "save", "evaluation"))
    return Kill(what, rng.randrange(soak.processes), rng.randint(newest, min(newest + 8, soak.steps)), moment)


def main(arguments: list[str] | None = None, say: Callable[[str], None] = print) -> int:
    """Runs the command line; see the module docstring. Returns 0, or 1 if metrics differ."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    parsed = parser.parse_args(arguments)
    end, rng = time.monotonic() + 60 * parsed.minutes, random.Random(parsed.seed)
    soak = Soak(parsed.folder or Path(tempfile.mkdtemp(prefix="soak-")), parsed.processes)
    soak.attempt("whole")
    expected, runs = soak.lines("whole"), 0
    say(f"{parsed.processes} processes, {soak.steps} steps, {len(expected)} lines of metrics; in {soak.folder}")
    while time.monotonic() < end:
        name, status = f"killed-{runs}", -1
        while status:
            over = time.monotonic() >= end
            newest = max(_saved(soak, name), default=0)
            kill = None if over else random_kill(rng, soak, newest)
            began = time.monotonic()
            status = soak.attempt(name, kill)
            say(f"{name}: {kill}: ended with {status} after {time.monotonic() - began:.0f} s")
        runs += 1
        if soak.lines(name) != expected:
            say(f"the metrics of {name} differ from those of whole")
            return 1
    say(f"{runs} runs, {sum(soak.ends.values())} kills, equal metrics:")
    for (what, moment, status), count in sorted(soak.ends.items()):
        say(f"  {what:8}{moment:12}ended with {status:<5}{count} times")
    return 0


def _saved(soak: Soak, name: str) -> list[int]:
    found = (soak.folder / "runs" / name / "checkpoints").glob("*/commit_success.txt")
    return [int(path.parent.name) for path in found]


if __name__ == "__main__":
    sys.exit(main())
