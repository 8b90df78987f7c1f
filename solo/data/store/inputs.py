"""Detects changed inputs of a prepared source.

An input is identified by its size and modification time, or by a hash of its content (`data.input_check`). If a part
reads only a byte range of a file, its input is identified by a hash of that range, so lines appended to a file affect
only the parts that contain them.

    <source>/inputs.json   `Inputs`: what the source was prepared from
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from solo.data.readers import Part
from solo.data.readers.paths import open_bytes
from solo.data.readers.paths import stamp as stamp_of
from solo.files import is_remote, write_whole

Check = Literal["time", "hash", "none"]
Stamp = tuple[int, int]  # size in bytes; modification time in nanoseconds, or 48 bits of a hash

FILE = "inputs.json"
_FORMAT = 1
_READ = 1 << 20
_THREADS = 32  # many, because they mostly wait for the file system
_ABSENT: Stamp = (-1, -1)


def stamp(path: str, check: Check) -> Stamp:
    """Returns the stamp that identifies the content of an input file; (-1, -1) if the file does not exist."""
    try:
        if check == "hash":
            return _hash(path, 0, None)
        return stamp_of(path)
    except OSError:
        return _ABSENT


def part_key(part: Part, options: Mapping[str, Any], check: Check) -> list[Any]:
    """Returns a JSON value that identifies the input of a part: it changes if anything that the part reads changes.

    Separate image files are not included, because they are known only once the part is read.

    Args:
        part: a part of the source.
        options: the reader's options. If the part names no files, the files that the options name are used.
        check: how to identify a file.
    """
    if part.extent is not None and not is_remote(part.files[0]):
        try:
            return [*part.files, _hash(part.files[0], *part.extent)]
        except OSError:
            return [*part.files, _ABSENT]
    return [[file, stamp(file, check)] for file in part.files or sorted(set(_named(options)))]


def changed(files: Mapping[str, Sequence[int]], check: Check) -> str | None:
    """Returns a description of the first changed input; None if no input has changed.

    If none of the files exists, the source was prepared elsewhere and counts as unchanged.
    """
    if check == "none" or not files:
        return None
    with ThreadPoolExecutor(min(_THREADS, len(files))) as pool:
        found = list(pool.map(lambda path: stamp(path, check), files))
    if all(each == _ABSENT for each in found):
        return None
    for (path, before), now in zip(files.items(), found, strict=True):
        if tuple(before) != now:
            return f"{path} is gone" if now == _ABSENT else f"{path} has changed"
    return None


@dataclass(frozen=True)
class Inputs:
    """What a source was prepared from.

    content  `Description.content` of the prepared source
    check    how the stamps were made
    size     examples per part
    files    stamp of every file that a part or an option names
    folders  modification time of every folder that contains one of the files, to notice added files
    parts    digest of the list of parts
    """

    content: str
    check: Check
    size: int
    files: dict[str, Stamp]
    folders: dict[str, int]
    parts: str

    @classmethod
    def of(cls, parts: Sequence[Part], options: Mapping[str, Any], size: int, check: Check) -> Inputs:
        """Returns the current inputs.

        Args:
            parts: all parts of the source.
            options: the reader's options.
            size: examples per part.
            check: how to make the stamps.
        """
        files = sorted({file for part in parts for file in part.files} | set(_named(options)))
        with ThreadPoolExecutor(_THREADS) as pool:
            stamps = dict(zip(files, pool.map(lambda path: stamp(path, check), files), strict=True))
        folders = {folder: _changed_at(folder) for folder in _folders(files, options)}
        return cls("", check, size, stamps, folders, parts_digest(parts))

    @classmethod
    def read(cls, source: Path) -> Inputs | None:
        """Returns the inputs of a prepared source; None if they are unknown."""
        try:
            found = json.loads((source / FILE).read_text(encoding="utf-8"))
            if found.pop("format") != _FORMAT:
                return None
            found["files"] = {path: (size, time) for path, (size, time) in found["files"].items()}
            return cls(**found)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def write(self, source: Path, content: str) -> None:
        """Writes `inputs.json`. Call it last: until then, the inputs of the prepared source are unknown."""
        write_whole(source / FILE, json.dumps({"format": _FORMAT, **asdict(self), "content": content}) + "\n")

    def any_exists(self) -> bool:
        """Returns whether at least one file exists."""
        return any(is_remote(path) or os.path.exists(path) for path in self.files)

    def folders_changed(self) -> bool:
        """Returns whether a file may have been added or removed; also true if that is unknown."""
        return any(map(is_remote, self.files)) or any(
            _changed_at(folder) not in (before, -1) for folder, before in self.folders.items()
        )


def parts_digest(parts: Sequence[Part]) -> str:
    """Returns a digest of a list of parts. It does not depend on the content of their files."""
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update(json.dumps([part.name, part.files, part.span]).encode())
    return found.hexdigest()


def _hash(path: str, start: int, stop: int | None) -> Stamp:
    """Returns the length and hash of a byte range of a file, without decompressing it."""
    found, length = hashlib.blake2b(digest_size=6), 0
    with open(path, "rb") if not is_remote(path) else open_bytes(path) as file:
        file.seek(start)
        while stop is None or length < stop - start:
            data = file.read(_READ if stop is None else min(_READ, stop - start - length))
            if not data:
                break
            found.update(data)
            length += len(data)
    return length, int.from_bytes(found.digest(), "big")


def _named(options: Any) -> Iterable[str]:
    """Yields the local files that the options name."""
    if isinstance(options, str):
        if 0 < len(options) < 4096 and "\0" not in options and os.path.isfile(options):
            yield options
    elif isinstance(options, Mapping):
        for each in options.values():
            yield from _named(each)
    elif isinstance(options, list | tuple):
        for each in options:
            yield from _named(each)


def _folders(files: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    """Returns the folders where a new file may belong to the source: those that the options name, and subfolders."""
    roots = [text for text in map(str, options.values()) if text and len(text) < 4096 and os.path.isdir(text)]
    found = {os.path.dirname(file) or "." for file in files if not is_remote(file)}
    for root in roots:
        for folder in [each for each in found if _inside(each, root)]:
            while folder != root and _inside(folder, root):
                folder = os.path.dirname(folder)
                found.add(folder or ".")
    path = options.get("path")
    if not files and isinstance(path, str) and os.path.isdir(path):  # otherwise the parts list its files
        found.update(folder for folder, _, _ in os.walk(path, followlinks=False))
    return sorted(found)


def _inside(folder: str, root: str) -> bool:
    return folder == root or folder.startswith(root.rstrip("/") + "/")


def _changed_at(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return -1
