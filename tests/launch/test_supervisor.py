"""The supervisor over real processes, which stand in for those of a run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from solo.launch import supervisor
from solo.launch.restarts import Restarts
from solo.launch.supervisor import supervise
from tests.launch.tiny_run import REPOSITORY, wait_until

# Ends with the next of the statuses in ./ends/<process>, "hang" for never, and says who it is.
_PROCESS = """
import os, sys, time
from pathlib import Path
number = os.environ.get("JAX_PROCESS_ID", "0")
of, devices = (os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_NUM_CPU_DEVICES"))
print("process", number, "of", of, "with", devices, flush=True)
ends = Path("ends") / number
status, *rest = ends.read_text().split()
ends.write_text(" ".join(rest))
if status.startswith("saves"):
    step = Path("run/checkpoints") / status[5:]
    step.mkdir(parents=True)
    (step / "commit_success.txt").touch()
    status = "42"
if status == "hang":
    time.sleep(600)
if status.startswith("late"):
    time.sleep(0.5)
    status = status[4:]
sys.stdout.flush()
os._exit(int(status)) if int(status) >= 0 else os.kill(os.getpid(), -int(status))
"""


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("solo.launch.restarts._FIRST_WAIT", 0.01)
    monkeypatch.setattr("solo.launch.supervisor._SHORT_GRACE", 1.0)
    (tmp_path / "ends").mkdir()


def run(*ends: str, **limits: int) -> int:
    """Supervise processes with these ends, one string for each process."""
    for number, statuses in enumerate(ends):
        Path(f"ends/{number}").write_text(statuses)
    command = [sys.executable, "-c", _PROCESS]
    return supervise(command, Path("run"), Restarts(**limits), len(ends), devices=4, logs=Path("logs"))


def starts(number: int = 0) -> int:
    return Path(f"logs/host-{number}.log").read_text().count("process")


def test_a_command_that_succeeds_runs_once() -> None:
    assert run("0", "0") == 0
    assert Path("logs/host-1.log").read_text() == "process 1 of 2 with 4\n"


@pytest.mark.parametrize("ends", ["42 0", "200 0", "-9 0", "134 0", "saves3 saves6 0"])
def test_a_status_that_may_improve_is_restarted(ends: str) -> None:
    assert run(ends) == 0
    assert starts() == len(ends.split())


@pytest.mark.parametrize("status", [1, 2, 126])
def test_a_fault_is_not_restarted(status: int) -> None:
    assert run(f"{status} 0") == status
    assert starts() == 1


def test_a_killed_process_ends_the_others() -> None:
    assert run("hang 0", "-9 0") == 0
    assert (starts(0), starts(1)) == (2, 2)


def test_the_first_failure_decides_the_status() -> None:
    """A fault in one process; jax aborts the other for it a little later."""
    assert run("late134 0", "1 0") == 1
    assert starts() == 1


def test_a_fault_that_comes_back_each_time_is_given_up(capsys) -> None:
    """A data worker that runs out of memory at the same batch, for example."""
    assert run(" ".join(["200"] * 9), max_idle=3) == 1
    assert starts() == 3
    assert "giving up: it was restarted 3 times in a row without a checkpoint" in capsys.readouterr().err


def test_too_many_restarts_end_with_a_message(capsys) -> None:
    assert run("42 saves4 42 42 42", max_idle=2) == 1
    assert starts() == 4
    assert "giving up: it was restarted 2 times in a row without a checkpoint after step 4" in capsys.readouterr().err


def test_processes_of_a_process_that_died_are_ended(tmp_path: Path) -> None:
    """Such as those that read data for it."""
    program = (
        "import subprocess, sys; from pathlib import Path;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        "Path('child').write_text(str(child.pid)); sys.exit(1)"
    )
    assert supervise([sys.executable, "-c", program], Path("run"), Restarts()) == 1
    wait_until(lambda: not alive(int((tmp_path / "child").read_text())), 30)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(("numbers", "status"), [("TERM", 42), ("INT", 42), ("INT INT", 130)])
def test_signals_are_passed_on_and_final(tmp_path: Path, numbers: str, status: int) -> None:
    """The first Ctrl-C lets the run save, the second one ends it."""
    program = (
        "import signal, sys, time; from pathlib import Path; once = len(sys.argv) < 2;"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(42) if once else print('told', flush=True));"
        "signal.signal(signal.SIGINT, lambda *_: sys.exit(130));"
        "print('up', flush=True); [time.sleep(0.1) for _ in range(600)]"
    )
    twice = ["twice"] if " " in numbers else []
    supervisor = [sys.executable, "-m", "solo.launch.supervisor", "--run-folder=run", "--processes=2", "--logs=logs"]
    process = subprocess.Popen(
        [*supervisor, "--pid-file=pid", "--", sys.executable, "-c", program, *twice],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
    )
    logs = [tmp_path / f"logs/host-{number}.log" for number in range(2)]
    wait_until(lambda: all(log.exists() and "up" in log.read_text() for log in logs), 30)
    for number in numbers.split():
        os.kill(int((tmp_path / "pid").read_text().split()[0]), signal.Signals[f"SIG{number}"])
        if twice:
            wait_until(lambda: all("told" in log.read_text() for log in logs), 30)
    _, said = process.communicate(timeout=30)
    assert process.returncode == status, said
    assert (tmp_path / "pid").read_text() == ""
    assert all(log.read_text().startswith("up\n") for log in logs)


def test_sigterm_while_waiting_to_restart(monkeypatch) -> None:
    monkeypatch.setattr("solo.launch.restarts._FIRST_WAIT", 30.0)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    signal.setitimer(signal.ITIMER_REAL, 1.5)
    began = time.monotonic()
    assert run("42 0") == 42
    assert time.monotonic() - began < 20
    assert starts() == 1


def test_a_run_that_takes_too_long_saves_and_ends_for_good(tmp_path: Path, capsys) -> None:
    program = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(42));"
        "open('up', 'w').close(); time.sleep(60)"
    )
    status = supervise([sys.executable, "-c", program], Path("run"), Restarts(10, 5), 1, 0, Path("logs"), max_seconds=2)
    assert status == 1
    assert (tmp_path / "up").exists()
    said = capsys.readouterr().err
    assert "ended with 42" in said
    assert "giving up: it ran for 2 s, the limit of this launch" in said


def test_a_run_that_ends_in_time_keeps_its_status() -> None:
    (Path("ends") / "0").write_text("0")
    assert supervise([sys.executable, "-c", _PROCESS], Path("run"), Restarts(10, 5), 1, 0, Path("logs"), 60) == 0


def test_a_program_that_does_not_exist_is_named(capsys) -> None:
    assert supervisor.main(["--run-folder", "run", "--", "no-such-program", "train"]) == 2
    assert "not started: no-such-program is not a program" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ended", "status"),
    [
        ([None, 0], 0),
        ([None, 1, -6], 1),
        ([-6, None], 134),
        ([1, -9, -6], 137),  # another process failed because that one was killed
        ([200, 0, -15], 200),
    ],
)
def test_the_cause_among_ends_seen_at_once(ended: list[int | None], status: int) -> None:
    assert supervisor.cause(ended) == status
