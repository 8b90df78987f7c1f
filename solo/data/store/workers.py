"""A pool of processes that make parts. If a process dies, only its own part is lost.

Processes are spawned, never forked, because threads and the JAX runtime do not survive a fork. They exit when their
parent process exits, even if it is killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")
Tell = Callable[[Any], None]
Task = Callable[[Job, Tell], Result]

# Each process uses one core. Library threads would only compete with the other processes.
_ONE_CORE = {
    **dict.fromkeys(("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "TOKENIZERS_PARALLELISM": "false",
}
_PROGRESS, _RESULT, _ERROR = range(3)


@dataclass(frozen=True)
class Died:
    """The process of a job died before the job was finished."""

    status: int  # as in `multiprocessing.Process.exitcode`

    def __str__(self) -> str:
        if self.status == -signal.SIGKILL:
            return "its process was killed, as systems do that run out of memory: try fewer --workers"
        if self.status < 0:
            return f"its process was ended by {_signal_name(-self.status)}"
        return f"its process ended with status {self.status}"


Outcome = tuple[Job, Result | Exception | Died]


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_all(
    task: Task[Job, Result], jobs: Iterable[Job], workers: int, progress: Callable[[Job, Any], None]
) -> Iterator[Outcome[Job, Result]]:
    """Runs a task for every job, and yields each job with its outcome as soon as it is known.

    Args:
        task: a module-level function, called with a job and a function that reports progress.
        jobs: picklable jobs, taken one at a time, in order, when a process is free.
        workers: number of processes; with 1, the task runs in this process.
        progress: called with each job and the progress that its task reports.

    Yields:
        The job, and its result, the exception that it raised, or how its process died.
    """
    if workers <= 1:
        for job in jobs:
            yield job, _run_here(task, job, partial(progress, job))
        return
    with Pool(task, workers) as pool:
        yield from pool.run(jobs, progress)


def _run_here(task: Task[Job, Result], job: Job, tell: Tell) -> Result | Exception:
    try:
        return task(job, tell)
    except Exception as error:
        return error


class Pool(Generic[Job, Result]):
    """A pool of processes, each with a pipe. A process is started, or replaced if it died, when it is needed.

    Args:
        task: see `run_all`.
        workers: maximum number of processes.
    """

    def __init__(self, task: Task[Job, Result], workers: int) -> None:
        self._task, self._workers = task, workers
        self._spawn = multiprocessing.get_context("spawn")
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, tuple[_Worker, Job]] = {}

    def __enter__(self) -> Pool[Job, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        """Stops all processes, even if they are busy."""
        for worker in [*self._idle, *(worker for worker, _ in self._busy.values())]:
            worker.stop()

    def run(self, jobs: Iterable[Job], progress: Callable[[Job, Any], None]) -> Iterator[Outcome[Job, Result]]:
        """Yields each job with its outcome; see `run_all`. Calls must not overlap."""
        waiting = iter(jobs)
        more = True
        while more or self._busy:
            while more and len(self._busy) < self._workers:
                try:
                    job = next(waiting)
                except StopIteration:
                    more = False
                    break
                self._start(job)
            for connection in wait([*self._busy]) if self._busy else ():
                assert isinstance(connection, Connection)
                outcome = self._hear(connection, progress)
                if outcome is not None:
                    yield outcome

    def _start(self, job: Job) -> None:
        worker = self._idle.pop() if self._idle else _Worker(self._spawn, self._task)
        with suppress(BrokenPipeError):  # the process died while idle; `_hear` notices
            worker.connection.send(job)
        self._busy[worker.connection] = worker, job

    def _hear(self, connection: Connection, progress: Callable[[Job, Any], None]) -> Outcome[Job, Result] | None:
        worker, job = self._busy[connection]
        try:
            kind, value = connection.recv()
        except (EOFError, ConnectionResetError):
            del self._busy[connection]
            return job, Died(worker.end())
        if kind == _PROGRESS:
            progress(job, value)
            return None
        del self._busy[connection]
        self._idle.append(worker)
        return job, value


class _Worker:
    """A worker process and our end of its pipe."""

    def __init__(self, context: Any, task: Task[Any, Any]) -> None:
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, task), daemon=True)
        with _without_main(), _without_interrupts():
            self._process.start()
        theirs.close()  # otherwise the pipe would outlive the process

    def end(self) -> int:
        """Waits for a process that has closed its pipe. Returns its exit status."""
        self._process.join()
        self.connection.close()
        return int(self._process.exitcode or 0)

    def stop(self) -> None:
        """Stops the process, even if it is busy."""
        self._process.kill()
        self._process.join()
        self.connection.close()


@contextmanager
def _without_main() -> Iterator[None]:
    """Keeps new processes from importing the main module, which they do not need.

    Otherwise a script would run again in each process and fail, unless it has an `if __name__ == "__main__"` guard.
    """
    main = sys.modules["__main__"]
    hidden: dict[str, Any] = {name: vars(main).pop(name) for name in ("__file__", "__spec__") if name in vars(main)}
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(hidden)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Blocks Ctrl-C in new processes, even before they can ignore it. Only the parent process receives it."""
    resource_tracker.ensure_running()  # if it started later, it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, task: Task[Any, Any]) -> None:
    """Runs jobs until the pipe is closed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name, value in _ONE_CORE.items():
        os.environ.setdefault(name, value)

    def tell(value: Any) -> None:
        connection.send((_PROGRESS, value))

    while True:
        try:
            job = connection.recv()
            answer = _answer(task, job, tell)
            connection.send(answer)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _answer(task: Task[Any, Any], job: Any, tell: Tell) -> tuple[int, Any]:
    try:
        return _RESULT, task(job, tell)
    except Exception as error:
        error.add_note(traceback.format_exc())
        return _ERROR, _picklable(error)


def _picklable(error: Exception) -> Exception:
    import pickle  # as multiprocessing does

    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
