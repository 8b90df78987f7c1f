"""Reading safetensors files: strictly, and with a bounded memory.

Our own rather than the `safetensors` package, which maps files into memory: pages of a map count as the process's
own until the kernel takes them back, so that reading a 14 GB model would seem to need 14 GB, and under a memory
limit may need them. Here a tensor is read into one buffer and goes when its last user does.

The format: 8 bytes, little endian, the length of a JSON header; the header, name -> {dtype, shape, data_offsets}, the
offsets counted from the header's end; then the values, without gaps.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

DTYPES: Mapping[str, np.dtype] = {
    name: np.dtype(kind)
    for name, kind in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_LONGEST_HEADER = 100_000_000  # the format's own limit
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class TensorFileError(ValueError):
    """A file of tensors that is missing, damaged, or not what its index says."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, shape and dtype of a tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return prod(self.shape) * self.dtype.itemsize


class TensorReader(Mapping[str, TensorInfo]):
    """The tensors of a repository, or of one file: a mapping of what there is, and `read` for the values.

    Every header is read and checked at once, no value is. Use it as a context manager, or `close` it.

    Args:
        path: a folder with model.safetensors, or with an index and its shards; or one file.

    Raises:
        TensorFileError: nothing there that can be read (pickles are never opened), or a damaged file.
    """

    def __init__(self, path: str | Path):
        self._places: dict[str, tuple[TensorInfo, int, int, Path]] = {}
        self._files = ExitStack()
        try:
            for file, expected in _files(Path(path)):
                self._open(file, expected)
        except BaseException:
            self.close()
            raise

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The values of a tensor, or of `start:stop` along its first axis, in its dtype.

        Raises:
            KeyError: there is no such tensor.
            IndexError: the tensor has no such rows.
            TensorFileError: the file ended, or changed, since it was opened.
        """
        info, descriptor, offset, file = self._places[name]
        shape, row = info.shape, info.nbytes
        if start or stop is not None:
            rows = shape[0] if shape else 0
            stop = rows if stop is None else stop
            if not 0 <= start <= stop <= rows:
                raise IndexError(f"{name} has {rows} rows; asked for {start}:{stop}")
            row = info.nbytes // rows if rows else 0
            shape, offset = (stop - start, *shape[1:]), offset + start * row
        values = np.empty(shape, info.dtype)
        buffer = values.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(buffer):
            count = os.preadv(descriptor, [buffer[done:]], offset + done)
            if not count:
                raise TensorFileError(f"{file} became shorter while it was read: {name} is cut")
            done += count
        return values

    def close(self) -> None:
        """Let go of the files."""
        self._files.close()

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getitem__(self, name: str) -> TensorInfo:
        return self._places[name][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def _open(self, file: Path, expected: set[str] | None) -> None:
        try:
            descriptor = os.open(file, os.O_RDONLY)
        except OSError as error:
            raise TensorFileError(f"cannot read {file}: {error.strerror}") from None
        self._files.callback(os.close, descriptor)
        infos, start = _header(file, descriptor)
        if expected is not None and (lines := _disagreements(expected, {info.name for info, _ in infos})):
            raise TensorFileError(f"{file.parent / INDEX} and {file.name} disagree:\n" + "\n".join(lines))
        for info, offset in infos:
            if info.name in self._places:
                raise TensorFileError(f"{info.name} is both in {self._places[info.name][3]} and in {file}")
            self._places[info.name] = (info, descriptor, start + offset, file)


def _files(path: Path) -> Iterator[tuple[Path, set[str] | None]]:
    """The files to read, and what the index says is in each."""
    if path.is_file() and path.suffix == ".safetensors":
        yield path, None
    elif (path / INDEX).is_file():
        shards: dict[str, set[str]] = {}
        for name, shard in _index(path / INDEX).items():
            shards.setdefault(shard, set()).add(name)
        if missing := [shard for shard in shards if not (path / shard).is_file()]:
            raise TensorFileError(f"{path} lacks {', '.join(sorted(missing))}, which its {INDEX} names")
        yield from ((path / shard, names) for shard, names in shards.items())
    elif (path / SINGLE).is_file():
        yield path / SINGLE, None
    else:
        raise TensorFileError(_nothing_there(path))


def _index(file: Path) -> Mapping[str, str]:
    try:
        weight_map = json.loads(file.read_text(), object_pairs_hook=_no_duplicates)["weight_map"]
        pairs = list(weight_map.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TensorFileError(f"{file} is no index of tensors: {error}") from None
    for name, shard in pairs:
        # A name with a path in it would be read from outside the repository.
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise TensorFileError(f"{file}: {name} is said to be in {shard!r}; expected a .safetensors file beside it")
    return weight_map


def _nothing_there(path: Path) -> str:
    if not path.exists():
        return f"{path} does not exist"
    where = path if path.is_dir() else path.parent
    pickles = sorted(file.name for pattern in _PICKLES for file in where.glob(pattern))
    if path.name in pickles or (path.is_dir() and pickles):
        return (
            f"{path} holds its weights as pickles ({', '.join(pickles[:3])}), which run code when they are read, so"
            " solo never opens them; convert them to safetensors where you trust them"
        )
    shards = sorted(file.name for file in where.glob("*.safetensors"))
    found = f"found {', '.join(shards[:3])}, but no {INDEX}" if shards else "no safetensors file"
    return f"{path} has no {SINGLE} and no {INDEX}: {found}"


def _header(file: Path, descriptor: int) -> tuple[list[tuple[TensorInfo, int]], int]:
    """The tensors of a file with the offsets of their values, and where values begin."""
    size = os.fstat(descriptor).st_size
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if size < 8 or length > min(size - 8, _LONGEST_HEADER):
        raise TensorFileError(f"{file} is cut or no safetensors file: {size} bytes, with a header of {length}")
    try:
        header = json.loads(os.pread(descriptor, length, 8), object_pairs_hook=_no_duplicates)
        entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, AttributeError) as error:  # not UTF-8, not JSON, a name twice, or no mapping
        raise TensorFileError(f"{file} has a damaged header: {error}") from None
    found = [_entry(file, name, entry) for name, entry in entries]
    expected = 0
    for info, offset in sorted(found, key=lambda item: (item[1], item[0].nbytes)):
        if offset != expected:
            fault = "overlaps the tensor before it" if offset < expected else f"follows {offset - expected} stray bytes"
            raise TensorFileError(f"{file}: {info.name} {fault}")
        expected += info.nbytes
    if expected != size - 8 - length:
        raise TensorFileError(
            f"{file} is cut or damaged: its header tells of {expected} bytes of values, it has {size - 8 - length}"
        )
    return found, 8 + length


def _entry(file: Path, name: str, entry: Any) -> tuple[TensorInfo, int]:
    try:
        kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
    except (KeyError, TypeError, ValueError):
        raise TensorFileError(f"{file}: the header's entry for {name} is damaged: {entry!r}") from None
    if any(type(number) is not int or number < 0 for number in numbers):
        raise TensorFileError(f"{file}: the header's entry for {name} has impossible numbers: {entry!r}")
    if kind not in DTYPES:
        raise TensorFileError(f"{file}: {name} has dtype {kind!r}; known are {', '.join(DTYPES)}")
    info = TensorInfo(name, tuple(shape), DTYPES[kind])
    if end - begin != info.nbytes:
        raise TensorFileError(
            f"{file}: {name} is {kind} {info.shape}, {info.nbytes} bytes, but has {end - begin} in the file"
        )
    return info, begin


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _disagreements(indexed: set[str], stored: set[str]) -> list[str]:
    lines = [f"  the file lacks {name}" for name in sorted(indexed - stored)[:10]]
    return lines + [f"  the index does not know {name}" for name in sorted(stored - indexed)[:10]]
