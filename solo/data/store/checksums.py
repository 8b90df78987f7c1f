"""Sizes and CRC-32 checksums of prepared files. CRC-32 detects damage, but not deliberate changes."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

_READ = 1 << 20
BLOCK = 1 << 14  # bytes of a token file per checksum


class FileSum(NamedTuple):
    """Size in bytes and CRC-32 of a file."""

    size: int
    crc: int


def file_sum(path: Path) -> FileSum:
    """Returns the size and checksum of a file, which it reads completely."""
    size = crc = 0
    with path.open("rb") as file:
        while data := file.read(_READ):
            size, crc = size + len(data), zlib.crc32(data, crc)
    return FileSum(size, crc)


def fault(path: Path, expected: FileSum, whole: bool = False) -> str | None:
    """Returns what is wrong with a file; None if its size, and with `whole` also its checksum, is as expected."""
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"{path} is missing" if isinstance(error, FileNotFoundError) else f"{path}: {error.strerror}"
    if size != expected.size:
        return f"{path} has {size:,} bytes, but {expected.size:,} were written"
    if whole and file_sum(path).crc != expected.crc:
        return f"{path} is damaged: its checksum differs from that of what was written"
    return None


class BlockSums:
    """Computes the checksums of consecutive blocks of `BLOCK` bytes while a file is written."""

    def __init__(self) -> None:
        self._done: list[int] = []
        self._crc = self._filled = 0

    def add(self, data: bytes) -> None:
        """Adds the next bytes of the file."""
        view = memoryview(data)
        while view:
            taken = view[: BLOCK - self._filled]
            self._crc, self._filled = zlib.crc32(taken, self._crc), self._filled + len(taken)
            view = view[len(taken) :]
            if self._filled == BLOCK:
                self._done.append(self._crc)
                self._crc = self._filled = 0

    def sums(self) -> np.ndarray:
        """Returns the checksum of every block, uint32 [blocks]; the last block may be shorter."""
        return np.asarray([*self._done, *([self._crc] if self._filled else [])], np.uint32)


def read_checked(file: IO[bytes], start: int, stop: int, sums: np.ndarray) -> bytes:
    """Returns the bytes [start, stop) of a file. Thread-safe. Reads and verifies only the blocks that contain them.

    Raises:
        OSError: the file is shorter, or a block is damaged.
    """
    if start >= stop:
        return b""
    first, last = start // BLOCK, -(-stop // BLOCK)
    data = os.pread(file.fileno(), (last - first) * BLOCK, first * BLOCK)
    view = memoryview(data)
    for block in range(first, last):
        part = view[(block - first) * BLOCK : (block - first + 1) * BLOCK]
        if zlib.crc32(part) != int(sums[block]):
            raise OSError(f"{file.name} is damaged: the checksum of bytes {block * BLOCK:,} and following differs")
    return data[start - first * BLOCK : stop - first * BLOCK]
