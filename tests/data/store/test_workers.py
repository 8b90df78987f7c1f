"""Processes that make parts: none of their deaths is silent, or costs more than its own part."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from solo.data.store.workers import Died, available_cores, run_all


def act(job, tell):
    """Does what the job says."""
    verb, value = job
    if verb == "square":
        tell(value)
        return value * value, os.getpid()
    if verb == "raise":
        raise FileNotFoundError(2, "No such file or directory", value)
    if verb == "own":
        raise UnsendableError(value, "two")
    os.kill(os.getpid(), value) if verb == "die" else os._exit(value)


class UnsendableError(Exception):
    """Cannot be rebuilt from its arguments."""

    def __init__(self, one, two):
        super().__init__(one)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_job_has_an_outcome(workers):
    jobs = [("square", number) for number in range(20)] + [("raise", "a.json"), ("own", "one")]
    told = []
    found = dict(run_all(act, jobs, workers, lambda job, value: told.append((job, value))))
    squares = {job[1]: found[job] for job in jobs[:20]}
    assert {number: square for number, (square, _) in squares.items()} == {n: n * n for n in range(20)}
    processes = {pid for _, pid in squares.values()}
    assert processes == {os.getpid()} if workers == 1 else os.getpid() not in processes and len(processes) <= 3
    assert sorted(told) == [(job, job[1]) for job in jobs[:20]]
    missing, own = found["raise", "a.json"], found["own", "one"]
    assert isinstance(missing, FileNotFoundError)
    assert missing.filename == "a.json"
    assert isinstance(own, Exception)
    assert "one" in str(own)


def test_a_process_that_dies_takes_one_job_with_it():
    jobs = [("die", signal.SIGKILL), ("square", 2), ("exit", 3), ("square", 4), ("die", signal.SIGSEGV), ("square", 5)]
    found = dict(run_all(act, jobs, 2, lambda job, value: None))
    assert [found["square", number][0] for number in (2, 4, 5)] == [4, 16, 25]
    assert found["exit", 3] == Died(3)
    assert str(found["exit", 3]) == "its process ended with status 3"
    assert "out of memory: try fewer --workers" in str(found["die", signal.SIGKILL])
    assert str(found["die", signal.SIGSEGV]) == "its process was ended by SIGSEGV"


def sleeper(job, tell):
    tell(os.getpid())
    time.sleep(600)


PARENT = """
import sys
from solo.data.store.workers import run_all
from tests.data.store.test_workers import sleeper
if __name__ == "__main__":
    list(run_all(sleeper, [1, 2], 2, lambda job, pid: print(pid, flush=True)))
"""


def test_processes_end_with_the_one_that_started_them():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    end = time.monotonic() + 20
    while any(map(is_running, children)):
        assert time.monotonic() < end, "a process outlived the one that started it"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


SCRIPT = """
from solo.data.store.workers import run_all
from tests.data.store.test_workers import act
print("begins")
print(sorted(answer for _, (answer, pid) in run_all(act, [("square", 2), ("square", 3)], 2, lambda job, value: None)))
"""


def test_a_script_needs_no_guard(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("begins\n[4, 9]\n", "")


def has_jax(job, tell):
    """Whether the process has loaded jax, once it has loaded all that makes a part."""
    import solo.data.store.maker  # noqa: F401

    return "jax" in sys.modules


def test_processes_do_not_load_jax():
    """Not even if the process that starts them has."""
    import jax  # noqa: F401

    assert dict(run_all(has_jax, [1, 2], 2, lambda job, value: None)) == {1: False, 2: False}


def test_cores_are_those_that_this_process_may_use():
    assert available_cores() == len(os.sched_getaffinity(0))
