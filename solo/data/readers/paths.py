"""Input files: globs, brace ranges, lists of paths, compressed files and remote files."""

from __future__ import annotations

import bz2
import glob
import gzip
import hashlib
import io
import lzma
import os
import re
import stat
import zlib
from collections.abc import Sequence
from typing import IO, Any, cast

from solo.config import ConfigError
from solo.files import is_remote

Paths = str | tuple[str, ...]
"""A path, a glob (`shards/*.tar`), a range (`shards/{000..127}.tar`), or a list of them; local, or a URL such as
`gs://bucket/shards/*.tar`. The kind of every option that names input files."""

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What reading a missing, unreachable or damaged file raises."""

_GLOB = re.compile(r"[*?\[]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_PATHS = 1_000_000  # maximum for one range


def expand(paths: Paths, what: str) -> list[str]:
    """Expands globs and ranges to paths. The files of each glob are sorted, with numbers compared by value.

    The path of an existing file is never treated as a glob or a range. Globs do not match hidden files. Every file of a
    range must exist.

    Args:
        paths: one path or several.
        what: name of the caller, for error messages, such as "reader 'llava'".

    Raises:
        ConfigError: a path does not exist, a glob matches nothing, or a file is listed twice.
    """
    found: list[str] = []
    listed = [paths] if isinstance(paths, str) else paths
    for path in (path for braces in listed for path in _ranges(braces, what)):
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


def _ranges(path: str, what: str) -> list[str]:
    """Expands braces in a path: `{a,b}` to each string, `{000..127}` to each number."""
    if os.path.lexists(os.path.expanduser(path)):
        return [path]
    found = [""]
    end = 0
    for braces in _BRACES.finditer(path):
        texts = _alternatives(braces[1], path, what)
        between = path[end : braces.start()]
        if len(found) * len(texts) > _MOST_PATHS:
            raise ConfigError(f"{what}: {path} stands for more than {_MOST_PATHS:,} files")
        found = [before + between + text for before in found for text in texts]
        end = braces.end()
    return [before + path[end:] for before in found]


def _alternatives(inside: str, path: str, what: str) -> Sequence[str]:
    limits = _RANGE.fullmatch(inside)
    if limits is None:
        return inside.split(",") if "," in inside else [f"{{{inside}}}"]
    first, last = int(limits[1]), int(limits[2])
    if not first <= last < first + _MOST_PATHS:
        raise ConfigError(f"{what}: {path}: a range counts up, to {_MOST_PATHS:,} files at most")
    padded = any(limit.startswith("0") and len(limit) > 1 for limit in limits.groups())
    width = max(map(len, limits.groups())) if padded else 0
    return [f"{number:0{width}}" for number in range(first, last + 1)]


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
    """Sort key for natural order: `shard-2` comes before `shard-10`."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", path) if part]


def open_bytes(path: str) -> IO[bytes]:
    """Opens a local or remote file for reading. Compression is detected from the content, not from the name.

    gzip, Zstandard, bzip2 and xz are decompressed while reading.

    Raises:
        OSError: the file cannot be opened or is not a regular file. Reading a damaged file raises one of `READ_ERRORS`.
    """
    raw = _open_remote(path) if is_remote(path) else open_regular(path)
    head = raw.read(6)
    raw.seek(0)
    if head.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return cast(IO[bytes], io.BufferedReader(_Zstandard(raw), 1 << 18))
    if head.startswith(b"BZh"):
        return cast(IO[bytes], bz2.BZ2File(raw))
    if head.startswith(b"\xfd7zXZ\0"):
        return cast(IO[bytes], lzma.LZMAFile(raw))
    return raw


def is_compressed(path: str) -> bool:
    """Returns whether `open_bytes` decompresses a file. Raises OSError if the file cannot be opened."""
    with open_bytes(path) as file:
        return isinstance(file, gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile) or isinstance(
            getattr(file, "raw", None), _Zstandard
        )


def open_regular(path: str) -> IO[bytes]:
    """Opens a local file for reading, following links.

    Raises:
        OSError: the file cannot be opened, or is not a regular file: opening a named pipe would block until a writer
            appears.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    what = "a folder" if stat.S_ISDIR(mode) else "a named pipe, a socket or a device"
    raise OSError(f"it is {what}, not a file: {path}")


class _Zstandard(io.RawIOBase):
    """Decompresses consecutive frames. Unlike `zstandard`'s own reader, it detects a truncated file."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw, self._data = raw, memoryview(b"")
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import zstandard

        while not self._data:
            compressed = self._unused() or self._raw.read(1 << 14)  # small: it may be a decompression bomb
            if not compressed:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("the compressed file ends too early")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            try:
                self._data = memoryview(self._frame.decompress(compressed))
            except zstandard.ZstdError as error:
                raise OSError(f"the compressed file is damaged: {error}") from None
        count = min(len(buffer), len(self._data))
        buffer[:count], self._data = self._data[:count], self._data[count:]
        return count

    def _unused(self) -> bytes:
        return b"" if self._frame is None or not self._frame.eof else bytes(self._frame.unused_data)

    def close(self) -> None:
        self._raw.close()
        super().close()


def stamp(path: str) -> tuple[int, int]:
    """Returns the size in bytes and the modification time in nanoseconds of a file, to detect changes.

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
    """Returns a 48-bit hash of a text. It is the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def _filesystem(path: str, what: str) -> tuple[Any, str]:
    import fsspec

    try:
        return cast(tuple[Any, str], fsspec.core.url_to_fs(path))
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{what}: {path}: {error}") from None


def _open_remote(path: str) -> IO[bytes]:
    import fsspec

    try:
        return cast(IO[bytes], fsspec.open(path, "rb").open())
    except OSError:
        raise
    except Exception as error:  # each store has its own classes
        raise OSError(f"the file cannot be opened: {error}: {path}") from error


def suffix(path: str) -> str:
    """Returns the lower-case suffix of a path, ignoring a compression suffix: `.jsonl` for `a.JSONL.gz`."""
    name = path.rsplit("/", 1)[-1].lower()
    for compression in COMPRESSED:
        name = name.removesuffix(compression)
    return os.path.splitext(name)[1]
