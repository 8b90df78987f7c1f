"""Runs inputs in processes that are watched: one that hangs or dies names its input, and is replaced."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tests.fuzz.cases import Case, run
from tests.fuzz.checks import Found

_MEMORY = 12 << 30  # bytes of address space
_START_SECONDS = 120.0


def _work(connection: Connection, folder: Path, tokenizer: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for descriptor in (1, 2):  # libraries report progress, and what they think of the inputs
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    run(Case("llava-lines", 0), folder, tokenizer)  # imports what is slow to import
    connection.send(None)
    while (case := connection.recv()) is not None:
        connection.send(run(case, folder, tokenizer))


class _Worker:
    def __init__(self, folder: Path, tokenizer: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, folder, tokenizer), daemon=True)
        self.process.start()
        theirs.close()
        self.case: Case | None = None
        self.ready, self.since = False, time.monotonic()

    def give(self, case: Case) -> None:
        self.case, self.since = case, time.monotonic()
        self.connection.send(case)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def run_all(
    cases: Sequence[Case], folder: Path, tokenizer: Path, workers: int, seconds: float
) -> Iterator[tuple[Case, Found]]:
    """Yields every input with what was found.

    An input that takes longer than `seconds` is run once more, since the machine may have been busy.
    """
    waiting, tried = list(reversed(cases)), set[Case]()
    slots: dict[int, _Worker] = {}
    try:
        while waiting or any(worker.case for worker in slots.values()):
            for slot in range(workers):
                if slot not in slots and waiting:
                    slots[slot] = _Worker(folder / f"{slot}", tokenizer)
            answering = {worker.connection: slot for slot, worker in slots.items()}
            for connection in wait(list(answering), timeout=0.2):
                slot = answering[connection]  # type: ignore[index]
                worker = slots[slot]
                try:
                    found: Any = worker.connection.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    del slots[slot]
                    if worker.case is None:
                        raise RuntimeError("a process of the fuzzer cannot start") from None
                    yield worker.case, Found(faults=[f"the process died, with status {worker.process.exitcode}"])
                    worker.stop()
                    continue
                if worker.case is not None:
                    yield worker.case, found
                worker.case, worker.ready = None, True
            for slot, worker in list(slots.items()):
                if worker.ready and worker.case is None and waiting:
                    worker.give(waiting.pop())
                elif time.monotonic() - worker.since > (seconds if worker.case else _START_SECONDS) and (
                    worker.case or not worker.ready
                ):
                    worker.stop()
                    del slots[slot]
                    if worker.case is None:
                        raise RuntimeError("a process of the fuzzer does not start")
                    if worker.case in tried:
                        yield worker.case, Found(faults=[f"it takes more than {seconds:g} s"])
                    else:
                        tried.add(worker.case)
                        waiting.append(worker.case)
    finally:
        for worker in slots.values():
            worker.stop()
