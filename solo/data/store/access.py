"""Locks of a data folder: a preparation keeps others out, and does not change what a run reads.

    <data.folder>/.locks/prepare.lock       a preparation holds it alone; the hosts of one preparation share it
    <data.folder>/.locks/<content>.lock     runs that read a source or the tokenizer share it; a preparation that
                                            changes the content holds it alone

A file system without locks gives no protection, and `report` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from solo.config import Config, ConfigError
from solo.locks import held_by, hold

TOKENIZER = "tokenizer"
PATIENCE_SECONDS = 60.0  # seconds, for what another host writes in an instant
Report = Callable[[str], None]


class BusyError(ConfigError):
    """Another process holds a lock; the message names it."""


def source_content(name: str) -> str:
    """Returns the name under which a source is locked."""
    return f"source-{name}"


def contents(config: Config) -> list[str]:
    """Returns the names under which all data of a run is locked."""
    return [TOKENIZER, *map(source_content, config.data.sources)]


@contextmanager
def preparing(folder: Path, report: Report, shared: bool = False) -> Iterator[None]:
    """Keeps other preparations out of a data folder while the context lasts.

    Args:
        folder: `data.folder`.
        report: called with a line if the file system has no locks.
        shared: allows others that share the work.

    Raises:
        BusyError: another process prepares the folder.
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
    """Keeps other processes from preparing the same shard while the context lasts.

    Raises:
        BusyError: another process prepares it, as when all hosts are given the same number.
    """
    path = lock_file(folder, f"shard-{shard.replace('/', '-of-')}")
    with _held(path, report, shared=False) as held:
        if not held:
            raise BusyError(f"shard {shard} of {folder} is being prepared by {held_by(path)}: give each host its own")
        yield


@contextmanager
def changing(folder: Path, content: str, report: Report, patience: float = 0.0) -> Iterator[None]:
    """Keeps runs from reading a source or the tokenizer while the context lasts.

    Args:
        folder: `data.folder`.
        content: `TOKENIZER` or a `source_content`.
        report: called with a line if the file system has no locks.
        patience: seconds to wait for another process.

    Raises:
        BusyError: a run reads it; the message names the run's process.
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
    """Keeps preparations from changing sources or the tokenizer while the context lasts.

    Raises:
        BusyError: a preparation changes one of them now; the message names its process.
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
    """Returns the lock file for a name, such as that of a source or the tokenizer."""
    return folder / ".locks" / f"{content}.lock"


@contextmanager
def _held(path: Path, report: Report, shared: bool, patience: float = 0.0) -> Iterator[bool]:
    with ExitStack() as stack:
        try:
            held = stack.enter_context(hold(path, shared, patience))
        except ConfigError as error:  # no locks on this file system
            report(str(error))
            held = True
        yield held
