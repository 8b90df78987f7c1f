"""Reads text of any size in bounded memory: blocks and lines of a file as UTF-8, for any encoding and compression."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np

from solo.data.readers.paths import READ_ERRORS, is_compressed, open_bytes

BLOCK = 1 << 18
MAX_BYTES = 1 << 29
"""Bytes of an example at most."""

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class DamagedError(Exception):
    """A file cannot be read any further; the message says why."""


@dataclass(frozen=True, slots=True)
class TextFile:
    """A file of text.

    Attributes:
        path: local or remote path.
        encoding: encoding of the text.
        start: first byte after the byte-order mark.
        seekable: whether the stored bytes are UTF-8, so that reading can start at any line.
    """

    path: str
    encoding: str
    start: int
    seekable: bool

    @classmethod
    def open(cls, path: str, encoding: str | None = None) -> TextFile:
        """Opens a file and detects its encoding from its first bytes.

        Args:
            path: local or remote path.
            encoding: encoding if there is no byte-order mark; by default UTF-8, or UTF-16 if every other byte is zero.

        Raises:
            DamagedError: the file cannot be opened, or its first bytes cannot be read.
        """
        try:
            with open_bytes(path) as file:
                head = file.read(4)
            compressed = is_compressed(path)
        except READ_ERRORS as error:
            raise DamagedError(explain(error)) from None
        mark, found = next(((mark, name) for mark, name in _MARKS if head.startswith(mark)), (b"", None))
        found = found or encoding or _guess(head)
        return cls(path, found, len(mark), not compressed and codecs.lookup(found).name == "utf-8")

    def blocks(self, start: int | None = None, stop: int | None = None) -> Iterator[bytes]:
        """Yields the text as UTF-8, without a byte-order mark.

        Characters that cannot be decoded become bytes that are not valid UTF-8, so that the caller notices them when
        decoding.

        Args:
            start: first byte; by default the file's `start`. If the file is not `seekable`, the bytes before it are
                read too.
            stop: byte after the last one; only for a `seekable` file.

        Raises:
            DamagedError: the file cannot be read any further.
        """
        start = self.start if start is None else start
        try:
            with open_bytes(self.path) as file:
                if self.seekable:
                    file.seek(start)
                    yield from _read(file, None if stop is None else stop - start)
                else:
                    file.read(self.start)
                    yield from _after(start - self.start, self._decoded(_read(file, None)))
        except READ_ERRORS as error:
            raise DamagedError(explain(error)) from None

    def _decoded(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        if self.encoding == "utf-8":
            yield from blocks
            return
        errors = "surrogatepass" if self.encoding.startswith(("utf-16", "utf-32")) else "strict"
        decoder = codecs.getincrementaldecoder(self.encoding)(errors)
        try:
            for block in blocks:
                yield decoder.decode(block).encode("utf-8", "surrogatepass")
            yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise DamagedError(f"it is not valid {self.encoding}: {error.reason}") from None


def _guess(head: bytes) -> str:
    if len(head) == 4 and head[1] == head[3] == 0 and head[0] and head[2]:
        return "utf-16-le"
    if len(head) == 4 and head[0] == head[2] == 0 and head[1] and head[3]:
        return "utf-16-be"
    return "utf-8"


def _read(file: IO[bytes], left: int | None) -> Iterator[bytes]:
    # With `read`, the data before the damage in a compressed file would be lost.
    read = getattr(file, "read1", file.read)
    while left is None or left > 0:
        block = read(BLOCK if left is None else min(BLOCK, left))
        if not block:
            return
        yield block
        left = None if left is None else left - len(block)


def _after(count: int, blocks: Iterator[bytes]) -> Iterator[bytes]:
    for block in blocks:
        yield block[count:]
        count = max(0, count - len(block))


def explain(error: BaseException) -> str:
    """Returns the reason why a file cannot be read."""
    if isinstance(error, FileNotFoundError):
        return "the file does not exist"
    if isinstance(error, EOFError):
        return "the compressed file ends too early: it has been cut off"
    if isinstance(error, OSError) and error.strerror:
        return f"the file cannot be read: {error.strerror.lower()}"
    return f"the file cannot be read: {error}"


def line_ends(blocks: Iterable[bytes]) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the length of each block and the offsets after its line breaks."""
    for block in blocks:
        yield len(block), np.flatnonzero(np.frombuffer(block, np.uint8) == 10) + 1


def lines(blocks: Iterable[bytes], first: int = 1) -> Iterator[tuple[int, bytes]]:
    """Yields every line with its number, without the line break. A line above `MAX_BYTES` is truncated there.

    Raises:
        DamagedError: from `blocks`; raised after all complete lines before the damage.
    """
    number, pieces, size = first, list[bytes](), 0
    for block in blocks:
        begun, *rest = block.split(b"\n")
        if size <= MAX_BYTES:
            pieces.append(begun)
            size += len(begun)
        if rest:
            yield number, b"".join(pieces)
            last = rest.pop()
            yield from enumerate(rest, start=number + 1)
            number, pieces, size = number + len(rest) + 1, [last], len(last)
    if size:
        yield number, b"".join(pieces)


def spans(
    ends: Iterable[tuple[int, np.ndarray]], start: int, size: int, most_bytes: int = 1 << 26
) -> Iterator[tuple[int, int | None, int, int]]:
    """Groups the examples of a file in which reading can start at any example.

    Args:
        ends: for each block, its length and the offsets after the examples that end in it.
        start: byte offset of the first block in the file.
        size: maximum number of examples per group.
        most_bytes: maximum bytes per group, unless the group is a single example.

    Yields:
        First byte, byte after the last (None: end of file), and the numbers of the first and the last example. Bytes
        after the last end belong to the last group.
    """
    begun = end = offset = start
    first, held = 1, 0
    for length, places in ends:
        places = places + offset
        offset += length
        while True:
            take = min(size - held, int(np.searchsorted(places, begun + most_bytes, side="right")))
            if not take and not held and len(places):
                take = 1
            if take:
                end, held, places = int(places[take - 1]), held + take, places[take:]
            if held < size and not len(places):
                break
            yield begun, end, first, first + held - 1
            begun, first, held = end, first + held, 0
    if offset > begun:
        yield begun, None, first, first + held - (end == offset)


def short_names(paths: Sequence[str]) -> list[str]:
    """Returns the file names if they are distinct, otherwise the whole paths."""
    names = [path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] for path in paths]
    return names if len(set(names)) == len(names) else list(paths)
