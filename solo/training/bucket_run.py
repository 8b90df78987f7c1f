"""The files of a run whose folder is in a bucket.

Orbax writes checkpoints into the bucket. All other files are small, and some are appended to, which object stores do
not support. They are therefore written on this machine, in `RunFolder.work`, and copied to the bucket periodically and
with every checkpoint.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from solo.files import is_remote, json_line, read_json_lines, write_whole
from solo.locks import is_held
from solo.storage import Bucket, BucketError, side_by_side
from solo.training.run_folder import RunFolder
from solo.training.run_lock import RunLock, living_holder

STORE_SECONDS = 30.0
PATIENCE_SECONDS = 300.0  # retries if the network fails when a checkpoint is due
_LARGEST_SHARE = 0.05  # of the time may be spent on copying files in the background
_NOT_COPIED = ("run.lock", "tensorboard")
_LINES = ".jsonl"

_log = logging.getLogger(__name__)


def fetch(run: RunFolder, lines: bool = True, held: bool = False) -> None:
    """Copies the files of a run from its bucket. Does nothing while a process of this machine trains the run.

    Files in the bucket replace local ones, with one exception: a file of lines that was only appended to since it was
    copied to the bucket is kept.

    Args:
        run: the run.
        lines: whether to copy the files of lines and the report, too. Reading config and tokenizer does not need them.
        held: whether this process trains the run.

    Raises:
        BucketError: the bucket cannot be reached.
    """
    bucket = Bucket(str(run.path))
    bucket.connect()
    if not held and is_held(run.lock_file):
        return
    names = [name for name in bucket.sizes(deep=False) if _is_copied(name)]
    run.work.mkdir(parents=True, exist_ok=True)
    _clear(run.work, names)
    if not lines:
        names = [name for name in names if not name.endswith((_LINES, ".html"))]
    side_by_side(partial(_fetch, bucket, run.work), names)


def _is_copied(name: str) -> bool:
    return not name.startswith(".") and name.split("/")[0] not in _NOT_COPIED


def _clear(work: Path, names: list[str]) -> None:
    """Removes copies of files that are no longer in the bucket; all copies if the bucket has no run."""
    for path in work.iterdir():
        if path.name == "run.lock":
            continue
        if "config.yaml" not in names and path.is_dir():
            shutil.rmtree(path)
        elif path.is_file() and path.name not in names and not ("config.yaml" in names and path.suffix == _LINES):
            path.unlink(missing_ok=True)


def _fetch(bucket: Bucket, work: Path, name: str) -> None:
    place = work / name
    partial_copy = place.with_name(f".{name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        bucket.download(name, partial_copy)
        if not (name.endswith(_LINES) and _extends(place, partial_copy)):
            partial_copy.replace(place)
    finally:
        partial_copy.unlink(missing_ok=True)


def _extends(path: Path, other: Path) -> bool:
    """Returns whether a file begins with the content of another one."""
    if not path.exists() or path.stat().st_size < other.stat().st_size:
        return False
    with path.open("rb") as mine, other.open("rb") as theirs:
        while expected := theirs.read(1 << 20):
            if mine.read(len(expected)) != expected:
                return False
    return True


class Store:
    """Stores the files of a run durably. Those of a run in a local folder are stored when they are synced."""

    def store(self) -> None:
        """Stores the current content of all files.

        Raises:
            CheckpointError: they cannot be stored, or another process has taken over the run.
        """


@contextmanager
def storing(run: RunFolder, tell: Callable[[str], None], lock: RunLock | None = None) -> Iterator[Store]:
    """Yields the store of a run. While the context is active, files are copied to the bucket periodically.

    At its end, all files are stored.

    Args:
        run: the run's folder for this process.
        tell: called with messages for the user.
        lock: lock of the run in its bucket, if this process holds it.

    Raises:
        CheckpointError: see `Store.store`.
    """
    if not is_remote(run.path):
        yield Store()
        return
    store = BucketStore(run, tell, lock)
    try:
        yield store
    except BaseException:
        store.stop()
        try:
            store.push()
        except OSError as error:  # the first error is the one to raise
            tell(f"the newest lines of the run are only in {run.work}: {error}")
        raise
    store.stop()
    store.store()


@contextmanager
def adding_results(run: RunFolder, tell: Callable[[str], None]) -> Iterator[None]:
    """On exit, stores the files of a run in a bucket, including results that were added within the context.

    If another process trains the run, they are not stored, because that process would overwrite them.
    """
    yield
    if not is_remote(run.path) or run.process or is_held(run.lock_file):
        return
    bucket = Bucket(str(run.path))
    if (other := living_holder(bucket)) is not None:
        tell(f"{other} trains {run.path}, so the results are only in {run.work}")
        return
    BucketStore(run, tell, background=False).push()


class BucketStore(Store):
    """Copies changed files of `work` to the bucket. Thread-safe.

    Args:
        run: the run's folder for this process.
        tell: called with messages for the user.
        lock: lock of the run, if this process holds it.
        background: whether to copy periodically until `stop` is called.
    """

    def __init__(
        self, run: RunFolder, tell: Callable[[str], None], lock: RunLock | None = None, background: bool = True
    ):
        self._run, self._tell, self._run_lock = run, tell, lock
        self._bucket = Bucket(str(run.path))
        self._copied: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="run files", daemon=True)
        if background:
            self._thread.start()

    def store(self) -> None:
        """See `Store`. Retries for some minutes."""
        from solo.training.checkpoint import BucketFailsError, CheckpointError  # imports JAX

        end, wait = time.monotonic() + PATIENCE_SECONDS, 1.0
        while True:
            if self._run_lock is not None and (thief := self._run_lock.lost_to()):
                raise CheckpointError(f"{thief} has taken over {self._run.path}; this process saves nothing more")
            try:
                self.push()
                return
            except BucketError as error:
                if time.monotonic() + wait > end:
                    raise BucketFailsError(
                        f"the metrics cannot be stored, and no checkpoint is saved without them: {error}"
                    ) from None
                _log.warning("%s; trying again in %.0f s", error, wait)
            time.sleep(wait)
            wait = min(2 * wait, 60.0)

    def push(self) -> None:
        """Copies what has changed since the last call. Raises BucketError."""
        with self._lock:
            for path in self._files():
                facts = path.stat()
                name, seen = path.relative_to(self._run.work).as_posix(), (facts.st_size, facts.st_mtime_ns)
                if self._copied.get(name) == seen:
                    continue
                if path.suffix == _LINES:
                    self._push_lines(name, path, facts.st_size)
                else:
                    self._bucket.upload(name, path)
                self._copied[name] = seen

    def stop(self) -> None:
        """Ends the copying in the background."""
        self._stopped.set()
        self._thread.join()

    def _files(self) -> list[Path]:
        work, process = self._run.work, self._run.process
        if process:  # all other files are those of process 0
            mine = [*work.glob(f"*/*-process-{process}/**/*"), self._run.quarantine_file]
            return [path for path in mine if path.is_file()]
        found = (Path(folder) / name for folder, _, names in os.walk(work) for name in names)
        return sorted(path for path in found if _is_copied(path.relative_to(work).as_posix()) and path.name[0] != ".")

    def _push_lines(self, name: str, path: Path, size: int) -> None:
        """Uploads the current lines of a file, which may grow meanwhile."""
        copy = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
        try:
            with path.open("rb") as file, copy.open("wb") as to:
                while size > 0 and (data := file.read(min(size, 1 << 20))):
                    to.write(data)
                    size -= len(data)
            self._bucket.upload(name, copy)
        finally:
            copy.unlink(missing_ok=True)

    def _repeat(self) -> None:
        wait, failed = STORE_SECONDS, False
        while not self._stopped.wait(wait):
            began = time.monotonic()
            try:
                self.push()
                if failed:
                    self._tell(f"the files of the run are stored in {self._run.path} again")
                failed = False
            except Exception as error:  # this thread must not end; `store` raises what lasts
                if not failed:
                    self._tell(f"the files of the run are not stored for now: {error}")
                failed = True
            wait = max(STORE_SECONDS, (time.monotonic() - began) / _LARGEST_SHARE)


def gather_quarantine(run: RunFolder) -> None:
    """Moves the entries that other processes of an earlier attempt quarantined to the run's own file."""
    parts = [path for path in run.work.glob("quarantine-*.jsonl") if path.stem.removeprefix("quarantine-").isdigit()]
    if not parts:
        return
    lines, _ = read_json_lines(run.quarantine_file)
    for part in parts:
        lines += [line for line in read_json_lines(part)[0] if line not in lines]
    write_whole(run.quarantine_file, "".join(map(json_line, lines)))
    bucket = Bucket(str(run.path))
    bucket.upload(run.quarantine_file.name, run.quarantine_file)
    for part in parts:
        bucket.remove(part.name)
        part.unlink()
