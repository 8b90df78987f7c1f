"""At the start of a run, every process connects to process 0, before JAX makes the processes wait for each other.

If a process is missing, JAX aborts with SIGABRT and does not say which one. This roll call names it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import time

from solo.training.hosts import Hosts

START_TIMEOUT = "SOLO_START_TIMEOUT_SECONDS"
# Processes of an attempt that was killed may hold the port for a while.
PORT_SECONDS = 60


class MissingHostsError(RuntimeError):
    """Some processes of the run did not start; the message names them."""


def roll_call(hosts: Hosts, seconds: float) -> None:
    """Waits until every process has connected to process 0, at the port that JAX uses right afterwards.

    Raises:
        MissingHostsError: some processes did not connect in time, process 0 could not be reached, or its port is in
            use.
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
        with caller, contextlib.suppress(OSError):  # it may have died meanwhile; JAX will notice
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
