"""Whether another host trains a run in a folder that both see.

`solo.locks` cannot tell on file systems that keep flock to each host, such as gcsfuse, Lustre with `localflock`, or NFS
with `nolock`. The heartbeat tells: whoever trains renews it. Its times are those of the other host's clock, which may
be wrong, so the question is whether it changes.
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
# No clock is wrong by more. A run that was killed yesterday is not waited for.
LONG_AGO_SECONDS = 6 * 3600.0


def check_not_elsewhere(
    heartbeat: Path,
    locked: bool,
    tell: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Returns once no other host is known to train a run.

    Does not wait if the last process has ended in order, was on this host, or showed its last sign of life long ago.

    Args:
        heartbeat: the run's heartbeat file.
        locked: whether this process holds the run's lock, so that no other one of this host does.
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
    tell(f"{_who(before)} has not ended this run; waiting up to {LOOK_SECONDS:g} s for a sign of its life")
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
    tell(f"{_who(before)} shows no sign of life; this process goes on")


def _who(last: Heartbeat) -> str:
    return f"process {last.pid} on {last.host}"


def _refresh(folder: Path) -> None:
    """Makes a network file system forget what it knows of a folder: this host has changed it."""
    probe = folder / f".look-{socket.gethostname()}"
    with contextlib.suppress(OSError):
        probe.touch()
        probe.unlink()
