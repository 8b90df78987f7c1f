"""Makes the parts of a preparation in parallel on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence

from solo.config import ConfigError
from solo.data.store.progress import Amount, Watcher
from solo.data.store.work import MadePart, PartJob, prepare_part
from solo.data.store.workers import Died, Pool, available_cores, run_all


class PartError(RuntimeError):
    """A part failed for a reason other than a user error; the message names the part."""


class Maker:
    """Makes parts, first in this process and then on all cores. Use it as a context manager, which ends its processes.

    Args:
        workers: maximum number of processes; None: one per core.
        alone: seconds during which this process works alone. A small data set then needs no other processes, which
            take a second to start.
        watcher: shows the progress.
    """

    def __init__(self, workers: int | None, alone: float, watcher: Watcher) -> None:
        self._workers = workers or available_cores()
        # At least two: a pool of one runs in this process, but a part whose process died must run in another.
        self._pool: Pool[PartJob, MadePart] = Pool(prepare_part, max(2, self._workers))
        self._alone, self._watcher = alone, watcher

    def __enter__(self) -> Maker:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.__exit__(*error)

    def make(self, jobs: Sequence[PartJob], what: str) -> list[MadePart]:
        """Makes and returns the part of every job.

        A process that dies is replaced. Its part is retried once at the end, while nothing else runs.

        Raises:
            ConfigError: a part cannot be read.
            PartError: a process died twice while making the same part, or a reader raised an error of another kind.
                It is raised after all other parts are made.
            OSError: a file cannot be written.
        """
        made: dict[int, MadePart] = {}  # by id(), because jobs need not be hashable
        failed: list[tuple[PartJob, Exception | Died]] = []
        self._watcher.begin(what, len(jobs))
        try:
            self._run(self._first(jobs, made, failed), made, failed)
            died = [job for job, outcome in failed if isinstance(outcome, Died)]
            failed = [(job, outcome) for job, outcome in failed if not isinstance(outcome, Died)]
            if died:
                self._watcher.say(f"{died[0]}: its process died; it is tried again, alone")
                for job in died:
                    self._run([job], made, failed)
        finally:
            self._watcher.end()
        if failed:
            raise _part_error(failed)
        return [made[id(job)] for job in jobs]

    def _first(self, jobs: Sequence[PartJob], made: _Made, failed: _Failed) -> Sequence[PartJob]:
        """Makes parts in this process for `alone` seconds. Returns the remaining jobs."""
        end = time.monotonic() + self._alone
        for number, job in enumerate(jobs):
            several = self._workers > 1 and len(jobs) - number > 1
            if several and time.monotonic() >= end:
                return jobs[number:]
            for _, outcome in run_all(prepare_part, [job], 1, self._advance):
                self._take(job, outcome, made, failed)
        return []

    def _run(self, jobs: Sequence[PartJob], made: _Made, failed: _Failed) -> None:
        for job, outcome in self._pool.run(jobs, self._advance):
            self._take(job, outcome, made, failed)

    def _take(self, job: PartJob, outcome: MadePart | Exception | Died, made: _Made, failed: _Failed) -> None:
        """Records the outcome of a job. Raises an error at once if it would affect other parts too."""
        if isinstance(outcome, ConfigError | OSError):
            raise outcome
        if isinstance(outcome, MadePart):
            made[id(job)] = outcome
        else:
            failed.append((job, outcome))
        self._watcher.advance(Amount(), 1)

    def _advance(self, job: PartJob, amount: Amount) -> None:
        self._watcher.advance(amount)


_Made = dict[int, MadePart]
_Failed = list[tuple[PartJob, Exception | Died]]


def _part_error(failed: _Failed) -> PartError:
    job, outcome = failed[0]
    why = str(outcome) if isinstance(outcome, Died) else f"{type(outcome).__name__}: {outcome}"
    more = f"; {len(failed) - 1:,} more parts failed" if len(failed) > 1 else ""
    error = PartError(f"{job}: {why}{more}; finished parts are kept")
    error.__cause__ = outcome if isinstance(outcome, Exception) else None
    return error
