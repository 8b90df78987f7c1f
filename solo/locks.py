"""One process per run: an advisory lock on a file, which the system releases when the process ends, however it ends.

Locks work across hosts on file systems that support `flock` between them, such as NFS 4, or Lustre mounted with
`flock`.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from solo.config import ConfigError

_PATIENCE_SECONDS = 1.0  # `is_held` of another process holds the lock for an instant
_POLL_SECONDS = 0.05


@contextmanager
def hold(path: Path) -> Iterator[bool]:
    """Holds a lock while the context lasts. Yields False if another process holds it.

    Raises:
        ConfigError: the file system does not support locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        end = time.monotonic() + _PATIENCE_SECONDS
        while not (acquired := _acquire(file, fcntl.LOCK_EX)) and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        yield acquired  # closing the file releases the lock


def is_held(path: Path) -> bool:
    """Returns whether a process holds a lock. The file may be read-only."""
    try:
        with path.open() as file:
            return not _acquire(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def _acquire(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ConfigError(
            f"{file.name}: cannot be locked ({error.strerror}), and without locks two processes could train the same"
            " run; use a folder on a file system that supports flock"
        ) from None
    return True
