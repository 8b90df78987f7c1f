"""Folders of files, listed in a fixed order."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

from solo.config import ConfigError
from solo.files import is_remote


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or a folder. `name` is its path relative to the source's folder; `fault` says why it cannot be read."""

    name: str
    fault: str = ""
    is_folder: bool = False


def is_folder(path: str) -> bool:
    """Returns whether a local or remote path is a folder."""
    if not is_remote(path):
        return os.path.isdir(path)
    import fsspec

    system, inside = fsspec.core.url_to_fs(path)
    return bool(system.isdir(inside))


def list_folder(path: str, name: str, what: str) -> list[Entry]:
    """Returns the entries of a local or remote folder, sorted by name, without hidden entries.

    Args:
        path: the folder.
        name: its path relative to the source's folder; empty for the source's folder itself.
        what: name of the caller, for error messages.

    Raises:
        ConfigError: the folder does not exist or cannot be read.
    """
    try:
        return _list(path, name)
    except FileNotFoundError:
        raise ConfigError(f"{what}: {path} does not exist") from None
    except NotADirectoryError:
        raise ConfigError(f"{what}: {path} is not a folder") from None
    except OSError as error:
        raise ConfigError(f"{what}: cannot read the folder {path}: {error.strerror or error}") from None


def walk(path: str, name: str) -> Iterator[Entry]:
    """Yields the files in a folder and its subfolders, in path order.

    Links are followed. A link to a folder that contains it, or a folder that cannot be read, is an entry with a fault.
    """
    yield from _walk(path, name, ())


def is_hidden(path: PurePath) -> bool:
    """Returns whether a component of a path begins with a dot, or is the folder that macOS adds to archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _walk(path: str, name: str, above: tuple[str, ...]) -> Iterator[Entry]:
    real = path if is_remote(path) else os.path.realpath(path)
    if real in above:
        yield Entry(name, "it is a link to a folder that holds it")
        return
    try:
        entries = _list(path, name)
    except OSError as error:
        yield Entry(name, f"cannot read the folder: {error.strerror or error}")
        return
    for entry in entries:
        if entry.is_folder:
            yield from _walk(f"{path}/{entry.name.rsplit('/', 1)[-1]}", entry.name, (*above, real))
        else:
            yield entry


def _list(path: str, name: str) -> list[Entry]:
    if is_remote(path):
        found = sorted(_remote(path))
    else:
        with os.scandir(path or ".") as entries:
            found = sorted((entry.name, *_kind(entry)) for entry in entries)
    prefix = f"{name}/" if name else ""
    return [Entry(prefix + title, fault, folder) for title, fault, folder in found if not is_hidden(PurePath(title))]


def _remote(path: str) -> Iterator[tuple[str, str, bool]]:
    import fsspec

    system, inside = fsspec.core.url_to_fs(path)
    for found in system.ls(inside, detail=True):
        title = found["name"].rstrip("/").rsplit("/", 1)[-1]
        if found["name"].rstrip("/") != inside.rstrip("/"):  # object stores also list the folder's own marker
            yield title, "", found["type"] == "directory"


def _kind(entry: os.DirEntry[str]) -> tuple[str, bool]:
    """Returns the fault of an entry, or an empty string, and whether it is a folder."""
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        broken = "it is a link to a file that does not exist" if entry.is_symlink() else None
        return broken or f"cannot read the file: {error.strerror}", False
    if stat.S_ISDIR(mode):
        return "", True
    return ("" if stat.S_ISREG(mode) else f"it is {_KINDS.get(stat.S_IFMT(mode), 'no regular file')}"), False


_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
