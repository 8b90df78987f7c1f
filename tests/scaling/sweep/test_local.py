"""Runs on this machine: their order, their number, and what a signal does. Shell scripts stand in for the runs."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from solo.config import ConfigError
from solo.scaling.sweep.folder import SweepFolder
from solo.scaling.sweep.local import LocalRunner, shares
from solo.scaling.sweep.points import Point, expand
from tests.scaling.sweep.tiny_sweep import planned

HORIZONS = {"horizons": {"steps": 8, "at": [0.5, 1.0], "decay": 0.5}}
FINISHES = """
mkdir -p {runs}/$6 && sleep 0.3
echo '{{"status": "done"}}' > {runs}/$6/result.json
"""
WAITS = """
trap 'exit 42' TERM
while :; do sleep 0.05; done
"""


@pytest.fixture
def sweep(tmp_path: Path) -> tuple[SweepFolder, list[Point]]:
    spec = planned(tmp_path, design=HORIZONS, warmup=0.1, ladder={"width": [16, 32]})
    return SweepFolder(spec.path), expand(spec)


def runner(
    sweep: tuple[SweepFolder, list[Point]], script: str, jobs: int, patch: pytest.MonkeyPatch
) -> tuple[LocalRunner, list[str]]:
    """Returns a runner whose runs are a script, and the list of what it says."""
    folder, points = sweep
    python, said = folder.path / "python", list[str]()
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh" + script.format(runs=folder.path / "runs"))
    python.chmod(0o755)
    patch.setattr(sys, "executable", str(python))
    return LocalRunner(folder, points, jobs, said.append), said


def test_stable_runs_start_before_their_branches(sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    made, said = runner(sweep, FINISHES, 2, monkeypatch)
    assert made.run()
    folder, points = sweep
    assert {folder.status(point.id) for point in points} == {"done"}
    stable = {point.id for point in points if point.is_stable}
    started = [line.split()[1] for line in said if line.startswith("started")]
    assert set(started[:2]) == stable
    assert sorted(started) == sorted(point.id for point in points)


def test_no_more_runs_at_a_time_than_asked_for(sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    made, said = runner(sweep, FINISHES, 2, monkeypatch)
    made.run()
    running, most = 0, 0
    for line in said:
        running += 1 if line.startswith("started") else -1
        most = max(most, running)
    assert most == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_current_runs_and_starts_no_other(sweep, number, monkeypatch: pytest.MonkeyPatch) -> None:
    made, said = runner(sweep, WAITS, 2, monkeypatch)
    handler = signal.getsignal(number)

    def interrupt() -> None:
        while len(said) < 2:
            time.sleep(0.02)
        time.sleep(0.2)  # the scripts set their traps
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=interrupt)
    sender.start()
    assert not made.run()
    sender.join()
    assert sum(line.startswith("started") for line in said) == 2
    assert sum("its process ended with 42" in line for line in said) == 2
    assert signal.getsignal(number) is handler


def test_a_run_that_fails_without_a_result_is_tried_once(sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    made, said = runner(sweep, "\nexit 3\n", 2, monkeypatch)
    assert made.run()
    assert sum(line.startswith("started") for line in said) == len(sweep[1])
    assert sum("its process ended with 3" in line for line in said) == len(sweep[1])


def test_a_branch_whose_checkpoint_was_deleted_is_not_waited_for(sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stable run has a result, so that the checkpoint will never appear; the branch itself says so."""
    made, said = runner(sweep, "\nexit 3\n", 1, monkeypatch)
    folder, points = sweep
    for point in points:
        if point.is_stable:
            folder.run(point.id).mkdir(parents=True)
            folder.result_file(point.id).write_text('{"status": "stable"}')
    assert made.run()
    assert sum("its process ended with 3" in line for line in said) == len(points) - 2


def test_every_run_has_a_gpu(sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ConfigError, match="3 concurrent runs need a GPU each, and 2 are visible"):
        LocalRunner(*sweep, 3, print)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    LocalRunner(*sweep, 3, print)
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # hides them all
    LocalRunner(*sweep, 3, print)


def test_shares() -> None:
    assert shares([0, 1, 2, 3, 4], 2) == [[0, 1], [2, 3, 4]]
    assert shares(["0"], 3) == [[], [], ["0"]]
