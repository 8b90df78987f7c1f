"""One process to a run, whoever is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from solo.scaling.sweep import lock
from solo.scaling.sweep.lock import RunLock, is_held

HOLDER = """
import sys, time
from pathlib import Path
from solo.scaling.sweep.lock import RunLock
lock = RunLock.acquire(Path(sys.argv[1]), "run")
print("held" if lock else "taken", flush=True)
time.sleep(60)
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)


def holder(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_one_of_many_gets_it(tmp_path: Path, quick: None) -> None:
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: RunLock.acquire(tmp_path, "run"), range(64)))
    held = [each for each in found if each]
    assert len(held) == 1
    assert is_held(tmp_path, "run")
    assert not is_held(tmp_path, "another")
    held[0].release()
    assert not is_held(tmp_path, "run")
    assert not list(tmp_path.iterdir())


def test_a_killed_holder_is_outbid_once(tmp_path: Path, quick: None) -> None:
    process = holder(tmp_path)
    assert RunLock.acquire(tmp_path, "run") is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not is_held(tmp_path, "run")
    with ThreadPoolExecutor(16) as pool:
        found = [each for each in pool.map(lambda _: RunLock.acquire(tmp_path, "run"), range(64)) if each]
    assert len(found) == 1
    found[0].release()
    assert not list(tmp_path.iterdir())


def test_a_number_of_another_process_is_not_its_holder(tmp_path: Path) -> None:
    """The holder is gone and its process number was given anew."""
    (tmp_path / "run.0").write_text(json.dumps({"host": os.uname().nodename, "pid": os.getpid(), "started": "1"}))
    assert not is_held(tmp_path, "run")


def test_of_another_host_the_heart_tells(tmp_path: Path) -> None:
    path = tmp_path / "run.0"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}))
    assert is_held(tmp_path, "run")
    old = time.time() - lock.STALE_SECONDS - 1
    os.utime(path, (old, old))
    assert not is_held(tmp_path, "run")


def test_who_was_only_paused_notices(tmp_path: Path, quick: None) -> None:
    lost: list[str] = []
    mine = RunLock.acquire(tmp_path, "run", on_loss=lambda: lost.append("lost"))
    assert mine is not None
    (tmp_path / "run.1").write_text("{}")
    assert mine.lost.wait(5)
    assert lost == ["lost"]
    mine.release()
    assert (tmp_path / "run.1").exists()
