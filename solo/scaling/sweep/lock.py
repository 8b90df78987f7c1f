"""One process to a run: a lock file that only one can make, kept alive by a heartbeat.

The holder of a lock may be killed, on this host or another. Its lock is then stale, and is not removed but outbid:
locks of a run are numbered, the highest number holds, and a number is made with O_EXCL, so that of all who see the
same stale lock one makes the next. Whoever was only paused finds a higher number than its own, and stops.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

BEAT_SECONDS = 5.0
STALE_SECONDS = 120.0


class RunLock:
    """A lock on one run, held from `acquire` to `release`. `lost` is set when another process outbid it."""

    def __init__(self, path: Path, on_loss: Callable[[], None]):
        self._path, self._on_loss = path, on_loss
        self.lost = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lock {path.name}", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(cls, folder: Path, run: str, on_loss: Callable[[], None] = lambda: None) -> RunLock | None:
        """The lock, or None where another process that is alive holds it.

        Args:
            folder: of the sweep's locks.
            run: its id.
            on_loss: called from another thread when the lock is lost.
        """
        folder.mkdir(parents=True, exist_ok=True)
        held = _newest(folder, run)
        if held is not None and not is_stale(held):
            return None
        path = folder / f"{run}.{0 if held is None else _number(held) + 1}"
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return None
        with os.fdopen(descriptor, "w") as file:
            json.dump({"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}, file)
        # Since it was looked at, the run may have been finished by others, and begun anew.
        newest = _newest(folder, run)
        if newest != path or (held is not None and held.exists() and not is_stale(held)):
            path.unlink(missing_ok=True)
            return None
        return cls(path, on_loss)

    def release(self) -> None:
        """Let go: older locks first, so that the run is never without one in between."""
        self._done.set()
        self._thread.join()
        if self.lost.is_set():
            return
        run = self._path.name.rpartition(".")[0]
        for path in sorted(_all(self._path.parent, run), key=_number):
            if _number(path) <= _number(self._path):
                path.unlink(missing_ok=True)

    def _beat(self) -> None:
        run = self._path.name.rpartition(".")[0]
        while not self._done.wait(BEAT_SECONDS):
            if _newest(self._path.parent, run) != self._path:
                self.lost.set()
                self._on_loss()
                return
            os.utime(self._path)


def is_held(folder: Path, run: str) -> bool:
    """Whether a process that is alive works on a run."""
    newest = _newest(folder, run)
    return newest is not None and not is_stale(newest)


def is_stale(path: Path) -> bool:
    """Whether a lock's holder is gone: its process is, if it was on this host; else its heart has stopped."""
    try:
        holder = json.loads(path.read_text() or "{}")
        beat = path.stat().st_mtime
    except FileNotFoundError:
        return False  # released just now; the next look will tell
    except json.JSONDecodeError:
        holder = {}
    if holder.get("host") == socket.gethostname():
        return _started(holder["pid"]) != holder["started"]
    return time.time() - beat > STALE_SECONDS


def _started(pid: int) -> str | None:
    """When a process was started, in clock ticks since boot: tells it from another of the same number. None: gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
        return _alive_without_proc(pid)
    state, *rest = text.rpartition(")")[2].split()
    return None if state in ("Z", "X") else rest[18]


def _alive_without_proc(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"


def _all(folder: Path, run: str) -> list[Path]:
    return [path for path in folder.glob(f"{run}.*") if path.suffix[1:].isdigit()]


def _newest(folder: Path, run: str) -> Path | None:
    return max(_all(folder, run), key=_number, default=None)


def _number(path: Path) -> int:
    return int(path.suffix[1:])
