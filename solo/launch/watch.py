"""Follows a run whose machines do not return by themselves, until it has ended.

the run has ended         release the machines; return the run's exit status
SUSPENDED, FAILED         release them, wait, request them again, within the limits of `solo.launch.restarts`
anything else             check again later
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from solo.launch.plan import Command, Watch
from solo.launch.restarts import Restarts, newest_of

GONE = ("SUSPENDED", "FAILED")
INTERVAL = 60.0
# Cloud APIs fail occasionally; after this many failures in a row the watch ends.
PATIENCE = 10


class Answer(NamedTuple):
    """The exit status and output of a command."""

    status: int
    text: str


def ask(command: Command) -> Answer:
    """Run a command and return its output; its errors are shown."""
    done = subprocess.run(command.argv, stdout=subprocess.PIPE, text=True)
    return Answer(done.returncode, done.stdout.strip())


def follow(
    watch: Watch,
    ask: Callable[[Command], Answer] = ask,
    sleep: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] = lambda text: print(f"launch: {text}", file=sys.stderr, flush=True),
) -> int:
    """Watch until the run ends. Returns its exit status, or 1 after too many restarts or failed queries."""
    restarts = Restarts(watch.max_restarts, watch.max_idle_restarts)
    restarts.start(_newest(watch, ask))
    unanswered, before = 0, ""
    while True:
        ended = ask(watch.ended)
        if ended.status == 0 and ended.text.isdigit():
            say(f"the run has ended with {ended.text}")
            return _release(watch, ask, say) or int(ended.text)
        state = ask(watch.state)
        unanswered = 0 if state.status == 0 and state.text else unanswered + 1
        if unanswered >= PATIENCE:
            say(f"no state after {PATIENCE} queries; was the run stopped? the machines are left as they are")
            return 1
        if state.text and state.text != before:
            say(state.text)
            before = state.text
        if state.text in GONE:
            if refusal := restarts.start(_newest(watch, ask)):
                say(f"giving up: {refusal}")
                _release(watch, ask, say)
                return 1
            if status := _release(watch, ask, say):
                return status
            sleep(restarts.wait)
            say(f"requesting the machines again, restart {restarts.starts - 1}")
            _request_again(watch, ask, sleep)
            before = ""
        sleep(INTERVAL)


def _newest(watch: Watch, ask: Callable[[Command], Answer]) -> int | None:
    return newest_of(ask(watch.steps).text.splitlines())


def _release(watch: Watch, ask: Callable[[Command], Answer], say: Callable[[str], None]) -> int:
    status = ask(watch.delete).status
    if status:
        say(f"could not release the machines, which may cost money: {watch.delete}")
    return status


def _request_again(watch: Watch, ask: Callable[[Command], Answer], sleep: Callable[[float], None]) -> None:
    """Request the machines again; the name is taken until the deletion has finished."""
    for _ in range(PATIENCE):
        if ask(watch.create).status == 0:
            return
        sleep(INTERVAL)
