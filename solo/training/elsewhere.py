"""Detects whether another host trains a run in a shared folder.

`solo.locks` cannot detect this on file systems whose locks are local to each host, such as gcsfuse, Lustre with
`localflock`, or NFS with `nolock`. There, the heartbeat is used, which the process that trains a run renews. Its times
come from the other host's clock, which may be wrong, so it is only checked whether the heartbeat changes.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path

from solo.config import ConfigError
from solo.training.heartbeat import SECONDS, Heartbeat, read_heartbeat

# gcsfuse and NFS show changes of another host up to a minute late.
LOOK_SECONDS = 60.0 + SECONDS
# Clocks are assumed to be wrong by less than this. If the last heartbeat is older, the process does not wait.
LONG_AGO_SECONDS = 6 * 3600.0


def check_not_elsewhere(
    heartbeat: Path,
    locked: bool,
    tell: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Returns once no other host is known to train a run.

    Does not wait if the last process exited cleanly, was on this host, or wrote its last heartbeat long ago.

    Args:
        heartbeat: the run's heartbeat file.
        locked: whether this process holds the run's lock, so that no other process on this host does.
        tell: called with messages for the user.
        sleep: waits for some seconds.

    Raises:
        ConfigError: another process trains the run.
    """
    before = read_heartbeat(heartbeat)
    if before is None or before.ended or (locked and before.host == socket.gethostname()):
        return
    if time.time() - before.at > LONG_AGO_SECONDS:
        return
    tell(f"{_who(before)} has not ended this run; waiting up to {LOOK_SECONDS:g} s for a new heartbeat")
    waited = 0.0
    while waited < LOOK_SECONDS:
        sleep(min(SECONDS / 4, LOOK_SECONDS - waited))
        waited += SECONDS / 4
        _refresh(heartbeat.parent)
        now = read_heartbeat(heartbeat)
        if now is None or now.ended:
            return
        if now != before:
            raise ConfigError(
                f"another process trains {heartbeat.parent}: {_who(now)}, at step {now.step}; wait until it ends, or"
                " choose another name (name=...)"
            )
    tell(f"{_who(before)} shows no sign of life; this process continues")


def _who(last: Heartbeat) -> str:
    return f"process {last.pid} on {last.host}"


def _refresh(folder: Path) -> None:
    """Makes a network file system drop its cached attributes of a folder, by changing the folder."""
    probe = folder / f".look-{socket.gethostname()}"
    with contextlib.suppress(OSError):
        probe.touch()
        probe.unlink()
