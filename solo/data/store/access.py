"""Locks of a data folder: only one preparation at a time, and none that changes data while a run reads it.

    <data.folder>/.locks/prepare.lock       exclusive for a preparation; shared by the hosts of one preparation
    <data.folder>/.locks/<content>.lock     shared by runs that read a source or the tokenizer; exclusive for a
                                            preparation that changes it

On a file system without locks there is no protection, and `report` is told so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from solo.config import Config, ConfigError
from solo.locks import held_by, hold

TOKENIZER = "tokenizer"
PATIENCE_SECONDS = 60.0  # seconds to wait for another host, which needs the lock only for a moment
Report = Callable[[str], None]


class BusyError(ConfigError):
    """Another process holds a lock; the message names it."""


def source_content(name: str) -> str:
    """Returns the lock name of a source."""
    return f"source-{name}"


def contents(config: Config) -> list[str]:
    """Returns the lock names of all data that a run reads."""
    return [TOKENIZER, *map(source_content, config.data.sources)]


@contextmanager
def preparing(folder: Path, report: Report, shared: bool = False) -> Iterator[None]:
    """Keeps other preparations out of a data folder inside the context.

    Args:
        folder: `data.folder`.
        report: called with a line if the file system has no locks.
        shared: allow other hosts of the same preparation.

    Raises:
        BusyError: another process is preparing the folder.
    """
    path = folder / ".locks" / "prepare.lock"
    with _held(path, report, shared) as held:
        if not held:
            raise BusyError(
                f"{folder} is being prepared by {held_by(path)}; wait until it ends, or choose another data.folder"
            )
        yield


@contextmanager
def preparing_shard(folder: Path, shard: str, report: Report) -> Iterator[None]:
    """Keeps other processes from preparing the same shard inside the context.

    Raises:
        BusyError: another process is preparing it, for example because all hosts were given the same index.
    """
    path = lock_file(folder, f"shard-{shard.replace('/', '-of-')}")
    with _held(path, report, shared=False) as held:
        if not held:
            raise BusyError(f"shard {shard} of {folder} is being prepared by {held_by(path)}: give each host its own")
        yield


@contextmanager
def changing(folder: Path, content: str, report: Report, patience: float = 0.0) -> Iterator[None]:
    """Keeps runs from reading a source or the tokenizer inside the context.

    Args:
        folder: `data.folder`.
        content: `TOKENIZER` or a `source_content`.
        report: called with a line if the file system has no locks.
        patience: seconds to wait for another process.

    Raises:
        BusyError: a run is reading it; the message names the run's process.
    """
    path = lock_file(folder, content)
    with _held(path, report, shared=False, patience=patience) as held:
        if not held:
            raise BusyError(
                f"preparing would change {content.replace('-', ' ', 1)} in {folder}, which is in use by"
                f" {held_by(path)}; wait until it ends, or choose another data.folder"
            )
        yield


@contextmanager
def reading(folder: Path, contents: Iterable[str], report: Report) -> Iterator[None]:
    """Keeps preparations from changing sources or the tokenizer inside the context.

    Raises:
        BusyError: a preparation is changing one of them; the message names its process.
    """
    with ExitStack() as stack:
        for content in contents:
            path = lock_file(folder, content)
            if not stack.enter_context(_held(path, report, shared=True)):
                raise BusyError(
                    f"{content.replace('-', ' ', 1)} in {folder} is being changed by {held_by(path)};"
                    " wait until it ends"
                )
        yield


def lock_file(folder: Path, content: str) -> Path:
    """Returns the lock file of a source or the tokenizer, given its lock name."""
    return folder / ".locks" / f"{content}.lock"


@contextmanager
def _held(path: Path, report: Report, shared: bool, patience: float = 0.0) -> Iterator[bool]:
    with ExitStack() as stack:
        try:
            held = stack.enter_context(hold(path, shared, patience))
        except ConfigError as error:  # the file system has no locks
            report(str(error))
            held = True
        yield held
