"""Two hosts that see one run folder, on a file system whose locks do not reach the other host."""

import json
import os
import socket
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from solo.config import ConfigError
from solo.training.elsewhere import LOOK_SECONDS, check_not_elsewhere
from solo.training.heartbeat import Beating, Heartbeat, read_heartbeat
from solo.training.observer import Observer

HERE = socket.gethostname()


class Other:
    """Another host with a clock of its own, and the seconds that this host waits for it."""

    def __init__(self, path: Path, skew: float = 0.0, host: str = "north"):
        self.path, self.waited, self.told = path, 0.0, []
        now = time.time() + skew
        self.last = Heartbeat(now, now, "stage first", 7, 10, host, os.getpid())
        self.write()

    def write(self, **changes) -> None:
        self.last = replace(self.last, **changes)
        self.path.write_text(json.dumps(asdict(self.last)))

    def check(self, locked: bool = True, lives: bool = False, **then) -> None:
        def sleep(seconds: float) -> None:
            self.waited += seconds
            if lives and self.waited >= 20:
                self.write(at=self.last.at + 20)
            if then and self.waited >= 20:
                self.write(**then)

        check_not_elsewhere(self.path, locked, self.told.append, sleep)


@pytest.mark.parametrize("skew", [-3600.0, 0.0, 3600.0])
def test_a_living_host_refuses_whatever_its_clock_shows(tmp_path: Path, skew: float) -> None:
    other = Other(tmp_path / "heartbeat.json", skew)
    with pytest.raises(ConfigError, match=rf"process {os.getpid()} on north, at step 7; .*\(name=\.\.\.\)"):
        other.check(lives=True)
    assert other.waited < LOOK_SECONDS


@pytest.mark.parametrize("skew", [-3600.0, 0.0, 3600.0])
def test_a_dead_host_is_taken_over_with_a_note(tmp_path: Path, skew: float) -> None:
    other = Other(tmp_path / "heartbeat.json", skew)
    other.check()
    assert other.waited == LOOK_SECONDS
    assert other.told[-1] == f"process {os.getpid()} on north shows no sign of life; this process continues"


def test_a_host_that_ends_meanwhile_is_not_waited_for_any_longer(tmp_path: Path) -> None:
    other = Other(tmp_path / "heartbeat.json")
    other.check(ended=True)
    assert other.waited == 20


def test_nothing_is_waited_for_without_a_reason(tmp_path: Path) -> None:
    ended = Other(tmp_path / "ended.json")
    ended.write(ended=True)
    long_ago, mine = Other(tmp_path / "old.json", skew=-86400), Other(tmp_path / "mine.json", host=HERE)
    for other in (ended, long_ago, mine):
        other.check()
        assert (other.waited, other.told) == (0, [])
    mine.check(locked=False)  # the lock could not be had, so a process of this host may live
    assert mine.waited == LOOK_SECONDS
    check_not_elsewhere(tmp_path / "none.json", True, pytest.fail)


def test_a_run_that_has_ended_says_so(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat.json"
    Beating(path, Observer()).close()
    found = read_heartbeat(path)
    assert found is not None
    assert found.ended
