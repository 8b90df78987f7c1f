"""`heartbeat.json`: when a run was last alive, and what it was doing. `solo runs` reads it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from solo.files import json_text, write_whole
from solo.training.observer import Observer

SECONDS = 20.0


@dataclass(frozen=True)
class Heartbeat:
    """A heartbeat.

    at        time of the heartbeat, in seconds since 1970
    moved     time of the last step or other progress, in seconds since 1970
    activity  current activity
    step      the last step, 0 before the first one
    steps     steps of the whole run, 0 before they are planned
    host, pid the process
    ended     whether the process ended by itself, including with an error
    """

    at: float
    moved: float
    activity: str
    step: int
    steps: int
    host: str
    pid: int
    ended: bool = False


class Beating(Observer):
    """Forwards everything to another observer, and writes a heartbeat from its own thread.

    Args:
        path: the file.
        observer: shows the run.
    """

    def __init__(self, path: Path, observer: Observer):
        super().__init__()
        self._path, self._observer = path, observer
        now = time.time()
        self._last = Heartbeat(now, now, "starting", 0, 0, socket.gethostname(), os.getpid())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="heartbeat", daemon=True)
        self._thread.start()

    @property
    def profile_requested(self) -> bool:
        """Whether the other observer has received SIGUSR2."""
        return self._observer.profile_requested

    @profile_requested.setter
    def profile_requested(self, value: bool) -> None:
        self._observer.profile_requested = value

    def note(self, text: str) -> None:
        """See `Observer`."""
        self._last = replace(self._last, moved=time.time(), activity=text)
        self._observer.note(text)

    def say(self, text: str) -> None:
        """See `Observer`."""
        self._observer.say(text)

    def warn(self, text: str) -> None:
        """See `Observer`."""
        self._observer.warn(text)

    def start(self, num_steps: int) -> None:
        """See `Observer`."""
        self._last = replace(self._last, moved=time.time(), steps=num_steps)
        self._observer.start(num_steps)

    def step(self, line: Mapping[str, Any], num_steps: int) -> None:
        """See `Observer`."""
        self._last = replace(self._last, moved=time.time(), activity=f"stage {line['stage']}", step=line["step"])
        self._observer.step(line, num_steps)

    def evaluated(self, line: Mapping[str, Any]) -> None:
        """See `Observer`."""
        self._observer.evaluated(line)

    def finish(self) -> None:
        """See `Observer`."""
        self._observer.finish()

    def close(self) -> None:
        """Writes the last heartbeat."""
        self._last = replace(self._last, ended=True)
        self._ended.set()
        self._thread.join(SECONDS)

    def _work(self) -> None:
        ended = False
        while not ended:
            self._beat()
            ended = self._ended.wait(SECONDS)
        self._beat()

    def _beat(self) -> None:
        with contextlib.suppress(OSError):
            write_whole(self._path, json_text(asdict(replace(self._last, at=time.time()))) + "\n")


def read_heartbeat(path: Path) -> Heartbeat | None:
    """Returns the last heartbeat; None if there is none, or if it cannot be read."""
    try:
        return Heartbeat(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
