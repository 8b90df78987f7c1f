"""Protects the user's files: preparation changes only files and folders that it made itself.

Every folder that preparation writes to contains the file `.made-by-solo`. A non-empty folder without that file belongs
to the user. It is refused, and nothing in it is deleted or overwritten.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from solo.config import Config, ConfigError
from solo.data.store.bucket import local_folder
from solo.files import is_remote

MARKER = ".made-by-solo"
_MARK = "`solo prepare` made this folder, and replaces or removes the files that it has put here.\n"
_LEGACY = ("source.json", "made_from.json")  # earlier versions marked their folders with these files
_LEGACY_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")
_GLOB = re.compile(r"[*?\[]")


def check_folders(config: Config) -> None:
    """Checks, before any work, that preparation will not damage the user's files.

    Raises:
        ConfigError: a source or the tokenizer is read from a folder that preparation writes to; or the folder of a
            prepared source or tokenizer contains something that solo did not make.
    """
    folder = local_folder(config)
    names = list(config.data.sources)
    same = [name for name in names if [other.casefold() for other in names].count(name.casefold()) > 1]
    if same:
        raise ConfigError(f"sources {same}: their folders would be the same on disks that ignore case; rename one")
    check_inputs(config)
    if os.path.lexists(folder) and not folder.is_dir():
        raise ConfigError(f"data.folder: {folder} is not a folder; move it, or choose another data.folder")
    places = {"the tokenizer": folder / "tokenizer"}
    places |= {f"source {name!r}": folder / "sources" / name for name in names}
    for what, place in places.items():
        check_place(place, what)
    _check_list(folder / "quarantine.jsonl")


def check_inputs(config: Config) -> None:
    """Raises ConfigError if the config names an input inside a folder that preparation writes to."""
    folder = local_folder(config)
    inputs = [("data.tokenizer.path", config.data.tokenizer.path or "")]
    for name, source in config.data.sources.items():
        inputs += [(f"data.sources.{name}.options", text) for text in _texts(source.options)]
    for key, path in inputs:
        refuse_inside(folder, [path], key, url=config.data.folder)


def refuse_inside(folder: Path, paths: Iterable[str], key: str, links: bool = True, url: str = "") -> None:
    """Raises ConfigError if one of the paths is inside a folder that preparation writes to.

    Args:
        folder: `data.folder`.
        paths: paths of inputs.
        key: the config key that names them, for messages.
        links: also resolve links, which needs a file system call for every path.
        url: `data.folder` as the config gives it.
    """
    own = [folder / "tokenizer", folder / "sources", folder / "quarantine.jsonl"]
    roots = [(spelling(str(place)), place) for place in own for spelling in (os.path.abspath, os.path.realpath)]
    filled = tuple(f"{url.rstrip('/')}/{name}/" for name in ("tokenizer", "sources")) if is_remote(url) else ()
    for path in paths:
        if filled and f"{path}/".startswith(filled):
            raise ConfigError(f"{key}: {path} is in {url}, which holds prepared data; choose another data.folder")
        if not path or is_remote(path) or "\0" in path or len(path) > 4096:
            continue
        start = os.path.expanduser(_GLOB.split(path)[0])
        for spelled in {os.path.abspath(start), os.path.realpath(start) if links else os.path.abspath(start)}:
            for root, place in roots:
                if spelled == root or spelled.startswith(root + os.sep):
                    raise ConfigError(
                        f"{key}: {path} is in {place}, which holds prepared data and is replaced by solo; move your"
                        " files, or choose another data.folder"
                    )


def check_place(place: Path, what: str) -> None:
    """Raises ConfigError if a folder exists and solo did not make it. A link to a folder is followed."""
    if not os.path.lexists(place):
        return
    if not place.exists():
        raise ConfigError(f"{what}: {place} is a link to {os.readlink(place)}, which does not exist")
    if not place.is_dir():
        raise ConfigError(f"{what}: {place} is in the way: a file that solo did not make; move it")
    # Another process may claim an empty folder before it is listed. It writes the marker first.
    if not is_own(place) and (found := sorted(os.listdir(place))) and not is_own(place):
        shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        raise ConfigError(
            f"{what}: {place} is in the way: solo did not make it, and it holds {shown}; move it, or choose another"
            " name or data.folder"
        )


def is_own(place: Path) -> bool:
    """Returns whether preparation made a folder."""
    return any((place / name).is_file() for name in (MARKER, *_LEGACY))


def claim(place: Path, what: str) -> None:
    """Creates a folder for preparation to write to, or checks that preparation made it.

    Raises:
        ConfigError: the folder exists and solo did not make it.
    """
    check_place(place, what)
    place.mkdir(parents=True, exist_ok=True)
    marker = place / MARKER
    if not marker.exists():
        marker.write_text(_MARK)


def replace_files(place: Path, record: str, write: Callable[[Path], None], made: dict[str, Any], what: str) -> None:
    """Replaces the files that an earlier call wrote to a folder. Other files are not touched.

    The file `record` is deleted first and written last. It lists the written files, so a later call deletes only these.

    Args:
        place: the folder.
        record: name of the file that marks the content as complete.
        write: writes the new files into an empty folder.
        made: content of `record`.
        what: name of the content, for messages.

    Raises:
        ConfigError: a file that solo did not make has the name of a new file.
    """
    claim(place, what)
    fresh = place / f".new-{os.getpid()}"
    for left in place.glob(".new-*"):  # left by a killed process
        _clear(left)
    fresh.mkdir()
    try:
        write(fresh)
        names, before = sorted(os.listdir(fresh)), _recorded(place / record)
        for name in names:
            if name not in before and os.path.lexists(place / name):
                raise ConfigError(f"{what}: {place / name} is in the way: solo did not make it; move it")
        (place / record).unlink(missing_ok=True)
        for name in names:
            os.replace(fresh / name, place / name)
        for name in before - set(names) - {record}:
            (place / name).unlink(missing_ok=True)
        partial = fresh / record
        partial.write_text(json.dumps({**made, "files": names}) + "\n")
        os.replace(partial, place / record)
    finally:
        _clear(fresh)


def _recorded(record: Path) -> set[str]:
    """Returns the files that an earlier `replace_files` wrote; an empty set if they are unknown."""
    try:
        found = json.loads(record.read_text())
        return {*map(str, found.get("files", _LEGACY_FILES))}
    except (OSError, ValueError, AttributeError):
        return set()


def _clear(folder: Path) -> None:
    """Deletes a folder that this module made and that contains only files."""
    if folder.is_dir() and not folder.is_symlink():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def _check_list(path: Path) -> None:
    """Raises ConfigError if a file exists but is not preparation's list of quarantined examples."""
    if not os.path.lexists(path):
        return
    try:
        with path.open(encoding="utf-8") as file:
            line = file.readline()
        own = not line or {"source", "id", "reason"} <= set(json.loads(line))
    except (OSError, ValueError, TypeError):
        own = False
    if not own:
        raise ConfigError(f"{path} is in the way: solo did not make it; move it, or choose another data.folder")


def _texts(value: Any) -> Iterator[str]:
    """Yields every string in a reader's options."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, Sequence):
        for each in value:
            yield from _texts(each)


_CANNOT_WRITE = {
    errno.EROFS: "it is on a read-only disk",
    errno.EACCES: "you may not write there",
    errno.EPERM: "you may not write there",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your disk quota is used up",
    errno.EFBIG: "the file would be larger than your limit",
}


@contextmanager
def disk_errors() -> Iterator[None]:
    """Converts disk errors of ArrayRecord's writers to OSErrors that name the file."""
    try:
        yield
    except RuntimeError as error:
        code = next((code for code in _CANNOT_WRITE if os.strerror(code) in str(error)), None)
        if code is None:
            raise
        path = re.search(r"writing (/[^;\n]+)", str(error))
        raise OSError(code, os.strerror(code), path[1] if path else None) from error


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Converts errors on writing to disk to ConfigErrors that explain them. Finished parts are kept."""
    try:
        yield
    except OSError as error:
        place = error.filename2 or error.filename or folder
        own = os.path.abspath(str(place)).startswith(os.path.abspath(folder))  # else an input cannot be read
        if error.errno not in _CANNOT_WRITE or not own:
            raise
        raise ConfigError(
            f"{place} cannot be written: {_CANNOT_WRITE[error.errno]}; what is finished in {folder} is kept, and the"
            " same command continues"
        ) from error
