"""Finds the elements of a JSON list block by block, at close to one gigabyte per second.

Nothing is parsed, so invalid JSON in an element does not affect other elements, as long as its quotes and brackets
match.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np

from solo.data.readers.text_files import MAX_BYTES

_QUOTE, _BACKSLASH, _COMMA = b'"\\,'
_MARKED = bytes(byte in b'"\\{}[],' for byte in range(256))
_STEP = np.zeros(256, np.int32)
_STEP[[*b"[{"]], _STEP[[*b"]}"]] = 1, -1


class Scanner:
    """State of a scan. Feed it one block after another.

    Args:
        depth: number of open brackets before the first block: 1 inside a list, whose elements end with commas; 0 for
            concatenated values without commas, each of which ends with its closing bracket.
    """

    def __init__(self, depth: int) -> None:
        self._is_list = depth == 1
        self._depth, self._quoted, self._escaped = depth, False, False

    def feed(self, block: bytes) -> tuple[np.ndarray, int | None]:
        """Scans a block.

        Returns:
            The offsets after the commas or brackets that end elements, and the offset of the bracket that closes the
            list, or None. Bytes after that bracket are not scanned.
        """
        places = np.flatnonzero(np.frombuffer(block.translate(_MARKED), np.bool_))
        bytes_ = np.frombuffer(block, np.uint8)
        found = bytes_[places]
        quote = (found == _QUOTE) & ~self._escapes(places, found, len(block))
        inside = np.cumsum(quote, dtype=np.int32) & 1 != int(self._quoted)
        self._quoted ^= bool(quote.sum() & 1)
        outside = ~inside & ~quote
        places, found = places[outside], found[outside]
        step = _STEP[found]
        depth = self._depth + np.cumsum(step)
        self._depth = int(depth[-1]) if len(depth) else self._depth
        if not self._is_list:
            return places[(depth == 0) & (step < 0)] + 1, None
        commas = places[(depth == 1) & (found == _COMMA)] + 1
        closings = np.flatnonzero(depth == 0)
        if not len(closings):
            return commas, None
        closed = int(places[closings[0]])
        return commas[commas <= closed], closed

    def _escapes(self, places: np.ndarray, found: np.ndarray, length: int) -> np.ndarray:
        """Returns which of the marked bytes follow an odd number of backslashes."""
        escaped = np.zeros(len(places), np.bool_)
        back = found == _BACKSLASH
        carried, self._escaped = self._escaped, False
        if not carried and not back.any():
            return escaped
        follows = np.zeros(len(places), np.bool_)  # directly after a backslash
        follows[1:] = back[:-1] & (np.diff(places) == 1)
        number = np.arange(len(places))
        begun = np.maximum.accumulate(np.where(back & ~follows, number, 0))  # start of the run of backslashes
        run = number - begun + 1
        if carried and len(places) and places[0] == 0:
            run += begun == 0
            escaped[0] = True
        elif carried and length == 0:
            self._escaped = True
        escaped[1:] |= follows[1:] & (run[:-1] % 2 == 1)
        if len(places) and back[-1] and places[-1] == length - 1:
            self._escaped = bool(run[-1] % 2)
        return escaped


def pieces(blocks: Iterable[bytes], depth: int) -> Iterator[tuple[Literal["element", "closed", "rest"], bytes]]:
    """Splits a list, or concatenated values, into elements. See `Scanner` for `depth`.

    Yields:
        ("element", its bytes) for every element, ("closed", b"") at the end of the list, and ("rest", bytes) if
        anything but white space follows the last element.
    """
    scanner, kept, closed = Scanner(depth), _Kept(), False
    for block in blocks:
        if closed:
            kept.add(block)
            continue
        ends, closing = scanner.feed(block)
        begun = 0
        for end in ends.tolist():
            yield "element", kept.take(block[begun : end - depth])
            begun = end
        closed = closing is not None and block[closing : closing + 1] == b"]"
        if closing is not None and closed:
            last = kept.take(block[begun:closing])
            if last.strip():
                yield "element", last
            yield "closed", b""
            begun = closing + 1
        kept.add(block[begun:])
    rest = kept.take(b"")
    if rest.strip():
        yield "rest", rest


class _Kept:
    """Collected pieces of an incomplete element. An element above `MAX_BYTES` is truncated there."""

    def __init__(self) -> None:
        self._pieces, self._size = list[bytes](), 0

    def add(self, piece: bytes) -> None:
        if self._size <= MAX_BYTES:
            self._pieces.append(piece)
            self._size += len(piece)

    def take(self, last: bytes) -> bytes:
        if not self._size:
            return last
        self.add(last)
        whole = b"".join(self._pieces)
        self._pieces, self._size = [], 0
        return whole
