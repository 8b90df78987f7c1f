"""The roll call, between threads; tests/launch/test_processes.py runs real processes."""

import argparse
import contextlib
import socket
import threading
import time

import jax
import pytest

from solo import cli
from solo.config import ConfigError
from solo.statuses import FAILED, MISTAKE, TRANSIENT, TransientError
from solo.training import distributed
from solo.training.checkpoint import CheckpointError
from solo.training.distributed import MissingHostsError, first_then_others, roll_call, stop_agreed, wait_for_all
from solo.training.hosts import Hosts

NAMES = ("north", "east", "south", "west")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_for_port(port: int) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)


def call(*present: int, seconds: float = 2.0, noise: tuple[bytes, ...] = ()) -> dict[int, str]:
    """Returns the error of each process that connects, or None."""
    port, heard = free_port(), {}

    def take_part(index: int) -> None:
        try:
            roll_call(Hosts(NAMES, index, f"127.0.0.1:{port}", None, "a test"), seconds)
            heard[index] = ""
        except MissingHostsError as error:
            heard[index] = str(error)

    threads = [threading.Thread(target=take_part, args=(index,)) for index in present]
    for thread in threads:
        thread.start()
    for said in noise:
        wait_for_port(port)
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(said)
    for thread in threads:
        thread.join(30)
    assert len(heard) == len(present)
    return heard


def test_the_roll_call_ends_when_all_processes_have_connected() -> None:
    assert call(3, 1, 2, 0) == dict.fromkeys(range(4), "")


def test_missing_processes_are_named_to_all_others() -> None:
    heard = call(0, 2)
    assert set(heard) == {0, 2}
    for text in heard.values():
        assert "2 of 4 processes (a test) did not start within 2 s: east (process 1), west (process 3)" in text


def test_without_process_0_each_says_where_it_looked() -> None:
    (text,) = call(2, seconds=1).values()
    assert "process 2 (south) could not reach north, process 0, at 127.0.0.1:" in text
    assert "refused" in text


def test_other_connections_are_ignored() -> None:
    """A port scanner is not a process of the run."""
    heard = call(0, 1, 2, noise=(b"GET / HTTP/1.1\r\n", b"99\n", b"\xff\xfe", b""))
    assert "1 of 4 processes" in heard[0]
    assert "west (process 3)" in heard[0]


def test_a_port_that_an_earlier_attempt_holds_is_waited_for() -> None:
    with socket.create_server(("", 0)) as held:
        hosts = [Hosts(NAMES[:2], index, f"127.0.0.1:{held.getsockname()[1]}", None, "a test") for index in range(2)]
        with pytest.raises(MissingHostsError, match=r"port \d+, .* was in use for 0\.3 s: by another run"):
            roll_call(hosts[0], 0.3)
        first = threading.Thread(target=roll_call, args=(hosts[0], 20))
        first.start()
        time.sleep(0.3)
    roll_call(hosts[1], 20)
    first.join(20)
    assert not first.is_alive()


def test_a_single_process_waits_for_nothing() -> None:
    wait_for_all()
    assert first_then_others(lambda: 1, lambda: 2) == 1
    assert [stop_agreed(requested) for requested in (False, True)] == [False, True]


def test_a_save_that_another_process_broke_waits_for_the_end_of_the_run(monkeypatch, capsys) -> None:
    """Its own status, 1, would tell the launcher that a restart does not help."""
    waits: list[float] = []
    monkeypatch.setattr(distributed, "among_others", lambda: True)
    monkeypatch.setattr(distributed.time, "sleep", waits.append)
    for cause, waited in (
        (jax.errors.JaxRuntimeError("UNAVAILABLE: a task died"), 1),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no memory"), 0),
        (OSError(28, "No space left on device"), 0),
    ):
        waits.clear()
        try:
            raise CheckpointError("could not save") from cause
        except CheckpointError as error:
            distributed.wait_for_dead_process(error)
        assert len(waits) == waited, cause
    assert "solo: could not save\nsolo: waiting to see whether another process died" in capsys.readouterr().err


class Values:
    """Stands in for the client of the coordination service, for one process after the other."""

    def __init__(self) -> None:
        self.held: dict[str, str] = {}

    def key_value_set(self, key: str, value: str) -> None:
        self.held[key] = value

    def blocking_key_value_get(self, key: str, milliseconds: int) -> str:
        return self.held[key]


@pytest.mark.parametrize(
    ("error", "status"),
    [(ConfigError("wrong"), MISTAKE), (TransientError("the bucket fails"), TRANSIENT), (OSError("no disk"), FAILED)],
)
def test_the_other_processes_end_with_the_status_of_the_first(monkeypatch, error: Exception, status: int) -> None:
    """Whichever of them ends first, the launcher restarts, or not."""
    values = Values()
    monkeypatch.setattr(distributed, "_client", lambda: values)
    monkeypatch.setattr(jax, "process_count", lambda: 1)
    distributed._tell("key", error)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(Exception, match=f"process 0: {error}") as raised:
        distributed._raise_told("key")

    def verb(parsed: argparse.Namespace) -> int:
        raise raised.value

    assert cli._run(argparse.Namespace(verb=verb)) == status
