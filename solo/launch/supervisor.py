"""Starts the processes of a run on this machine, and restarts them if that may help.

    python -m solo.launch.supervisor --run-folder FOLDER [--processes N] [--devices N] [--logs FOLDER] -- COMMAND ...

Secrets are passed over standard input: `--secret NAME` reads the variable's value from there, up to a NUL.
SIGTERM is forwarded to the processes, which are then not restarted. Ctrl-C does the same, so that the run is saved; a
second Ctrl-C ends the processes immediately. If one process fails, all are ended. The exit status is that of the first
failure, because the others are its consequence.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

from solo.launch import pid_file
from solo.launch.restarts import Restarts, add_options, newest_step
from solo.statuses import INTERRUPTED, MISTAKE, may_be_retried

# Seconds that the other processes have to exit after one has failed. After 42, all have saved and are about to exit.
_GRACE = {INTERRUPTED: 120.0}
_SHORT_GRACE = 10.0
_POLL = 0.1


class Group:
    """Processes of one run on this machine, joined by jax.distributed if there are several."""

    def __init__(self, command: Sequence[str], processes: int, devices: int, logs: Path | None):
        self._open = contextlib.ExitStack()
        port = _free_port()
        self._processes = [
            subprocess.Popen(
                command,
                env={**os.environ, **_environment(number, processes, devices, port)},
                start_new_session=True,  # otherwise, Ctrl-C in a terminal would reach it, too
                **self._outputs(number, logs),
            )
            for number in range(processes)
        ]

    @property
    def pids(self) -> list[int]:
        """The ids of the processes."""
        return [process.pid for process in self._processes]

    def signal(self, number: int) -> None:
        """Pass a signal on to the processes that have not ended."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self, until: float = float("inf")) -> int:
        """Wait until all have ended. At time `until`, tell them to end. Returns 0, or the first nonzero status.

        Signal n is 128 + n.
        """
        with self._open:
            told = False
            while not (status := self._first_bad()) and self._living():
                time.sleep(_POLL)
                if not told and time.monotonic() >= until:
                    self.signal(signal.SIGTERM)
                    told = True
            end = time.monotonic() + _GRACE.get(status, _SHORT_GRACE)
            while self._living() and time.monotonic() < end:
                time.sleep(_POLL)
            for process in self._processes:
                with contextlib.suppress(ProcessLookupError):  # its data workers may outlive it
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            return status

    def _outputs(self, number: int, logs: Path | None) -> dict[str, Any]:
        if logs is None:
            return {}
        logs.mkdir(parents=True, exist_ok=True)
        log: IO[bytes] = self._open.enter_context((logs / f"host-{number}.log").open("ab"))
        return {"stdout": log, "stderr": subprocess.STDOUT}

    def _first_bad(self) -> int:
        return cause([process.poll() for process in self._processes])

    def _living(self) -> bool:
        return any(process.poll() is None for process in self._processes)


def cause(ended: Sequence[int | None]) -> int:
    """Returns the exit status that caused the failures seen at one time, or 0 if there is none. Signal n is 128 + n.

    Args:
        ended: each process's status as returned by `subprocess`; None if it has not ended.

    No process kills another one, so SIGKILL comes from outside, and the other statuses are its consequence. Otherwise,
    an exit status is the cause of deaths by signal, for example because JAX aborts if another process is gone.
    """
    bad = sorted((status for status in ended if status), key=lambda status: (status != -signal.SIGKILL, status < 0))
    return (bad[0] if bad[0] > 0 else 128 - bad[0]) if bad else 0


def supervise(
    command: Sequence[str],
    run_folder: Path,
    restarts: Restarts,
    processes: int = 1,
    devices: int = 0,
    logs: Path | None = None,
    max_seconds: float = 0,
) -> int:
    """Run a command until it is done, fails permanently, or is told to stop.

    Args:
        command: the command of every process.
        run_folder: the run's folder, for its checkpoints.
        restarts: the limits of restarts.
        processes: number of processes, joined over localhost.
        devices: virtual CPU devices of each process; 0: the devices that JAX finds.
        logs: folder for `host-<number>.log`; default: this process's own output.
        max_seconds: time after which the run is told to save and to end permanently; 0: no limit.

    Returns:
        0 if the run is done; the status of a fault; 1 after too many restarts or `max_seconds`; 42 after SIGTERM or
        Ctrl-C.
    """
    group: Group | None = None
    stopped = False
    end = time.monotonic() + max_seconds if max_seconds else float("inf")

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        again, stopped = stopped, True
        if group is not None:
            group.signal(signal.SIGINT if again and number == signal.SIGINT else signal.SIGTERM)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        while True:
            if refusal := restarts.start(newest_step(run_folder)):
                _say(f"giving up: {refusal}")
                return 1
            group = Group(command, processes, devices, logs)
            if stopped:  # SIGTERM came during the start
                group.signal(signal.SIGTERM)
            status = group.wait(end)
            _say(f"ended with {status}; newest checkpoint {newest_step(run_folder)}")
            if status and time.monotonic() >= end and not stopped:
                _say(f"giving up: it ran for {max_seconds:g} s, the limit of this launch")
                return 1
            if stopped or not may_be_retried(status):
                return status
            _say(f"restarting in {restarts.wait:g} s")
            _sleep(restarts.wait, lambda: stopped)
            if stopped:
                return status
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    """Run the command line; see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m solo.launch.supervisor", description=__doc__.split("\n", 1)[0])
    add_options(parser)
    parser.add_argument("--processes", type=int, default=1, help="number of processes, joined over localhost")
    parser.add_argument("--devices", type=int, default=0, help="virtual CPU devices of each process")
    parser.add_argument("--logs", type=Path, help="folder for host-<number>.log")
    parser.add_argument("--pid-file", type=Path, help="PID file, which only one supervisor can hold at a time")
    parser.add_argument(
        "--max-seconds", type=float, default=0, help="permanently end the run after this time; 0: never"
    )
    parser.add_argument("--secret", action="append", default=[], metavar="NAME", help="read its value from stdin")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    parsed = parser.parse_args(arguments)
    if parsed.processes < 1:
        parser.error(f"--processes must be at least 1, found {parsed.processes}")
    read_secrets(parsed.secret)
    if shutil.which(parsed.command[0]) is None:
        _say(f"not started: {parsed.command[0]} is not a program")
        return MISTAKE
    restarts = Restarts(parsed.max_restarts, parsed.max_idle_restarts)
    with contextlib.ExitStack() as stack:
        if parsed.pid_file and not stack.enter_context(pid_file.hold(parsed.pid_file)):
            _say(f"not started: {pid_file.holder(parsed.pid_file) or 'another process'} runs it already")
            return MISTAKE
        return supervise(
            parsed.command,
            parsed.run_folder,
            restarts,
            parsed.processes,
            parsed.devices,
            parsed.logs,
            parsed.max_seconds,
        )


def read_secrets(names: Sequence[str]) -> None:
    """Sets environment variables to values from standard input, each of which ends with a NUL.

    Other users of the host can see arguments, and Docker keeps them, so secrets are neither arguments nor files.
    """
    if names:
        values = sys.stdin.buffer.read().split(b"\0")[:-1]
        if len(values) != len(names):
            raise SystemExit(f"launch: expected {len(names)} secrets on standard input, found {len(values)}")
        for name, value in zip(names, values, strict=True):
            os.environb[name.encode()] = value


if __name__ == "__main__":
    sys.exit(main())
