"""Makes the parts of a preparation on the cores of this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence

from solo.config import ConfigError
from solo.data.store.progress import Amount, Watcher
from solo.data.store.work import MadePart, PartJob, Tell, prepare_part
from solo.data.store.workers import Died, available_cores, run_all


class PartError(RuntimeError):
    """A part could not be made, by a fault that is not the user's; the message names it."""


class Maker:
    """Makes parts, on one core for a moment and then on all.

    Args:
        workers: processes at most; None: one for each core.
        alone: seconds during which this process works alone. Little data needs no other processes, which take a second
            to start.
        watcher: shows the progress.
    """

    def __init__(self, workers: int | None, alone: float, watcher: Watcher) -> None:
        self._workers = workers or available_cores()
        self._alone, self._watcher = alone, watcher

    def make(self, jobs: Sequence[PartJob], what: str) -> list[MadePart]:
        """Returns the part of every job.

        A process that dies is replaced. Its part is tried once more at the end, with nothing else running.

        Raises:
            ConfigError: a part cannot be read.
            PartError: a process died twice over a part, or a reader raised an error of another kind.
            OSError: a file cannot be written.
        """
        made: dict[int, MadePart] = {}  # by identity: jobs need not be hashable
        died: list[PartJob] = []
        self._watcher.begin(what, len(jobs))
        try:
            self._run(self._first(jobs, made), made, died)
            if died:
                self._watcher.say(f"{died[0]}: its process died; it is made again, alone")
                again, died = died, []
                for job in again:
                    self._run([job], made, died, final=True)
        finally:
            self._watcher.end()
        return [made[id(job)] for job in jobs]

    def _first(self, jobs: Sequence[PartJob], made: dict[int, MadePart]) -> Sequence[PartJob]:
        """Makes parts in this process for a moment. Returns the jobs that are left."""
        end = time.monotonic() + self._alone
        for number, job in enumerate(jobs):
            several = self._workers > 1 and len(jobs) - number > 1
            if several and time.monotonic() >= end:
                return jobs[number:]
            made[id(job)] = _raised(job, _outcome_here(job, self._watcher.advance))
            self._watcher.advance(Amount(), 1)
        return []

    def _run(
        self, jobs: Sequence[PartJob], made: dict[int, MadePart], died: list[PartJob], final: bool = False
    ) -> None:
        workers = 2 if final else max(2, min(self._workers, len(jobs)))  # one would be this process itself
        for job, outcome in run_all(prepare_part, jobs, workers, lambda _, amount: self._watcher.advance(amount)):
            if isinstance(outcome, Died) and not final:
                died.append(job)
                continue
            made[id(job)] = _raised(job, outcome)
            self._watcher.advance(Amount(), 1)


def _outcome_here(job: PartJob, tell: Tell) -> MadePart | Exception:
    try:
        return prepare_part(job, tell)
    except Exception as error:
        return error


def _raised(job: PartJob, outcome: MadePart | Exception | Died) -> MadePart:
    """Returns the part, or raises what went wrong."""
    if isinstance(outcome, MadePart):
        return outcome
    if isinstance(outcome, Died):
        raise PartError(f"{job}: {outcome}; the finished parts are kept")
    if isinstance(outcome, ConfigError | OSError):
        raise outcome
    raise PartError(f"{job}: {type(outcome).__name__}: {outcome}") from outcome
