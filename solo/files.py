"""Crash-safe files: atomic writes, JSON lines, and complete checkpoints.

Standard library only, except for files in buckets, so that every part of the package can use it.
"""

from __future__ import annotations

import json
import math
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is a URL."""
    return _URL.match(os.fspath(path)) is not None


def place(path: str | os.PathLike[str]) -> Path:
    """Returns a path, or, for a URL such as `gs://bucket/runs`, an object with the methods of a path."""
    text = os.fspath(path)
    if not is_remote(text):
        return Path(text)
    from etils import epath  # pathlib would make one slash of two

    return cast(Path, epath.Path(text.rstrip("/")))


def resolved(path: str | os.PathLike[str]) -> Path:
    """Returns an absolute path without symbolic links; URLs stay as they are."""
    found = place(path)
    return found if is_remote(found) else found.resolve()


def cache_folder() -> Path:
    """Returns the local folder for copies of files in buckets: $SOLO_CACHE, by default ~/.cache/solo."""
    default = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "solo")
    return Path(os.environ.get("SOLO_CACHE") or default).expanduser().absolute()


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file, text as UTF-8, and creates its folder.

    Readers see either the old content or all of the new one, even if this process is killed or several processes
    write the file at the same time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name is unique to this call, and hidden so that no glob picks it up.
    partial = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


_LFS = b"version https://git-lfs.github.com"


def lfs_pointer(path: Path) -> str | None:
    """Returns a message if a file is only a Git LFS pointer, else None.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        if file.read(len(_LFS)) != _LFS:
            return None
    return f"{path} is a pointer to a file in Git LFS; `git lfs pull` fetches it"


def unwritable(path: Path, folder: bool = False) -> str | None:
    """Returns why a file cannot be written, or None if it can be. The folder that will hold it is created.

    Args:
        path: a file, or a folder for files.
        folder: whether `path` is a folder.
    """
    if not folder and path.is_dir():
        return "it is a folder"
    home = path if folder else path.parent
    probe = home / f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return None


# The file that Orbax writes last into a checkpoint's folder.
COMMIT_MARKER = "commit_success.txt"


def is_complete(checkpoint: Path) -> bool:
    """Returns whether a folder is a complete checkpoint, named by its step."""
    return checkpoint.name.isdecimal() and (checkpoint / COMMIT_MARKER).is_file()


def complete_checkpoints(folder: Path) -> list[Path]:
    """Returns the folders `<step>` of all complete checkpoints in a folder, in the order of their steps.

    Raises:
        solo.storage.BucketError: the folder is in a bucket that cannot be reached.
    """
    if is_remote(folder):
        from solo.storage import Bucket

        steps = Bucket(str(folder)).folders_with(COMMIT_MARKER)
        return [folder / step for step in sorted(filter(str.isdecimal, steps), key=int)]
    found = (path.parent for path in folder.glob(f"*/{COMMIT_MARKER}"))
    return sorted(filter(is_complete, found), key=lambda path: int(path.name))


def json_text(value: Any, indent: int | None = None) -> str:
    """Returns strict JSON, in ASCII. Numbers that are not finite become null, because JSON cannot represent them."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(finite(value), indent=indent, allow_nan=False)


def finite(value: Any) -> Any:
    """Returns a JSON value with None in place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_line(line: Mapping[str, Any]) -> str:
    """Returns a JSON object as one line of strict JSON; see `json_text`."""
    return json_text(line) + "\n"


def parse_json_line(text: bytes) -> dict[str, Any] | None:
    """Returns the object of a line, with None in place of NaN and infinities; None if it is damaged or no object."""
    try:
        line = json.loads(text, parse_constant=lambda name: None)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None


def append_json_line(path: Path, line: Mapping[str, Any]) -> None:
    """Appends one line in a single write, so that lines of several threads and processes do not mix.

    If a kill truncated the last line, it is ended first.
    """
    descriptor = _open_to_append(path)
    try:
        _append(descriptor, _missing_end(descriptor) + json_line(line), path)
    finally:
        os.close(descriptor)


def _open_to_append(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)


def _missing_end(descriptor: int) -> str:
    """Returns a newline if a kill truncated the last line, else an empty string."""
    size = os.fstat(descriptor).st_size
    return "\n" if size > 0 and os.pread(descriptor, 1, size - 1) != b"\n" else ""


def _append(descriptor: int, text: str, path: Path) -> None:
    """Appends all of a text. Raises OSError with the path: the disk may be full."""
    rest = text.encode()
    try:
        while rest:  # a disk that is almost full takes a part
            rest = rest[os.write(descriptor, rest) :]
    except OSError as error:
        error.filename = str(path)
        raise


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Reads a file of JSON lines, however damaged it is.

    Returns:
        The objects, and the number of other non-empty lines, which are truncated or damaged. No objects if the file is
        missing.
    """
    found: list[dict[str, Any]] = []
    broken = 0
    content = path.read_bytes() if path.exists() else b""
    for text in filter(bytes.strip, content.split(b"\n")):
        line = parse_json_line(text)
        if line is not None:
            found.append(line)
        else:
            broken += 1
    return found, broken


class JsonLinesFile:
    """A file of JSON lines that one process appends to."""

    def __init__(self, path: Path):
        self._path = path
        self._file = _open_to_append(path)
        _append(self._file, _missing_end(self._file), path)

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends a line and flushes it, so it survives a kill of this process, but not a crash of the machine."""
        _append(self._file, json_line(line), self._path)

    def sync(self) -> None:
        """Stores all lines durably.

        The file is closed and opened again, because buckets mounted with Cloud Storage FUSE store a file when it is
        closed; with streaming writes, fsync alone does not.
        """
        os.fsync(self._file)
        os.close(self._file)
        self._file = _open_to_append(self._path)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)
