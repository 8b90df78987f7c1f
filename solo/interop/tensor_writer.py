"""Writing safetensors files, two tensors in memory at a time, and folders that are complete or not there."""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from solo.interop.tensor_reader import DTYPES, INDEX, SINGLE, TensorFileError, TensorInfo

MAX_SHARD_BYTES = 5_000_000_000
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@contextmanager
def complete_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to fill: it gets its name when the block ends well, and is removed otherwise.

    Yields:
        `<folder>.partial`, beside where the folder will be.

    Raises:
        FileExistsError: the folder is there already, or its partial one: another process fills it, or was killed.
    """
    folder = Path(folder)
    partial = folder.with_name(folder.name + ".partial")
    if folder.exists():
        raise FileExistsError(f"{folder} exists; it is not overwritten: remove it or choose another place")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial.mkdir()
    except FileExistsError:
        raise FileExistsError(
            f"{partial} exists: another process is writing it, or one was killed; remove it if none is"
        ) from None
    try:
        yield partial
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_tensors(
    folder: Path,
    tensors: Sequence[TensorInfo],
    values: Callable[[str], np.ndarray],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write tensors to model.safetensors, or to shards and their index where they are more than one shard holds.

    Args:
        folder: where; it should have no other weights.
        tensors: all of them, in the order in which they are wanted.
        values: name -> its values; asked once for each tensor in their order, in another thread, for one tensor while
            the one before it is written.
        max_shard_bytes: of values in a file; a larger tensor has a file of its own.

    Raises:
        TensorFileError: values of another shape or dtype than announced, or a disk without room for them.
        OSError: the disk refused.
    """
    total = sum(info.nbytes for info in tensors)
    if total > (free := shutil.disk_usage(folder).free):
        raise TensorFileError(f"{folder} needs {total:,} bytes; the disk has {free:,} left")
    shards = _shards(tensors, max_shard_bytes)
    names = [SINGLE] if len(shards) == 1 else [_shard_name(number, len(shards)) for number in range(len(shards))]
    with closing(_ahead(values, [info.name for info in tensors])) as found:
        for name, shard in zip(names, shards, strict=True):
            _write_shard(folder / name, shard, found)
    if len(shards) > 1:
        weight_map = {info.name: name for name, shard in zip(names, shards, strict=True) for info in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _shards(tensors: Sequence[TensorInfo], limit: int) -> list[list[TensorInfo]]:
    shards: list[list[TensorInfo]] = [[]]
    size = 0
    for info in tensors:
        if shards[-1] and size + info.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(info)
        size += info.nbytes
    return shards


def _shard_name(number: int, count: int) -> str:
    return f"model-{number + 1:05}-of-{count:05}.safetensors"


@dataclass(frozen=True)
class _Placed:
    header: bytes
    offsets: Mapping[str, int]


def _place(shard: Sequence[TensorInfo]) -> _Placed:
    """Widest dtypes first, so that every tensor is aligned to its own; the header filled up to 8 bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets, end = {}, 0
    for info in sorted(shard, key=lambda info: -info.dtype.itemsize):
        offsets[info.name] = end
        entries[info.name] = {
            "dtype": _NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [end, end + info.nbytes],
        }
        end += info.nbytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    start = 8 + len(header)
    return _Placed(
        len(header).to_bytes(8, "little") + header, {name: start + offset for name, offset in offsets.items()}
    )


def _ahead(values: Callable[[str], np.ndarray], names: Sequence[str]) -> Generator[np.ndarray, None, None]:
    """The values of each name, the next ones being made meanwhile."""
    with ThreadPoolExecutor(1) as maker:
        upcoming = deque([maker.submit(values, name) for name in names[:1]])
        for following in [*names[1:], None]:
            found = upcoming.popleft().result()
            if following is not None:
                upcoming.append(maker.submit(values, following))
            yield found
            del found


def _write_shard(file: Path, shard: Sequence[TensorInfo], values: Iterator[np.ndarray]) -> None:
    placed = _place(shard)
    with open(file, "xb", buffering=0) as opened:
        _write(opened.fileno(), memoryview(placed.header), 0)
        for info in shard:
            found = next(values)
            if (found.shape, found.dtype) != (info.shape, info.dtype):
                raise TensorFileError(
                    f"{info.name} should be {info.dtype} {info.shape}; it is {found.dtype} {found.shape}"
                )
            flat = np.ascontiguousarray(found).reshape(-1).view(np.uint8)
            _write(opened.fileno(), flat.data, placed.offsets[info.name])
            del found, flat
        os.fsync(opened.fileno())


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)
