"""A run in several processes, which join, wait for each other, and stop together.

In a run of one process, nothing here waits.

The exit status tells a launcher whether to restart (0: done; 1 to 126, except 42: no; 42 and all others: yes):
- JAX ends a process with SIGABRT (134) after another one has died, and a restart may help;
- a process that causes a failure must end immediately (`end_at_once`). An orderly shutdown would wait minutes for
  processes that do not know of the failure, and then be aborted, which would look like another process's failure.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

from solo.config import ConfigError
from solo.faults import is_of_runtime
from solo.statuses import TransientError
from solo.training.hosts import Hosts, find_hosts, seconds_of
from solo.training.roll_call import START_TIMEOUT, roll_call

T = TypeVar("T")

# These errors are mistakes of the user, so a restart does not help. The command line exits with status 2.
MISTAKES = (ValueError, FileExistsError)

# Pods of one job have been seen to start ten minutes apart.
START_SECONDS = 900
SET_UP_SECONDS = 900
SAVE_SECONDS = 1800
# One host of many may read a checkpoint much more slowly than the others.
RESTORE_SECONDS = 5400
# Within this time, the other processes read an error of process 0 and end, if they are alive.
TOLD_SECONDS = 10
# From the last message of a process until the operating system has removed it.
LAST_WORD_SECONDS = 1
# After this long without a heartbeat, JAX declares a process dead.
HEARTBEAT_SECONDS = 100
# Errors that a process causes itself.
_OWN_FAULTS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "NOT_FOUND", "FAILED_PRECONDITION")


class OtherProcessError(RuntimeError):
    """Process 0 failed in a task that the others waited for."""


class OtherProcessTransientError(OtherProcessError, TransientError):
    """Process 0 failed in such a task because of a fault that a restart may fix."""


# What the other processes raise, for the first kind of process 0's error.
_TOLD = (
    ("transient", TransientError, OtherProcessTransientError),
    ("mistake", MISTAKES, ConfigError),
    ("fault", Exception, OtherProcessError),
)


def join(
    environment: Mapping[str, str] = os.environ, found: Callable[[Hosts], None] = lambda hosts: None
) -> Hosts | None:
    """Joins the run's other processes. Must be called before JAX is used.

    Args:
        environment: environment variables.
        found: called with the hosts before this process waits for them.

    Returns:
        The run's hosts, or None if this process is alone.

    Raises:
        ConfigError: the variables are wrong, or contradict each other; see `find_hosts`.
        MissingHostsError: some processes did not start within $SOLO_START_TIMEOUT_SECONDS (default 900).
    """
    hosts = find_hosts(environment)
    if hosts is None:
        return None
    seconds = seconds_of(environment, START_TIMEOUT, START_SECONDS)
    found(hosts)
    roll_call(hosts, seconds)
    import jax

    jax.distributed.initialize(
        hosts.coordinator,
        len(hosts.names),
        hosts.index,
        local_device_ids=hosts.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(seconds) + 1,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
    return hosts


def leave() -> None:
    """Leaves the run after all other processes have called this function."""
    if among_others():
        import jax

        jax.distributed.shutdown()


def among_others() -> bool:
    """Returns whether this process has joined others and has not left yet."""
    if "jax" not in sys.modules:
        return False
    import jax

    return jax.distributed.is_initialized()


def end_at_once(status: int) -> NoReturn:
    """Ends this process without an orderly shutdown. JAX then ends the others.

    Processes that know of an error of process 0 end first, with its status: after process 0, JAX would abort them.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if _shared_errors:
        _end_before_first(_shared_errors[-1])
    os._exit(status)


def _end_before_first(key: str) -> None:
    """Announces the end of this process or, in process 0, waits until all others have announced theirs.

    Args:
        key: key of the error that all processes end with.
    """
    import jax

    client = _client()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        if jax.process_index():
            client.key_value_set(f"{key}/ends/{jax.process_index()}", "yes")
            return
        for number in range(1, jax.process_count()):
            client.blocking_key_value_get(f"{key}/ends/{number}", TOLD_SECONDS * 1000)
        time.sleep(LAST_WORD_SECONDS)


def wait_for_dead_process(error: Exception) -> None:
    """Waits if another process may have caused an error of JAX's runtime. If so, JAX ends this process.

    Args:
        error: the error, or one that it caused: a save also fails if another process dies.
    """
    if not among_others() or isinstance(error, TransientError):
        return
    cause: BaseException | None = error
    while cause is not None and not is_of_runtime(cause):
        cause = cause.__cause__ or cause.__context__
    if cause is not None and not str(cause).startswith(_OWN_FAULTS):
        print(f"solo: {error}\nsolo: waiting to see whether another process died", file=sys.stderr, flush=True)
        time.sleep(HEARTBEAT_SECONDS + 30)


def first_then_others(first: Callable[[], T], others: Callable[[], T]) -> T:
    """Calls `first` in process 0, then `others` in the other processes.

    Raises:
        ConfigError: in the other processes, if `first` failed because of a mistake of the user.
        OtherProcessError: in the other processes, if it failed otherwise; it is also a TransientError if process 0's
            error was one.
    """
    if not among_others():
        return first()
    import jax

    key = f"solo/first/{_count('first')}"
    if jax.process_index():
        _raise_told(key)
        return others()
    try:
        made = first()
    except Exception as error:
        _tell(key, error)
        raise
    _tell(key, None)
    return made


def from_first(first: Callable[[], T], seconds: float = SET_UP_SECONDS) -> T:
    """Returns what `first` returns in process 0, which must be JSON. Raises as `first_then_others` does.

    Args:
        first: called in process 0.
        seconds: maximum time that the others wait for it.
    """
    if not among_others():
        return first()
    import jax

    key = f"solo/value/{_count('value')}"
    if jax.process_index():
        _raise_told(key, seconds)
        found: T = json.loads(_client().blocking_key_value_get(f"{key}/json", SET_UP_SECONDS * 1000))
        return found

    def tell() -> T:
        made = first()
        _client().key_value_set(f"{key}/json", json.dumps(made))
        return made

    try:
        made = tell()
    except Exception as error:
        _tell(key, error)
        raise
    _tell(key, None)
    return made


def first_text(mine: str, seconds: float = SET_UP_SECONDS) -> str:
    """Returns the text of the first process whose text is not empty, in all processes; empty if there is none.

    Args:
        mine: the text of this process.
        seconds: maximum time that the first process waits for the last one.
    """
    if not among_others():
        return mine
    import jax

    key = f"solo/text/{_count('text')}"
    _client().key_value_set(f"{key}/{jax.process_index()}", "=" + mine)  # empty values are not stored

    def collect() -> str:
        others = range(jax.process_count())
        found = [_client().blocking_key_value_get(f"{key}/{each}", int(seconds * 1000))[1:] for each in others]
        return next(filter(None, found), "")

    return from_first(collect, seconds)


def exchange(
    topic: str, mine: str, answer: Callable[[str], str], verdict: Callable[[Mapping[int, str]], Exception | None]
) -> None:
    """Asks all other processes about a text of process 0. Does nothing in a run of one process.

    Args:
        topic: name of the exchange.
        mine: the text; process 0's is sent to the others.
        answer: returns a process's answer to that text.
        verdict: called in process 0 with the answers by process; returns an error or None.

    Raises:
        ConfigError: in all processes, if the verdict is one; or another error, see `first_then_others`.
    """
    if not among_others():
        return
    import jax

    client, key = _client(), f"solo/{topic}/{_count(topic)}"
    if jax.process_index():
        asked = client.blocking_key_value_get(f"{key}/text", SET_UP_SECONDS * 1000)
        client.key_value_set(f"{key}/{jax.process_index()}", "=" + answer(asked))  # empty values are not stored
        return _raise_told(key)
    client.key_value_set(f"{key}/text", mine)
    others = range(1, jax.process_count())
    answers = {each: client.blocking_key_value_get(f"{key}/{each}", SET_UP_SECONDS * 1000)[1:] for each in others}
    error = verdict(answers)
    _tell(key, error)
    if error:
        raise error


def _tell(key: str, error: Exception | None) -> None:
    """Tells the other processes how a task of process 0 ended."""
    client = _client()
    if error is None:
        client.key_value_set(key, json.dumps(None))
        return
    kind = next(name for name, kinds, _ in _TOLD if isinstance(error, kinds))
    client.key_value_set(key, json.dumps([str(error) or type(error).__name__, kind]))
    _shared_errors.append(key)


def _raise_told(key: str, seconds: float = SET_UP_SECONDS) -> None:
    """Waits until a task of process 0 has ended, and raises its error if it failed."""
    told = json.loads(_client().blocking_key_value_get(key, int(seconds * 1000)))
    if told is None:
        return
    _shared_errors.append(key)
    text, kind = told
    raise next(raised for name, _, raised in _TOLD if name == kind)(f"process 0: {text}")


def wait_for_all(seconds: float = SAVE_SECONDS) -> None:
    """Waits until every process has called this function."""
    if among_others():
        _client().wait_at_barrier(f"solo/all/{_count('all')}", int(seconds * 1000))


def stop_agreed(requested: bool) -> bool:
    """Returns whether all processes stop now. They must all call it equally often, for example after every step.

    A single process stops if `requested`. With several processes, JAX listens for SIGTERM: if a process receives it,
    all of them stop at the first call that none of them has passed.
    """
    if not among_others():
        return requested
    from jax.experimental import multihost_utils

    # JAX adds one to the highest number that any process has passed, so the numbers must be consecutive.
    return multihost_utils.reached_preemption_sync_point(_count("stop"))


_counts: dict[str, int] = {}
# Keys of errors of process 0 that all processes know.
_shared_errors: list[str] = []


def _count(what: str) -> int:
    """Returns the number of this call. Keys and barriers are used once; all processes call in the same order."""
    _counts[what] = _counts.get(what, 0) + 1
    return _counts[what]


def _client() -> Any:
    """Returns the client of JAX's coordination service. It has no public accessor; Orbax uses the same one."""
    from jax._src import distributed

    client = distributed.global_state.client
    if client is None:
        raise ConfigError("jax.distributed is not initialised")
    return client
