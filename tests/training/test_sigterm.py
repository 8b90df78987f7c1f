"""SIGTERM in every phase of a run: it ends soon with 42, saves what it has, and the run resumes exactly."""

import importlib
import os
import signal
import time
from functools import partial

import pytest

from solo.cli import main
from tests.training.test_resume import STAGE_STEPS, STEPS, Runs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_programs")]

# Runs `solo` with one function replaced: its n-th call sends SIGTERM first. Further signals change nothing; `hangs` is
# interrupted; `stuck` does not return to Python, as in a library.
_HOOKED = """
import ctypes, importlib, os, signal, sys, time
where, call, then = sys.argv[1:4]
module, _, name = where.partition(":")
owner = importlib.import_module(module)
*owners, name = name.split(".")
for part in owners:
    owner = getattr(owner, part)
original, calls = getattr(owner, name), []
def hooked(*arguments, **keywords):
    calls.append(1)
    if len(calls) == int(call):
        print("PHASE", where, file=sys.stderr, flush=True)
        os.killpg(os.getpid(), signal.SIGTERM)  # as a scheduler does
        if then == "hangs":
            time.sleep(600)
        if then == "stuck":
            library, lock = ctypes.CDLL(None), ctypes.create_string_buffer(128)
            library.pthread_mutex_lock(lock)
            library.pthread_mutex_lock(lock)
    return original(*arguments, **keywords)
setattr(owner, name, hooked)
import solo.cli
sys.exit(solo.cli.main(sys.argv[4:]))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    """On as many devices as this process has."""
    return Runs(tmp_path_factory.mktemp("sigterm"), devices=8)


def said_by_process(runs: Runs, hook: str, *overrides: str) -> str:
    """Runs `solo train` in a process of its own until a hook sends SIGTERM. Returns what it said."""
    process = runs.start("stopped", *overrides, program=("-c", _HOOKED, *hook.split()), start_new_session=True)
    try:
        _, said = process.communicate(timeout=120)  # until the processes that read its data have ended, too
    finally:
        process.kill()
    assert f"PHASE {hook.split()[0]}" in said, said
    assert process.returncode == 42, said
    return said


def said_here(runs: Runs, capsys, hook: str, *overrides: str) -> str:
    """Likewise, in this process."""
    where, number, then = hook.split()
    module, _, path = where.partition(":")
    *owners, name = path.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), []

    def hooked(*arguments, **keywords):
        calls.append(1)
        if len(calls) == int(number):
            for _ in range(2 if then == "twice" else 1):
                os.kill(os.getpid(), signal.SIGTERM)
            if then == "hangs":
                time.sleep(600)
        return original(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, hooked)
        assert main(runs.arguments("stopped", *overrides)) == 42, hook
    return capsys.readouterr().err


def saved(runs: Runs) -> int:
    """Returns the step of the newest checkpoint; 0 without one."""
    found = (runs.path("stopped") / "checkpoints").glob("*/commit_success.txt")
    return max((int(path.parent.name) for path in found), default=0)


def test_every_phase_ends_soon_and_loses_no_step(runs: Runs, capsys) -> None:
    """One run, which is stopped in each of its phases in turn."""
    rarely = "checkpoint.every_steps=1000"
    here, process = partial(said_here, runs, capsys), partial(said_by_process, runs)
    for stopped, hook, override, step in (
        (process, "solo.pipeline:prepare 1 hangs", rarely, 0),
        (here, "solo.training.feeding:StagePlan 1 hangs", rarely, 0),
        (here, "solo.data.rows.loader:Loader.__next__ 1 hangs", rarely, 0),
        (here, "solo.data.rows.loader:Loader.__next__ 6 hangs", rarely, 5),
        (here, "solo.training.checkpoint:Checkpoints.restore 1 hangs", rarely, 5),
        (process, "solo.data.rows.loader:Loader.__next__ 4 goes", "data.worker_processes=1", 8),
        (here, "solo.training.checkpoint:Checkpoints.save 1 twice", "checkpoint.at_steps=[10]", 10),
        # The save of the stage's end is under way.
        (process, "solo.training.trainer:compile_lowered 2 stuck", rarely, STAGE_STEPS),
        (here, f"solo.training.recording:Recorder.finish {STAGE_STEPS} goes", rarely, STEPS),
        (here, "solo.pipeline:report_run 1 hangs", rarely, STEPS),
    ):
        said = stopped(hook, rarely, override)
        assert saved(runs) == step, hook
        assert "solo: stopped by SIGTERM" in said
        assert "Traceback" not in said
    for name in ("stopped", "whole"):
        assert main(runs.arguments(name, rarely)) == 0
    kept = [line for line in runs.lines("stopped") if '"resumed"' not in line]  # which tell of changed overrides
    assert kept == runs.lines("whole")
