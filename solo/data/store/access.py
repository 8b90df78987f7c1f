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

from solo.config import ConfigError
from solo.locks import held_by, hold

TOKENIZER = "tokenizer"
Report = Callable[[str], None]


def source_content(name: str) -> str:
    """Returns the name under which a source is locked."""
    return f"source-{name}"


@contextmanager
def preparing(folder: Path, report: Report, shared: bool = False) -> Iterator[None]:
    """Keeps other preparations out of a data folder while the context lasts.

    Args:
        folder: `data.folder`.
        report: called with a line if the file system has no locks.
        shared: allows others that share the work.

    Raises:
        ConfigError: another process prepares the folder; the message names it.
    """
    path = folder / ".locks" / "prepare.lock"
    with _held(path, report, shared) as held:
        if not held:
            raise ConfigError(
                f"{folder} is being prepared by {held_by(path)}; wait for its end, or choose another data.folder"
            )
        yield


@contextmanager
def changing(folder: Path, content: str, report: Report) -> Iterator[None]:
    """Keeps runs from reading a source or the tokenizer while the context lasts.

    Raises:
        ConfigError: a run reads it; the message names the run's process.
    """
    path = _path(folder, content)
    with _held(path, report, shared=False) as held:
        if not held:
            raise ConfigError(
                f"preparing would change {content.replace('-', ' ', 1)} in {folder}, which is in use by"
                f" {held_by(path)}; wait for its end, or choose another data.folder"
            )
        yield


@contextmanager
def reading(folder: Path, contents: Iterable[str], report: Report) -> Iterator[None]:
    """Keeps preparations from changing sources or the tokenizer while the context lasts.

    Raises:
        ConfigError: a preparation changes one of them now; the message names its process.
    """
    with ExitStack() as stack:
        for content in contents:
            path = _path(folder, content)
            if not stack.enter_context(_held(path, report, shared=True)):
                raise ConfigError(
                    f"{content.replace('-', ' ', 1)} in {folder} is being changed by {held_by(path)}; wait for its end"
                )
        yield


def _path(folder: Path, content: str) -> Path:
    return folder / ".locks" / f"{content}.lock"


@contextmanager
def _held(path: Path, report: Report, shared: bool) -> Iterator[bool]:
    with ExitStack() as stack:
        try:
            held = stack.enter_context(hold(path, shared))
        except ConfigError as error:  # no locks on this file system
            report(str(error))
            held = True
        yield held
