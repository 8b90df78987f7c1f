"""One process per run, whichever process is killed."""

import errno
import fcntl
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import pytest

from solo.config import ConfigError
from solo.locks import held_by, hold, holders, is_held

HOLDER = """
import sys, time
from pathlib import Path
from solo.locks import hold
with hold(Path(sys.argv[1])) as held:
    print("held" if held else "taken", flush=True)
    time.sleep(60)
"""


def test_only_one_holds_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "run"
    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: stack.enter_context(hold(path)), range(16))) == 1
        assert is_held(path)
        assert not is_held(path.with_name("another"))
    assert not is_held(path)


def test_a_lock_that_is_held_for_an_instant_is_waited_for(tmp_path: Path) -> None:
    """`is_held` of another process holds the lock while it looks, but does not disturb others that look."""
    path = tmp_path / "run"
    with path.open("a") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        path.chmod(0o444)  # of another user
        assert not is_held(path)
        timer = threading.Timer(0.2, lambda: fcntl.flock(looking, fcntl.LOCK_UN))
        timer.start()
        with hold(path) as held:
            assert held
        timer.join()


def test_a_killed_process_loses_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with hold(path) as held:
        assert not held
    assert is_held(path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not is_held(path)
    with hold(path) as held:
        assert held


def test_several_share_a_lock_or_one_holds_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "data.lock"
    with hold(path, shared=True) as one, hold(path, shared=True) as two:
        assert (one, two, len(holders(path))) == (True, True, 2)
        with hold(path) as alone:
            assert not alone
    with hold(path) as alone, hold(path, shared=True) as other:
        assert (alone, other) == (True, False)
    assert path.read_bytes() == b""


def test_the_holder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    (holder,) = holders(path)
    assert (holder.pid, holder.host) == (process.pid, socket.gethostname())
    assert held_by(path) == f"process {process.pid} on {holder.host} since {holder.since} (-c {path})"
    process.kill()
    process.wait()
    assert holders(path) == []
    assert held_by(path) == "another process"


def test_a_read_only_lock_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that is mounted read-only, which root sees as well."""
    (tmp_path / "made").touch()
    original = Path.open

    def read_only(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> IO[str]:
        if mode != "r":
            raise OSError(errno.EROFS, "Read-only file system", str(self))
        return original(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", read_only)
    with hold(tmp_path / "made", shared=True) as held, hold(tmp_path / "missing", shared=True) as nothing:
        assert held
        assert nothing
    with pytest.raises(OSError, match="Read-only"), hold(tmp_path / "made"):
        pass


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ConfigError, match=r"cannot be locked .*supports flock"), hold(tmp_path / "run"):
        pass
