"""Follows a run whose machines do not come back by themselves, until it has ended.

the run has ended         take the machines away; its exit status is this one's
SUSPENDED, FAILED         take them away, wait, ask for them anew; not too often, see `launch.restarts`
anything else             look again later
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from launch.plan import Command, Watch
from launch.restarts import Restarts, newest_of

GONE = ("SUSPENDED", "FAILED")
INTERVAL = 60.0
# Clouds answer badly now and then; after so many answers in a row that say nothing, somebody must look.
PATIENCE = 10


class Answer(NamedTuple):
    """What a command ended with, and said."""

    status: int
    text: str


def ask(command: Command) -> Answer:
    """Run a command and keep what it says; what it complains of is shown."""
    done = subprocess.run(command.argv, stdout=subprocess.PIPE, text=True)
    return Answer(done.returncode, done.stdout.strip())


def follow(
    watch: Watch,
    ask: Callable[[Command], Answer] = ask,
    sleep: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] = lambda text: print(f"launch: {text}", file=sys.stderr, flush=True),
) -> int:
    """Watch until the end. Returns the run's exit status; 1 after too many restarts or unanswered questions."""
    restarts = Restarts(watch.max_restarts, watch.max_idle_restarts)
    restarts.start(_newest(watch, ask))
    unanswered, before = 0, ""
    while True:
        ended = ask(watch.ended)
        if ended.status == 0 and ended.text.isdigit():
            say(f"the run has ended with {ended.text}")
            return _give_back(watch, ask, say) or int(ended.text)
        state = ask(watch.state)
        unanswered = 0 if state.status == 0 and state.text else unanswered + 1
        if unanswered >= PATIENCE:
            say(f"no state after {PATIENCE} questions; was it stopped? the machines are left as they are")
            return 1
        if state.text and state.text != before:
            say(state.text)
            before = state.text
        if state.text in GONE:
            if refusal := restarts.start(_newest(watch, ask)):
                say(f"given up: {refusal}")
                _give_back(watch, ask, say)
                return 1
            if status := _give_back(watch, ask, say):
                return status
            sleep(restarts.wait)
            say(f"asking for the machines again, for the {restarts.starts - 1}. time")
            _ask_again(watch, ask, sleep)
            before = ""
        sleep(INTERVAL)


def _newest(watch: Watch, ask: Callable[[Command], Answer]) -> int | None:
    return newest_of(ask(watch.steps).text.splitlines())


def _give_back(watch: Watch, ask: Callable[[Command], Answer], say: Callable[[str], None]) -> int:
    status = ask(watch.delete).status
    if status:
        say(f"could not give the machines back, which may cost money: {watch.delete}")
    return status


def _ask_again(watch: Watch, ask: Callable[[Command], Answer], sleep: Callable[[float], None]) -> None:
    """A name is taken until its deletion has gone through."""
    for _ in range(PATIENCE):
        if ask(watch.create).status == 0:
            return
        sleep(INTERVAL)
