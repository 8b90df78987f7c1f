"""Advisory locks on files, which the operating system releases when their process ends in any way.

Locks work across hosts on file systems that support `flock` between hosts, such as NFS 4, or Lustre mounted with
`flock`. The file of a lock names its holder, for error messages of other processes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from solo.config import ConfigError

_PATIENCE_SECONDS = 1.0  # `is_held` of another process holds the lock for an instant
_POLL_SECONDS = 0.05
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock. `since` is local time."""

    host: str
    pid: int
    since: str
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since} ({self.command})"


@contextmanager
def hold(path: Path, shared: bool = False, patience: float = 0.0) -> Iterator[bool]:
    """Holds a lock within the context. Yields False if another process holds it.

    Args:
        path: the lock's file, which is created if it is missing.
        shared: any number of processes may hold the lock as shared; another one holds it alone. A file that this
            process must not write can be held too, as it is on a read-only disk; if it cannot be created, nothing is
            held.
        patience: seconds to wait for other processes, on top of the instant that `is_held` takes.

    Raises:
        ConfigError: the file system does not support locks.
        OSError: the file cannot be created.
    """
    file = _open(path, shared)
    if file is None:
        yield True
        return
    with file:
        end = time.monotonic() + _PATIENCE_SECONDS + patience
        while not (acquired := _acquire_as(file, shared)) and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        if acquired:
            _sign(file)
        try:
            yield acquired
        finally:  # closing the file releases the lock
            if acquired and file.writable() and _acquire(file, fcntl.LOCK_EX):
                file.truncate(0)


def is_held(path: Path) -> bool:
    """Returns whether a process holds an exclusive lock. The file may be read-only."""
    try:
        with path.open() as file:
            return not _acquire(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def holders(path: Path) -> list[Holder]:
    """Returns the holders of a lock according to its file, without processes of this host that have ended."""
    found = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    for line in lines:
        try:
            holder = Holder(**json.loads(line))
        except (ValueError, TypeError):  # another process is writing it
            continue
        if holder.host != socket.gethostname() or _is_alive(holder.pid):
            found.append(holder)
    return found


def held_by(path: Path) -> str:
    """Returns a description of the holders of a lock, for a message."""
    return " and ".join(map(str, holders(path))) or "another process"


def _open(path: Path, shared: bool) -> IO[str] | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", encoding="utf-8")
    except OSError as error:
        if not shared or error.errno not in _NOT_WRITABLE:
            raise
    try:
        return path.open(encoding="utf-8")
    except OSError:
        return None


def _acquire_as(file: IO[str], shared: bool) -> bool:
    """Acquires a lock. The first of several holders clears the names of earlier ones."""
    if not file.writable():
        return _acquire(file, fcntl.LOCK_SH)
    if _acquire(file, fcntl.LOCK_EX):
        file.truncate(0)
        return not shared or _acquire(file, fcntl.LOCK_SH)  # another process may get in between
    return shared and _acquire(file, fcntl.LOCK_SH)


def _sign(file: IO[str]) -> None:
    if file.writable():
        command = shlex.join([_program(), *sys.argv[1:]])
        holder = Holder(socket.gethostname(), os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S"), command)
        file.write(json.dumps(asdict(holder)) + "\n")
        file.flush()


def _program() -> str:
    name = os.path.basename(sys.argv[0])
    return "solo" if name == "cli.py" else name


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def _acquire(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ConfigError(
            f"{file.name}: cannot be locked ({error.strerror}), and without locks two processes could write the same"
            " files; use a folder on a file system that supports flock"
        ) from None
    return True
