"""Safetensors files: a strict reader, and a writer that holds two tensors in memory.

Files are read with the `safetensors` package and its `pread` backend, because mapped files would count towards the
process's memory. They are written by our own code, because the package needs all tensors of a file at once. A file
consists of the length of the header (8 bytes, little endian), a JSON header (name -> dtype, shape, data_offsets), and
the values without gaps.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from solo.files import lfs_pointer
from solo.interop.config_json import adapter_message

# The dtypes that safetensors can read into NumPy arrays. Its float8 needs PyTorch.
_DTYPES: Mapping[str, np.dtype] = {
    **{f"F{8 * size}": np.dtype(f"f{size}") for size in (2, 4, 8)},
    **{f"{kind.upper()}{8 * size}": np.dtype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_SHARD_BYTES = 5_000_000_000
_VALUES_CHECKED = 1 << 18  # at once, which fit into a processor's cache
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class TensorFileError(ValueError):
    """A file of tensors is missing or damaged, or contradicts its index."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, shape and dtype of a tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return prod(self.shape) * self.dtype.itemsize


def tensor_names(folder: str | Path) -> frozenset[str]:
    """Returns the names of a repository's tensors. Raises TensorFileError; see `TensorReader`."""
    with TensorReader(folder) as reader:
        return frozenset(reader)


class TensorReader(Mapping[str, TensorInfo]):
    """The tensors of a repository or of one file: a mapping of names to infos, and `read` for the values.

    The constructor reads and checks every header but no values. Use it as a context manager, or call `close`.

    Args:
        path: a folder with model.safetensors, or with an index and its shards; or one file.

    Raises:
        TensorFileError: there is no safetensors file (pickles are never opened), or a file is damaged.
    """

    def __init__(self, path: str | Path):
        self._tensors: dict[str, tuple[TensorInfo, Any, Path]] = {}
        self._opened = ExitStack()
        try:
            for file, expected in _files(Path(path)):
                self._open(file, expected)
        except BaseException:
            self.close()
            raise

    def _open(self, file: Path, expected: set[str] | None) -> None:
        # safetensors reports every failure to open a file as a missing file.
        try:
            pointer = lfs_pointer(file)
        except OSError as error:
            raise TensorFileError(f"{file} cannot be read: {error.strerror}") from None
        if pointer is not None:
            raise TensorFileError(pointer)
        try:
            opened = self._opened.enter_context(safe_open(file, "numpy", backend="pread"))
        except (SafetensorError, OSError) as error:
            raise TensorFileError(f"{file} is damaged, truncated or not a safetensors file: {error}") from None
        names = list(opened.keys())
        if expected is not None and (different := sorted(expected ^ set(names))):
            raise TensorFileError(f"{file.parent / INDEX} and {file.name} disagree on {', '.join(different[:10])}")
        for name in names:
            entry = opened.get_slice(name)
            if (kind := entry.get_dtype()) not in _DTYPES:
                remedy = "Dequantise the model with its scales" if kind[:2] in ("F8", "F4") else "Convert it"
                raise TensorFileError(f"{file}: {name} has dtype {kind}; solo reads {', '.join(_DTYPES)}. {remedy}")
            self._tensors[name] = (TensorInfo(name, tuple(entry.get_shape()), _DTYPES[kind]), opened, file)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns the values of a tensor, or of rows `start:stop` of its first axis, in its dtype.

        Raises:
            KeyError: there is no such tensor.
            TensorFileError: the file was truncated or replaced after it was opened, or a value is NaN or infinite.
        """
        _, opened, file = self._tensors[name]
        try:
            whole = start == 0 and stop is None
            values = opened.get_tensor(name) if whole else opened.get_slice(name)[start:stop]
        except (SafetensorError, OSError) as error:
            raise TensorFileError(f"{file} changed while it was read: {error}") from None
        if count := _not_finite(values):
            raise TensorFileError(f"{file}: {name} has {count:,} of {values.size:,} values that are NaN or infinite")
        return values

    def close(self) -> None:
        """Close the files."""
        self._opened.close()

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getitem__(self, name: str) -> TensorInfo:
        return self._tensors[name][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _not_finite(values: np.ndarray) -> int:
    """Returns the number of NaN or infinite values: those whose exponent bits are all set."""
    try:
        kind = ml_dtypes.finfo(values.dtype)
    except ValueError:  # integers
        return 0
    unsigned = np.dtype(f"u{values.dtype.itemsize}")
    exponent = unsigned.type(((1 << kind.nexp) - 1) << kind.nmant)
    bits = np.ascontiguousarray(values).reshape(-1).view(unsigned)
    blocks = (bits[start : start + _VALUES_CHECKED] for start in range(0, len(bits), _VALUES_CHECKED))
    return sum(int(np.count_nonzero(block & exponent == exponent)) for block in blocks)


def _files(path: Path) -> Iterator[tuple[Path, set[str] | None]]:
    """Yields the files to read, each with the names that the index places in it."""
    if path.is_file() and path.suffix == ".safetensors":
        yield path, None
    elif adapter := adapter_message(path):
        raise TensorFileError(adapter)
    elif (path / SINGLE).is_file():
        # An index may be left over from an earlier, sharded save in the same folder; transformers ignores it too.
        if (path / INDEX).is_file() and all((path / shard).is_file() for shard in _weight_map(path / INDEX).values()):
            raise TensorFileError(
                f"{path} has weights twice, in {SINGLE} and in the shards of {INDEX}; remove {INDEX} to read the"
                f" first, or {SINGLE} to read the second"
            )
        yield path / SINGLE, None
    elif (path / INDEX).is_file():
        shards: dict[str, set[str]] = {}
        for name, shard in _weight_map(path / INDEX).items():
            shards.setdefault(shard, set()).add(name)
        if missing := [shard for shard in shards if not (path / shard).is_file()]:
            raise TensorFileError(f"{path} lacks {', '.join(sorted(missing))}, which its {INDEX} names")
        yield from ((path / shard, names) for shard, names in shards.items())
    else:
        raise TensorFileError(_nothing_to_read(path))


def _weight_map(file: Path) -> Mapping[str, str]:
    try:
        if pointer := lfs_pointer(file):
            raise TensorFileError(pointer)
        found = dict(json.loads(file.read_text(encoding="utf-8"))["weight_map"])
    except TensorFileError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TensorFileError(f"{file} is not an index of tensors: {error}") from None
    for name, shard in found.items():
        # A name with a path in it would be read from outside the repository.
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise TensorFileError(f"{file} places {name} in {shard!r}; expected a .safetensors file in the same folder")
    return found


def _nothing_to_read(path: Path) -> str:
    if not path.exists():
        return f"{path} does not exist"
    folder = path if path.is_dir() else path.parent
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if path.name in pickles or (path.is_dir() and pickles):
        return (
            f"{path} stores its weights as pickles ({', '.join(pickles[:3])}), which run code when they are loaded, so"
            " solo never opens them; convert them to safetensors on a machine where you trust them"
        )
    shards = sorted(file.name for file in folder.glob("*.safetensors"))
    found = f"found {', '.join(shards[:3])}, but no {INDEX}" if shards else "there is no safetensors file"
    return f"{path} has neither {SINGLE} nor {INDEX}: {found}"


def write_tensors(
    folder: Path,
    tensors: Sequence[TensorInfo],
    values: Callable[[str], np.ndarray],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write model.safetensors, or shards and their index if the tensors exceed `max_shard_bytes`.

    Args:
        folder: an existing folder without other weights.
        tensors: all tensors. Shards are filled in this order.
        values: name -> values. Called once for each tensor, in a thread, for one tensor while the one before it is
            written. Within a shard wide dtypes come first, otherwise the order is that of `tensors`.
        max_shard_bytes: limit on the values in a file. A larger tensor gets a file of its own.

    Raises:
        TensorFileError: values have another shape or dtype than announced, or the disk has too little space.
        OSError: writing failed.
    """
    total = sum(info.nbytes for info in tensors)
    if total > (free := shutil.disk_usage(folder).free):
        raise TensorFileError(f"{folder} needs {total:,} bytes, but only {free:,} are free on its disk")
    shards = _shards(tensors, max_shard_bytes)
    count = len(shards)
    files = [SINGLE if count == 1 else f"model-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)]
    with closing(_prefetched(values, [info.name for shard in shards for info in shard])) as arrays:
        for file, shard in zip(files, shards, strict=True):
            _write_shard(folder / file, shard, arrays)
    if count > 1:
        weight_map = {info.name: file for file, shard in zip(files, shards, strict=True) for info in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _shards(tensors: Sequence[TensorInfo], limit: int) -> list[list[TensorInfo]]:
    shards: list[list[TensorInfo]] = [[]]
    for info in tensors:
        if shards[-1] and sum(each.nbytes for each in shards[-1]) + info.nbytes > limit:
            shards.append([])
        shards[-1].append(info)
    # Wide dtypes first: every tensor is then aligned to its dtype.
    return [sorted(shard, key=lambda info: -info.dtype.itemsize) for shard in shards]


def _prefetched(values: Callable[[str], np.ndarray], names: Sequence[str]) -> Generator[np.ndarray, None, None]:
    """Yields the values of each name, while a thread makes the next ones."""
    with ThreadPoolExecutor(1) as maker:
        upcoming = maker.submit(values, names[0])
        for name in names[1:]:
            found = upcoming.result()
            upcoming = maker.submit(values, name)
            yield found
            del found
        yield upcoming.result()


def _write_shard(file: Path, shard: Sequence[TensorInfo], arrays: Iterator[np.ndarray]) -> None:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for info in shard:
        offsets = [end, end := end + info.nbytes]
        entries[info.name] = {"dtype": _NAMES[info.dtype], "shape": list(info.shape), "data_offsets": offsets}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with open(file, "xb") as opened:
        opened.write(len(header).to_bytes(8, "little") + header)
        for info in shard:
            found = next(arrays)
            if (found.shape, found.dtype) != (info.shape, info.dtype):
                raise TensorFileError(
                    f"{info.name} should be {info.dtype} {info.shape}; it is {found.dtype} {found.shape}"
                )
            opened.write(np.ascontiguousarray(found).reshape(-1).view(np.uint8).data)
            del found
        opened.flush()
        os.fsync(opened.fileno())


@contextmanager
def complete_folder(folder: str | Path) -> Iterator[Path]:
    """Yields `<folder>.partial`, which is renamed to `folder` if the block succeeds and removed otherwise.

    Raises:
        FileExistsError: the folder or its partial folder exists. Another process is writing the latter, or was killed.
        TensorFileError: the folder cannot be created, or a file cannot be written.
    """
    folder = Path(folder)
    if os.path.lexists(folder):
        raise FileExistsError(f"{folder} already exists; remove it or choose another folder")
    partial = folder.with_name(folder.name + ".partial")
    if os.path.lexists(partial):
        raise FileExistsError(
            f"{partial} exists: another process is writing it, or one was killed; if none is writing it, remove it"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    except OSError as error:
        raise TensorFileError(f"{folder} cannot be created: {error.filename}: {error.strerror}") from None
    try:
        yield partial
        os.rename(partial, folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        # Errors of libraries that are not the system's have no number.
        if isinstance(error, OSError) and error.errno is not None:
            raise TensorFileError(f"{folder} was not written: {error.strerror}") from error
        raise
