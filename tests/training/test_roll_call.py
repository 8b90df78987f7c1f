"""The roll call, between threads; tests/launch/test_processes.py runs real processes."""

import contextlib
import socket
import threading
import time

import pytest

from solo.training.hosts import Hosts
from solo.training.roll_call import MissingHostsError, roll_call

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
