"""SIGTERM in every phase of a real process: it ends soon with 42, saves what it has, and the run resumes exactly."""

import os
import subprocess
import sys

import pytest

from tests.compiler import QUICK
from tests.training.test_resume import Runs

pytestmark = pytest.mark.slow

# Runs `solo` with one function replaced: its n-th call sends SIGTERM first.
_HOOKED = """
import ctypes, importlib, os, signal, sys, time
where, call, to, then = sys.argv[1:5]
module, _, path = where.partition(":")
*owners, name = path.split(".")
owner = importlib.import_module(module)
for part in owners:
    owner = getattr(owner, part)
original, calls = getattr(owner, name), []
def hooked(*arguments, **keywords):
    calls.append(1)
    if len(calls) == int(call):
        print("PHASE", where, file=sys.stderr, flush=True)
        (os.killpg if to == "group" else os.kill)(os.getpid(), signal.SIGTERM)
        if then == "twice":
            os.kill(os.getpid(), signal.SIGTERM)
        if then == "hangs":
            time.sleep(600)
        if then == "stuck":  # in a library, which does not return to Python
            library, lock = ctypes.CDLL(None), ctypes.create_string_buffer(128)
            library.pthread_mutex_lock(lock)
            library.pthread_mutex_lock(lock)
    return original(*arguments, **keywords)
setattr(owner, name, hooked)
import solo.cli
sys.exit(solo.cli.main(sys.argv[5:]))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("sigterm"))


def stopped(runs: Runs, hook: str, *overrides: str) -> str:
    """Runs `solo train` until a hook sends SIGTERM. Returns what it said, once it has ended with 42."""
    started = runs.start("stopped", "checkpoint.every_steps=1000", *overrides)  # only for its command line
    started.kill()
    started.communicate()
    command = [sys.executable, "-c", _HOOKED, *hook.split(), *started.args[3:]]
    environment = {**os.environ, "XLA_FLAGS": QUICK}
    process = subprocess.Popen(
        command,
        env=environment | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, said = process.communicate(timeout=120)  # until the processes that read its data have ended, too
    finally:
        process.kill()
    assert f"PHASE {hook.split()[0]}" in said, said
    assert process.returncode == 42, said
    assert "solo: stopped by SIGTERM" in said
    assert "Traceback" not in said
    return said


def saved(runs: Runs) -> int:
    """Returns the step of the newest checkpoint; 0 without one."""
    found = (runs.path("stopped") / "checkpoints").glob("*/commit_success.txt")
    return max((int(path.parent.name) for path in found), default=0)


def test_every_phase_ends_soon_and_loses_no_step(runs: Runs) -> None:
    """One run, which is stopped in each of its phases in turn."""
    for hook, overrides, step in (
        ("solo.pipeline:prepare 1 group hangs", (), 0),
        ("solo.training.feeding:StagePlan 1 self hangs", (), 0),
        ("solo.training.trainer:compile_lowered 1 self stuck", (), 0),
        ("solo.data.rows.loader:Loader.__next__ 1 self hangs", (), 0),
        ("solo.data.rows.loader:Loader.__next__ 6 self hangs", (), 5),
        ("solo.training.checkpoint:Checkpoints.restore 1 self hangs", (), 5),
        ("solo.data.rows.loader:Loader.__next__ 4 group goes", ("data.worker_processes=1",), 8),
        ("solo.training.checkpoint:Checkpoints.save 1 self twice", ("checkpoint.at_steps=[10]",), 10),
        ("solo.training.trainer:compile_lowered 2 self stuck", (), 20),  # the save of the stage's end is under way
        ("solo.training.recording:Recorder.finish 20 self goes", (), 40),
        ("solo.pipeline:report_run 1 self hangs", (), 40),
    ):
        stopped(runs, hook, *overrides)
        assert saved(runs) == step, hook
    runs.finish("stopped", "checkpoint.every_steps=1000")
    runs.finish("whole", "checkpoint.every_steps=1000")
    kept = [line for line in runs.lines("stopped") if '"resumed"' not in line]  # which tell of changed overrides
    assert kept == runs.lines("whole")
