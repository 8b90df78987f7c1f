"""Members of tar archives in order, compressed or not. Nothing is ever extracted to disk.

`tarfile` treats a damaged header as the end of the archive and does not require an end mark. Here both are errors,
because examples would be lost silently.
"""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import IO, Any, cast

from solo.data.readers.file_kinds import file_kind
from solo.data.readers.paths import READ_ERRORS, is_compressed, open_bytes
from solo.data.readers.text_files import DamagedError
from solo.files import is_remote

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.bz2", ".tar.xz")
LARGEST_MEMBER = 1 << 30  # bytes; larger members are not read
_BLOCK = tarfile.BLOCKSIZE


class DamagedArchiveError(DamagedError):
    """An archive cannot be read any further. `member` is the name of the truncated file, if known."""

    def __init__(self, reason: str, member: str | None = None):
        super().__init__(reason)
        self.member = member


@dataclass(frozen=True, slots=True)
class Member:
    """A file of an archive.

    number   its number among all members, from 1
    offset   byte offset of its header in the uncompressed archive
    archive  number of its archive, if several were concatenated
    data     its contents; None if they were not requested or cannot be read
    fault    why it cannot be read, or None
    """

    number: int
    name: str
    offset: int
    archive: int = 0
    data: bytes | None = None
    fault: str | None = None


def members(
    path: str, wanted: Callable[[str], bool], start: tuple[int, int] = (1, 0), stop: int | None = None
) -> Iterator[Member]:
    """Yields the files of an archive. Folders are skipped; links and devices have a fault in place of contents.

    Archives that were concatenated with `cat` are read one after another.

    Args:
        path: local or remote path of the archive.
        wanted: returns whether the contents of a member are needed, given its name.
        start: number and offset of the first member; an offset other than 0 requires an uncompressed archive.
        stop: offset of the first member that is not read.

    Raises:
        DamagedArchiveError: the archive is truncated or damaged, or the file is not an archive.
    """
    number, offset = start
    try:
        with closing(open_bytes(path)) as raw:
            stream = _Forward(raw)
            stream.seek(offset)
            for archive in itertools.count():
                for member in _one_archive(stream, wanted, number, archive, stop):
                    number = member.number + 1
                    yield member
                if stop is not None or not stream.skip_zeros():
                    return
    except EOFError:
        raise DamagedArchiveError("the archive is cut short") from None
    except READ_ERRORS as error:
        raise DamagedArchiveError(f"the archive cannot be read: {_say(error)}") from None


def can_split(path: str) -> bool:
    """Returns whether an archive can be read from the middle. Raises OSError if it cannot be opened."""
    return not is_remote(path) and not is_compressed(path)


def _one_archive(
    stream: _Forward, wanted: Callable[[str], bool], number: int, joined: int, stop: int | None
) -> Iterator[Member]:
    """Yields the members up to the end mark."""
    begin = stream.tell()
    try:
        archive = tarfile.TarFile(fileobj=cast(Any, stream), errors="surrogateescape")
    except tarfile.ReadError:
        raise DamagedArchiveError(_kind(stream.last) if begin == 0 else _damaged_header(number)) from None
    name: str | None = None
    while True:
        try:
            found = archive.next()
        except (tarfile.TarError, ValueError, OverflowError, RecursionError, *READ_ERRORS) as error:
            cut = isinstance(error, EOFError) or len(stream.last) < _BLOCK
            raise DamagedArchiveError("the archive is cut short" if cut else _damaged_header(number), name) from None
        archive.members.clear()  # type: ignore[attr-defined]
        if found is None:
            _check_end(stream.last, number)
            return
        if found.size < 0 or archive.offset <= found.offset:
            raise DamagedArchiveError(_damaged_header(number))
        if stop is not None and found.offset >= stop:
            return
        name = found.name
        if not found.isdir():
            data, fault = _contents(archive, found, stream) if wanted(name) else (None, None)
            yield Member(number, name, found.offset, joined, data, fault)
        number += 1


def _contents(
    archive: tarfile.TarFile, found: tarfile.TarInfo, stream: _Forward
) -> tuple[bytes, None] | tuple[None, str]:
    """Returns the contents of a member, or the reason why it has none."""
    name = found.name
    if not found.isreg():
        kind = "a link, which is not followed" if found.issym() or found.islnk() else "a device or pipe"
        return None, f"{name} is {kind}"
    if found.size > LARGEST_MEMBER:
        return None, f"{name} has {found.size:,} bytes, more than a member may have"
    try:
        if found.issparse():
            return cast(IO[bytes], archive.extractfile(found)).read(), None
        stream.seek(found.offset_data)
        data = stream.read(found.size)
    except (tarfile.ReadError, EOFError):
        raise DamagedArchiveError(f"the archive is cut short in {name}", name) from None
    except READ_ERRORS as error:
        raise DamagedArchiveError(f"{name} cannot be read: {_say(error)}", name) from None
    if len(data) < found.size:
        raise DamagedArchiveError(f"the archive is cut short in {name}", name)
    return data, None


def _check_end(block: bytes, number: int) -> None:
    """Raises DamagedArchiveError unless an archive ended with a block of zeros."""
    if len(block) < _BLOCK:
        raise DamagedArchiveError("the archive ends without an end mark: it may be cut short, or was never closed")
    if any(block):
        raise DamagedArchiveError(_damaged_header(number))


def _damaged_header(number: int) -> str:
    return f"the archive is damaged: member {number} has no valid header"


def _kind(head: bytes) -> str:
    """Returns a description of a file that is not a tar archive, based on its first bytes."""
    if not head:
        return "the file is empty"
    kind = file_kind(head)
    return f"it is {kind}" if kind not in (None, "a tar archive") else "it is not a tar archive"


def _say(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class _Forward:
    """A forward-only stream for `tarfile`. `last` contains the data that was read last."""

    def __init__(self, raw: IO[bytes]):
        self._raw, self._position = raw, 0
        self._ahead = b""  # bytes to read again
        self.last = b""

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LARGEST_MEMBER:
            raise tarfile.ReadError(f"a header asks for {size} bytes")
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        while len(data) < size and (more := self._raw.read(size - len(data))):
            data = data + more if data else more
        self._position += len(data)
        self.last = data
        return data

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        if position < self._position:
            raise tarfile.ReadError("a member points backwards")
        if self._raw.seekable() and position - self._position >= len(self._ahead):
            self._ahead = b""
            self._raw.seek(position)
            self._position = position
        while self._position < position and self.read(min(position - self._position, 1 << 20)):
            pass
        return self._position

    def skip_zeros(self) -> bool:
        """Skips blocks of zeros. Returns whether anything follows."""
        while chunk := self.read(1 << 16):
            if any(chunk):
                zeros = (len(chunk) - len(chunk.lstrip(b"\0"))) // _BLOCK * _BLOCK
                self._ahead = chunk[zeros:] + self._ahead
                self._position -= len(chunk) - zeros
                return True
        return False
