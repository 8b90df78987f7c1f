"""A lock on a run in a bucket, where files cannot be locked: an object that its holder renews.

The first process creates the object, on the condition that it does not exist, and renews it every few seconds. Another
process takes it over if it is no longer renewed, or if its holder was a process on the same machine and has ended.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from solo.config import ConfigError
from solo.storage import Bucket

NAME = "run.lock"
RENEW_SECONDS = 15.0
DEAD_SECONDS = 45.0  # without renewal
_SETTLE_SECONDS = 1.0


@dataclass(frozen=True)
class Holder:
    """A process that holds the lock.

    key      unique key of this acquisition
    host     host name
    pid      process id
    since    local time of the acquisition
    command  command line
    machine  identifies the current boot of the machine and the container; empty if unknown
    started  start time of the process, in the kernel's units
    renewed  number of renewals
    """

    key: str
    host: str
    pid: int
    since: str
    command: str
    machine: str
    started: str
    renewed: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since} ({self.command})"

    @classmethod
    def here(cls) -> Holder:
        """Returns this process."""
        command = shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        pid = os.getpid()
        return cls(uuid.uuid4().hex, socket.gethostname(), pid, now, command, _machine(), _started(pid))

    @classmethod
    def read(cls, bucket: Bucket) -> Holder | None:
        """Returns the holder of a run's lock; None if there is none."""
        content = bucket.read(NAME)
        try:
            return None if content is None else cls(**json.loads(content))
        except (ValueError, TypeError):
            return None  # not written by us

    def has_ended(self) -> bool:
        """Returns whether the holder was a process on this machine and has ended."""
        return bool(self.machine) and self.machine == _machine() and _started(self.pid) != self.started


def living_holder(bucket: Bucket) -> Holder | None:
    """Returns the process that trains a run in a bucket, if it has renewed its lock recently."""
    other = Holder.read(bucket)
    return None if other is None or other.has_ended() or age(bucket) > DEAD_SECONDS else other


def age(bucket: Bucket) -> float:
    """Returns the seconds since the lock of a run was renewed, by the store's clock; 0 if unknown."""
    probe = f"{NAME}.{uuid.uuid4().hex}"
    renewed = bucket.modified(NAME)
    bucket.write(probe, b"")
    now = bucket.modified(probe)
    bucket.remove(probe)
    return 0.0 if renewed is None or now is None else max(0.0, now - renewed)


class RunLock:
    """Holds the lock of a run in a bucket. Raises ConfigError if another process holds it.

    Args:
        bucket: the run's folder.
        tell: called with messages for the user.
    """

    def __init__(self, bucket: Bucket, tell: Callable[[str], None] = lambda text: None):
        self._bucket, self._me = bucket, Holder.here()
        self._stopped = threading.Event()
        self._thief: Holder | None = None
        before = Holder.read(bucket)
        if before is not None:
            self._wait_for(before, tell)
            tell(f"{before} has not released {bucket.url}, but shows no sign of life; this process continues")
        if not self._write(new=before is None):
            self._refuse(Holder.read(bucket))
        if before is not None:
            time.sleep(_SETTLE_SECONDS)  # another process may have seen the same
        now = Holder.read(bucket)
        if now is None or now.key != self._me.key:
            self._refuse(now)
        self._thread = threading.Thread(target=self._renew, name="run lock", daemon=True)
        self._thread.start()

    def lost_to(self) -> Holder | None:
        """Reads from the bucket which process has taken over the lock; None if this process holds it."""
        with suppress(ConfigError, OSError):  # the bucket cannot be reached
            now = Holder.read(self._bucket)
            if now is not None and now.key != self._me.key:
                self._thief = now
        return self._thief

    def release(self) -> None:
        """Releases the lock."""
        self._stopped.set()
        self._thread.join()
        if self._thief is None:
            with suppress(ConfigError, OSError):  # it ends by itself
                self._bucket.remove(NAME)

    def _wait_for(self, other: Holder, tell: Callable[[str], None]) -> None:
        """Waits until a holder is known to have ended."""
        if other.has_ended():
            return
        end = time.monotonic() + DEAD_SECONDS - age(self._bucket)
        if time.monotonic() < end:
            tell(f"{other} may still train {self._bucket.url}; waiting up to {DEAD_SECONDS:.0f} s for a sign of life")
        while True:
            now = Holder.read(self._bucket)
            if now is None:
                return
            if (now.key, now.renewed) != (other.key, other.renewed):
                self._refuse(now)
            if time.monotonic() >= end:
                return
            time.sleep(min(RENEW_SECONDS / 3, DEAD_SECONDS / 10))

    def _refuse(self, other: Holder | None) -> None:
        who = other or "another process"
        raise ConfigError(
            f"another process trains {self._bucket.url}: {who}; wait until it ends, or choose another name (name=...)"
        )

    def _write(self, renewed: int = 0, new: bool = False) -> bool:
        content = json.dumps({**asdict(self._me), "renewed": renewed}) + "\n"
        return self._bucket.write(NAME, content.encode(), new=new)

    def _renew(self) -> None:
        renewed = 0
        while not self._stopped.wait(RENEW_SECONDS):
            with suppress(Exception):  # the network may come back
                if self.lost_to() is not None:
                    return
                renewed += 1
                self._write(renewed)


@contextmanager
def holding(bucket: Bucket, tell: Callable[[str], None] = lambda text: None) -> Iterator[RunLock]:
    """Holds the lock of a run within the context; see `RunLock`."""
    lock = RunLock(bucket, tell)
    try:
        yield lock
    finally:
        lock.release()


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Returns when a process was started; an empty string if there is none, or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
