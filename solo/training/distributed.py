"""A run in several processes, which join, wait for each other, and stop together.

In a run of one process, nothing here waits.

The exit status tells a launcher whether to restart (0: done; 1 to 126: do not; 42 and all others: restart):
- JAX ends a process with SIGABRT (134) after another one has died, and a restart may help;
- a process that fails by itself must end at once (`end_at_once`). An orderly shutdown would wait minutes for processes
  that do not know of the failure, and then be aborted, which would look like another process's failure.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

from solo.config import ConfigError
from solo.statuses import TransientError
from solo.training.hosts import Hosts, find_hosts, seconds_of

T = TypeVar("T")

# Errors of this kind are mistakes of the user: a restart does not help. The command line ends with status 2.
MISTAKES = (ValueError, FileExistsError)

START_TIMEOUT = "SOLO_START_TIMEOUT_SECONDS"
# Pods of one job have been seen to start ten minutes apart.
START_SECONDS = 900
# Processes of an attempt that was killed may hold the port for a while.
PORT_SECONDS = 60
SET_UP_SECONDS = 900
SAVE_SECONDS = 1800
# One host of many may read a checkpoint much more slowly than the others.
RESTORE_SECONDS = 5400
# The other processes read an error of process 0 within this time, if they are alive.
TOLD_SECONDS = 10
# After this long without a heartbeat, JAX declares a process dead.
HEARTBEAT_SECONDS = 100
# Errors that a process causes itself.
_OWN_FAULTS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "NOT_FOUND", "FAILED_PRECONDITION")


class MissingHostsError(RuntimeError):
    """Some processes of the run did not start; the message names them."""


class OtherProcessError(RuntimeError):
    """Process 0 failed at a task that the others waited for."""


class OtherProcessTransientError(OtherProcessError, TransientError):
    """Likewise, by a fault that a restart may cure."""


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
        environment: variables.
        found: called with the hosts before they are waited for.

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


def roll_call(hosts: Hosts, seconds: float) -> None:
    """Waits until every process has connected to process 0, at the port that JAX uses right afterwards.

    JAX itself ends such a wait with SIGABRT and does not say which processes are missing.

    Raises:
        MissingHostsError: some processes did not connect in time, process 0 could not be reached, or its port is taken.
    """
    if hosts.is_first:
        _call(hosts, seconds)
    else:
        _answer(hosts, seconds)


def _call(hosts: Hosts, seconds: float) -> None:
    end = time.monotonic() + seconds
    present: dict[int, socket.socket] = {}
    with _listening(hosts, min(seconds, PORT_SECONDS)) as server:
        while len(present) < len(hosts.names) - 1 and (left := end - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                caller, _ = server.accept()
                caller.settimeout(5)
                said = caller.recv(16).decode()
            except (TimeoutError, OSError, UnicodeDecodeError):
                continue
            if said.strip().isdigit() and 0 < int(said) < len(hosts.names):
                present[int(said)] = caller
            else:
                caller.close()  # not a process of this run
    missing = [number for number in range(1, len(hosts.names)) if number not in present]
    for caller in present.values():
        with caller, contextlib.suppress(OSError):  # it may have died meanwhile: JAX will miss it
            caller.sendall((json.dumps(missing) + "\n").encode())
    _check(hosts, missing, seconds)


def _listening(hosts: Hosts, seconds: float) -> socket.socket:
    """Returns a server at process 0's port, once no other program holds the port."""
    port, end = int(hosts.coordinator.rpartition(":")[2]), time.monotonic() + seconds
    while True:
        try:
            return socket.create_server(("", port), backlog=len(hosts.names))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            if time.monotonic() >= end:
                raise MissingHostsError(
                    f"port {port}, at which process 0 waits for the others, was in use for {seconds:g} s: by another"
                    f" run, or another process that is number 0 ({hosts.source}); end it, or choose another port"
                ) from None
        time.sleep(0.2)


def _answer(hosts: Hosts, seconds: float) -> None:
    host, _, port = hosts.coordinator.rpartition(":")
    end = time.monotonic() + seconds
    refused = ""
    while (left := end - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, int(port)), timeout=min(left, 10)) as connection:
                connection.sendall(f"{hosts.index}\n".encode())
                # Process 0 may have started its timeout later.
                connection.settimeout(left + seconds + 10)
                answer = connection.makefile().readline()
        except OSError as error:
            refused = f": {error}"
            time.sleep(0.2)
            continue
        if answer:
            return _check(hosts, json.loads(answer), seconds)
        time.sleep(0.2)
    raise MissingHostsError(
        f"process {hosts.index} ({hosts.names[hosts.index]}) could not reach {hosts.names[0]}, process 0, at"
        f" {hosts.coordinator} within {seconds:g} s{refused}"
    )


def _check(hosts: Hosts, missing: list[int], seconds: float) -> None:
    if missing:
        who = ", ".join(f"{hosts.names[number]} (process {number})" for number in missing)
        raise MissingHostsError(
            f"{len(missing)} of {len(hosts.names)} processes ({hosts.source}) did not start within {seconds:g} s: {who}"
            f"; look at their logs, or raise {START_TIMEOUT}"
        )


def leave() -> None:
    """Leaves the run once all other processes have called this function."""
    if among_others():
        import jax

        jax.distributed.shutdown()


def among_others() -> bool:
    """Returns whether this process has joined others and not left yet."""
    if "jax" not in sys.modules:
        return False
    import jax

    return jax.distributed.is_initialized()


def end_at_once(status: int) -> NoReturn:
    """Ends this process without waiting for the others, which JAX then ends."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def wait_for_dead_process(error: Exception) -> None:
    """Waits if an error of JAX's runtime may be caused by another process. If it is, JAX ends this process.

    Args:
        error: that error, or one that it led to: a save fails, too, if another process dies.
    """
    if not among_others():
        return
    import jax

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, jax.errors.JaxRuntimeError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None and not str(cause).startswith(_OWN_FAULTS):
        print(f"solo: {error}\nsolo: waiting to see whether another process died", file=sys.stderr, flush=True)
        time.sleep(HEARTBEAT_SECONDS + 30)


def first_then_others(first: Callable[[], T], others: Callable[[], T]) -> T:
    """Calls `first` in process 0, then `others` in the other processes.

    Raises:
        ConfigError: in the other processes, if `first` failed by a mistake of the user.
        OtherProcessError: in the other processes, if it failed otherwise; also a TransientError, if process 0's was.
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
        seconds: the others wait so long for it, at most.
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
        seconds: the first process that calls this waits so long for the last one, at most.
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
        topic: names the exchange.
        mine: the text; that of process 0 is sent.
        answer: returns a process's answer to that text.
        verdict: in process 0, returns an error for the answers by process, or None.

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
    """Tells the other processes how a task of process 0 ended, and waits until they know of an error.

    This process is about to end then, and with it JAX would end processes that have not been told.
    """
    import jax

    client = _client()
    if error is None:
        client.key_value_set(key, json.dumps(None))
        return
    kind = next(name for name, kinds, _ in _TOLD if isinstance(error, kinds))
    client.key_value_set(key, json.dumps([str(error) or type(error).__name__, kind]))
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        for number in range(1, jax.process_count()):
            client.blocking_key_value_get(f"{key}/told/{number}", TOLD_SECONDS * 1000)


def _raise_told(key: str, seconds: float = SET_UP_SECONDS) -> None:
    """Waits for the end of a task of process 0, and raises its error."""
    import jax

    client = _client()
    told = json.loads(client.blocking_key_value_get(key, int(seconds * 1000)))
    if told is None:
        return
    client.key_value_set(f"{key}/told/{jax.process_index()}", "yes")
    text, kind = told
    raise next(raised for name, _, raised in _TOLD if name == kind)(f"process 0: {text}")


def wait_for_all(seconds: float = SAVE_SECONDS) -> None:
    """Waits until every process has called this function."""
    if among_others():
        _client().wait_at_barrier(f"solo/all/{_count('all')}", int(seconds * 1000))


def stop_agreed(requested: bool) -> bool:
    """Returns whether all processes stop now. All of them call it equally often: after every step, for example.

    A single process stops if `requested`. With several processes JAX listens for SIGTERM: the first process that
    receives it makes all of them stop at the first call that none of them has passed.
    """
    if not among_others():
        return requested
    from jax.experimental import multihost_utils

    # JAX adds one to the highest number that any process has passed, so the numbers must be consecutive.
    return multihost_utils.reached_preemption_sync_point(_count("stop"))


_counts: dict[str, int] = {}


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
