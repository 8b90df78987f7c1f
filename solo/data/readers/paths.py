"""Input files: globs, lists of paths, compressed and remote files."""

from __future__ import annotations

import glob
import gzip
import hashlib
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

from solo.config import ConfigError

Paths = str | tuple[str, ...]
"""A path, a glob (`shards/*.tar`), or a list of them; local, or a URL such as `gs://bucket/shards/*.tar`. The kind of
every option that names input files."""

COMPRESSED = (".gz", ".zst")
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_GLOB = re.compile(r"[*?\[]")


def is_remote(path: str) -> bool:
    """Returns whether a path is a URL."""
    return _REMOTE.match(path) is not None


def expand(paths: Paths, what: str) -> list[str]:
    """Returns the paths that globs stand for. The files of each glob are sorted, numbers by their value.

    A path that exists is never read as a glob, whatever its characters. Hidden files match no glob.

    Args:
        paths: one path or several.
        what: who asks, for the error message, such as "reader 'llava'".

    Raises:
        ConfigError: a path does not exist, a glob matches nothing, or a file is listed twice.
    """
    found: list[str] = []
    for path in [paths] if isinstance(paths, str) else paths:
        matches = _remote(path, what) if is_remote(path) else _local(path)
        if not matches:
            kind = "matches no file" if _GLOB.search(path) else "does not exist"
            raise ConfigError(f"{what}: {path} {kind}")
        found += matches
    repeated = sorted({path for path in found if found.count(path) > 1}) if len(set(found)) < len(found) else []
    if repeated:
        raise ConfigError(f"{what}: {repeated[0]} is listed more than once")
    if not found:
        raise ConfigError(f"{what}: the list of paths is empty")
    return found


def _local(path: str) -> list[str]:
    path = os.path.expanduser(path)
    if os.path.lexists(path):
        return [path]
    return sorted(glob.glob(path, recursive=True), key=natural) if _GLOB.search(path) else []


def _remote(path: str, what: str) -> list[str]:
    filesystem, inside = _filesystem(path, what)
    try:
        found = filesystem.glob(inside) if _GLOB.search(inside) else [inside] if filesystem.exists(inside) else []
    except Exception as error:  # each store has its own classes
        raise ConfigError(f"{what}: cannot list {path}: {error}") from error
    return sorted((filesystem.unstrip_protocol(name) for name in found), key=natural)


def natural(path: str) -> list[tuple[int, int | str]]:
    """Sorting key by which `shard-2` precedes `shard-10`."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", path) if part]


def open_bytes(path: str) -> IO[bytes]:
    """Opens a local or remote file to read, decompressed if its name ends in `.gz` or `.zst`.

    Raises:
        OSError: it cannot be opened. A damaged archive raises OSError or EOFError while it is read.
    """
    raw = _open_remote(path) if is_remote(path) else Path(path).open("rb")  # noqa: SIM115 - the caller closes it
    if path.endswith(".gz"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if path.endswith(".zst"):
        import zstandard

        return cast(
            IO[bytes], io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True))
        )
    return raw


def stamp(path: str) -> tuple[int, int]:
    """Returns size in bytes and time of the last change in nanoseconds, by which a changed file is noticed.

    Raises:
        OSError: the file does not exist or cannot be reached.
    """
    if not is_remote(path):
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns
    filesystem, inside = _filesystem(path, "data")
    facts = filesystem.info(inside)
    changed = facts.get("mtime") or facts.get("updated") or facts.get("LastModified") or 0
    return int(facts.get("size") or 0), hash_of(str(changed))


def hash_of(text: str) -> int:
    """Returns 48 bits that depend on a text, the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def _filesystem(path: str, what: str) -> tuple[Any, str]:
    import fsspec

    try:
        return cast(tuple[Any, str], fsspec.core.url_to_fs(path))
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{what}: {path}: {error}") from None


def _open_remote(path: str) -> IO[bytes]:
    import fsspec

    return cast(IO[bytes], fsspec.open(path, "rb").open())


def suffix(path: str) -> str:
    """Returns the lower-case suffix of a path without a compression suffix: `.jsonl` for `a.JSONL.gz`."""
    name = path.rsplit("/", 1)[-1].lower()
    for compression in COMPRESSED:
        name = name.removesuffix(compression)
    return os.path.splitext(name)[1]


def common_folder(paths: Sequence[str]) -> str:
    """Returns the deepest folder that holds all paths."""
    return os.path.commonpath([os.path.dirname(path) or "." for path in paths]) if paths else "."
