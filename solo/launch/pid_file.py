"""PID files: each names a process, which keeps the file locked while it runs.

    python -m solo.launch.pid_file holder FILE     prints the process that holds the file, or nothing
    python -m solo.launch.pid_file state FILE      prints a sentence that says whether a process holds it
    python -m solo.launch.pid_file stop FILE       sends that process SIGTERM
    python -m solo.launch.pid_file run FILE COMMAND ...    executes a command, which holds the file until it ends

The lock distinguishes a running process from the stale PID of a killed one. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from solo.statuses import MISTAKE


class Holder(NamedTuple):
    """A running process and its host."""

    pid: int
    host: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@contextlib.contextmanager
def hold(path: Path) -> Iterator[bool]:
    """Names this process in a file while the context lasts. Yields False if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        if not _lock(file.fileno()):
            yield False
            return
        file.truncate(0)
        file.write(f"{os.getpid()} {socket.gethostname()}\n")
        file.flush()
        try:
            yield True
        finally:
            file.truncate(0)


def holder(path: Path) -> Holder | None:
    """Returns the process that holds a file, or None."""
    try:
        with path.open("r+") as file:
            if _lock(file.fileno()):
                return None
            pid, host = file.read().split()
    except (OSError, ValueError):  # there is none, or it is being written
        return None
    return Holder(int(pid), host)


def become(path: Path, command: list[str]) -> int:
    """Replaces this process with a command that holds a file until it ends.

    Returns 2 if another process holds the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    if not _lock(file.fileno()):
        print(f"launch: not started: {holder(path) or 'another process'} runs it already", file=sys.stderr)
        return MISTAKE
    file.truncate(0)
    file.write(f"{os.getpid()} {socket.gethostname()}\n")
    file.flush()
    os.set_inheritable(file.fileno(), True)  # the lock lasts as long as this descriptor is open
    os.execvp(command[0], command)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main(arguments: list[str]) -> int:
    """Run the command line. `stop` returns 1 if there is no such process on this host."""
    verb, path, *command = arguments
    if verb == "run":
        return become(Path(path), command)
    found = holder(Path(path))
    if verb == "holder":
        print(found or "", end="")
        return 0
    if verb == "state":
        print(f"launch: {found} runs it" if found else "launch: no process runs it")
        return 0
    if found is None or found.host != socket.gethostname():
        print(f"launch: nothing to stop: {found or 'no process'} holds {path}", file=sys.stderr)
        return 1
    os.kill(found.pid, signal.SIGTERM)
    print(f"launch: sent SIGTERM to {found}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
