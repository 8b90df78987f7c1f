"""Starts the processes of a run on this machine, and starts them again where that may help.

    python -m launch.supervisor --run-folder FOLDER [--processes N] [--devices N] [--logs FOLDER] -- COMMAND ...

SIGTERM is handed on; what the processes end with then is final. One process that ends badly ends them all: the first
status counts, the rest is its consequence.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

from launch.restarts import INTERRUPTED, Restarts, add_options, may_be_retried, newest_step

# What the others get once one has ended badly: after 42 all have saved and are on their way out.
_GRACE = {INTERRUPTED: 120.0}
_SHORT_GRACE = 10.0
_POLL = 0.1


class Group:
    """Processes of one run on this machine, joined by jax.distributed where there are several."""

    def __init__(self, command: Sequence[str], processes: int, devices: int, logs: Path | None):
        self._open = contextlib.ExitStack()
        port = _free_port()
        self._processes = [
            subprocess.Popen(
                command,
                env={**os.environ, **_environment(number, processes, devices, port)},
                **self._outputs(number, logs),
            )
            for number in range(processes)
        ]

    def terminate(self) -> None:
        """Hand SIGTERM on."""
        self._signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait until all have ended. Returns 0, or the first other status; a signal n is 128 + n."""
        with self._open:
            while not (status := self._first_bad()) and self._living():
                time.sleep(_POLL)
            end = time.monotonic() + _GRACE.get(status, _SHORT_GRACE)
            while self._living() and time.monotonic() < end:
                time.sleep(_POLL)
            self._signal(signal.SIGKILL)
            for process in self._processes:
                process.wait()
            return status

    def _outputs(self, number: int, logs: Path | None) -> dict[str, Any]:
        if logs is None:
            return {}
        logs.mkdir(parents=True, exist_ok=True)
        log: IO[bytes] = self._open.enter_context((logs / f"host-{number}.log").open("ab"))
        return {"stdout": log, "stderr": subprocess.STDOUT}

    def _first_bad(self) -> int:
        ended = [process.poll() for process in self._processes]
        # Of several that were found at once, an own fault explains the others' ends.
        bad = sorted((status for status in ended if status), key=lambda status: (status < 0, status))
        return (bad[0] if bad[0] > 0 else 128 - bad[0]) if bad else 0

    def _living(self) -> bool:
        return any(process.poll() is None for process in self._processes)

    def _signal(self, number: int) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)


def supervise(
    command: Sequence[str],
    run_folder: Path,
    restarts: Restarts,
    processes: int = 1,
    devices: int = 0,
    logs: Path | None = None,
) -> int:
    """Run until done, hopeless or told to stop. Returns 0, the status of a fault, 1 after a storm, 42 after SIGTERM.

    Args:
        command: what every process runs.
        run_folder: where its checkpoints appear.
        restarts: when starting again ends.
        processes: how many, joined over localhost.
        devices: virtual CPU devices of each; 0: whatever jax finds.
        logs: folder for the output of each, `host-<number>.log`; this process's own output unless given.
    """
    group: Group | None = None
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        if group is not None:
            group.terminate()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        while True:
            if refusal := restarts.start(newest_step(run_folder)):
                _say(f"given up: {refusal}")
                return 1
            group = Group(command, processes, devices, logs)
            if stopped:  # it came while they were being started
                group.terminate()
            status = group.wait()
            _say(f"ended with {status}; newest checkpoint {newest_step(run_folder)}")
            if stopped or not may_be_retried(status):
                return status
            _say(f"starting again in {restarts.wait:g} s")
            _sleep(restarts.wait, lambda: stopped)
            if stopped:
                return status
    finally:
        signal.signal(signal.SIGTERM, before)


def _environment(number: int, processes: int, devices: int, port: int) -> dict[str, str]:
    found: dict[str, str] = {}
    if devices:
        found |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    if processes > 1:
        found |= {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(number),
        }
    return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _sleep(seconds: float, stopped: Any) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not stopped():
        time.sleep(_POLL)


def _say(text: str) -> None:
    print(f"launch: {text}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(prog="python -m launch.supervisor", description=__doc__.split("\n", 1)[0])
    add_options(parser)
    parser.add_argument("--processes", type=int, default=1, help="joined over localhost")
    parser.add_argument("--devices", type=int, default=0, help="virtual CPU devices of each")
    parser.add_argument("--logs", type=Path, help="folder for host-<number>.log")
    parser.add_argument("--pid-file", type=Path, help="where to write this process's id")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    parsed = parser.parse_args(arguments)
    if parsed.pid_file:
        parsed.pid_file.parent.mkdir(parents=True, exist_ok=True)
        parsed.pid_file.write_text(f"{os.getpid()}\n")
    restarts = Restarts(parsed.max_restarts, parsed.max_idle_restarts)
    try:
        return supervise(parsed.command, parsed.run_folder, restarts, parsed.processes, parsed.devices, parsed.logs)
    finally:
        if parsed.pid_file:
            parsed.pid_file.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
