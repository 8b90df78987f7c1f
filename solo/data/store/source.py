"""A prepared source with random access to records, and to pieces of long records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from solo.config import ConfigError, ImageConfig
from solo.data.record import Image, Record
from solo.data.store.assemble import TOKENS_EVERY
from solo.data.store.checksums import fault, read_checked
from solo.data.store.description import Description
from solo.data.store.index import IMAGE, SUPERVISED_TEXT, SourceIndex
from solo.data.store.part import decode_record, open_array_record, read_table, stored_image
from solo.data.store.part_tokens import as_tokens, read_token_sums
from solo.data.text.templates import TextRun

_OPEN_FILES = 256  # of each kind; a source may have more parts than a process may have open files


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a record that a chunk needs: whole images, and the tokens of the chunk alone.

    parts        runs in reading order
    skip         slots of `parts` before the chunk, which are those of an image that it begins in
    length       slots of the whole record
    first_image  number of the record's images before `parts`
    images       images of the whole record
    """

    parts: list[TextRun | Image]
    skip: int
    length: int
    first_image: int
    images: int


class PreparedSource:
    """A prepared source. Opens files when they are first needed, and keeps some of them open.

    Thread-safe. Pickles as the name of its folder; processes share the memory of the index.

    Args:
        folder: of the source.
        check: compare the sizes of all files, and the checksums of the index, with what was written.

    Raises:
        FileNotFoundError: the folder holds no prepared source.
        ConfigError: a file is missing, cut or damaged; the message names it.
    """

    def __init__(self, folder: str | Path, check: bool = True) -> None:
        self.folder = Path(folder)
        description = Description.read(self.folder)
        if description is None:
            raise FileNotFoundError(f"{self.folder} holds no prepared source")
        self.description = description
        if check:
            self.check()
        self._records = lru_cache(_OPEN_FILES)(partial(self._open, "records"))
        self._images = lru_cache(_OPEN_FILES)(partial(self._open, "images"))
        self._tokens = lru_cache(_OPEN_FILES)(self._open_tokens)
        self._numbers = lru_cache(maxsize=4)(self._image_numbers)

    def __len__(self) -> int:
        return self.description.records

    def __reduce__(self) -> tuple[type[PreparedSource], tuple[Path, bool]]:
        return PreparedSource, (self.folder, False)

    def check(self, contents: bool = False) -> None:
        """Checks that the files are as they were written.

        Args:
            contents: compare the checksums of all files, which reads all of the data; otherwise those of the index, and
                the sizes of the others.

        Raises:
            ConfigError: a file is missing, cut or damaged.
        """
        index, parts = self.description.index_folder(self.folder), self.folder / "parts"
        faults = [fault(index / name, found, whole=True) for name, found in self.description.index.items()]
        for part in self.description.parts:
            faults += [fault(parts / name, found, whole=contents) for name, found in part.files.items()]
        if found := [each for each in faults if each is not None]:
            more = f" (and {len(found) - 1:,} more files)" if len(found) > 1 else ""
            raise ConfigError(f"prepared data is damaged: {found[0]}{more}; run: solo prepare CONFIG")

    @cached_property
    def index(self) -> SourceIndex:
        """The runs of every record."""
        return SourceIndex(self._array("runs"), self._array("record_run"), self._array("image_size"))

    def id(self, number: int) -> str:
        """Returns the id of record `number`, from 0."""
        return self._record(number, stored_image).id

    def read(self, number: int) -> Record:
        """Returns record `number`, from 0, with its images.

        Raises:
            IndexError: there is no such record.
            OSError, RuntimeError: it cannot be read.
        """
        part, _ = self._place(number)
        return self._record(number, lambda image: self._image(int(self._numbers(part)[image])))

    def chunk(self, number: int, start: int, stop: int, image: ImageConfig) -> Piece:
        """Returns the slots [start, stop) of record `number` in reading order.

        Reads only the tokens of those slots, and the images that lie in them.

        Args:
            number: of the record, from 0.
            start: first slot.
            stop: one past the last slot.
            image: how images become patches.

        Raises:
            IndexError: there is no such record.
            OSError, RuntimeError: a file cannot be read.
        """
        part, token = self._place(number)
        index = self.index
        kinds, values = index.run_kinds(number, number + 1), index.run_values(number, number + 1)
        slots = index.run_counts(image, number, number + 1)[:, :2].sum(axis=1)
        ends = np.cumsum(slots)
        begins = ends - slots
        is_image = kinds == IMAGE
        tokens_before = np.cumsum(np.where(is_image, 0, values)) - np.where(is_image, 0, values)
        inside = np.flatnonzero((ends > start) & (begins < stop))
        parts: list[TextRun | Image] = []
        for run in inside.tolist():
            if is_image[run]:
                parts.append(self._image(int(values[run])))
                continue
            first = token + int(tokens_before[run])
            low, high = max(start - int(begins[run]), 0), min(stop - int(begins[run]), int(slots[run]))
            supervised = bool(kinds[run] == SUPERVISED_TEXT)
            parts.append(TextRun(self._read_tokens(part, first + low, first + high), supervised))
        skip = 0
        if len(inside) and is_image[inside[0]]:
            skip = max(start - int(begins[inside[0]]), 0)
        first_image = int(is_image[: inside[0]].sum()) if len(inside) else 0
        return Piece(parts, skip, int(ends[-1]), first_image, int(is_image.sum()))

    def _place(self, number: int) -> tuple[int, int]:
        """Returns the part of a record, and the place of its first token in the part's tokens."""
        raw, tokens = self._raw(number)
        part = int(np.searchsorted(self._parts[:, 0], raw, side="right")) - 1
        return part, tokens - int(self._parts[part, 1])

    def _raw(self, number: int) -> tuple[int, int]:
        """Returns the record's number among all records of the parts, and the tokens of the parts before it."""
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} of {self.folder}, which has {len(self)}")
        left_out = int(np.searchsorted(self._gaps, number, side="right"))
        block = number // TOKENS_EVERY
        first = block * TOKENS_EVERY
        kinds, values = self.index.run_kinds(first, number), self.index.run_values(first, number)
        tokens = int(self._tokens_before[block]) + int(values[kinds != IMAGE].sum())
        return number + left_out, tokens + (int(self._excluded[left_out - 1, 1]) if left_out else 0)

    @cached_property
    def _parts(self) -> np.ndarray:
        return np.load(self.description.index_folder(self.folder) / "parts.npy")

    @cached_property
    def _tokens_before(self) -> np.ndarray:
        return self._array("tokens_before")

    @cached_property
    def _excluded(self) -> np.ndarray:
        return self._array("excluded")

    @cached_property
    def _gaps(self) -> np.ndarray:
        """The records before each excluded one, int64 [E]."""
        found: np.ndarray = self._excluded[:, 0] - np.arange(len(self._excluded))
        return found

    def _array(self, name: str) -> np.ndarray:
        path = self.description.index_folder(self.folder) / f"{name}.npy"
        try:
            found: np.ndarray = np.load(path, mmap_mode="r")
        except ValueError:  # an empty array cannot be mapped
            found = np.load(path)
        return found.view(np.ndarray)

    def _record(self, number: int, image: Callable[[int], Image]) -> Record:
        raw, _ = self._raw(number)
        part, _ = self._place(number)
        (data,) = self._records(part).read([raw - int(self._parts[part, 0])])
        return decode_record(data, image).record

    def _image(self, number: int) -> Image:
        part = int(np.searchsorted(self._parts[:, 2], number, side="right")) - 1
        (data,) = self._images(part).read([number - int(self._parts[part, 2])])
        return Image(data)

    def _image_numbers(self, part: int) -> np.ndarray:
        """Returns the number in the source of each image of a part's table."""
        table = read_table(self.folder / "parts", self.description.parts[part].name)
        return int(self._parts[part, 2]) + np.arange(len(table.stored))

    def _open(self, end: str, part: int) -> Any:
        return open_array_record(self._path(part, end))

    def _open_tokens(self, part: int) -> tuple[IO[bytes], np.ndarray]:
        name, tokens = self.description.parts[part].name, self.description.tokens
        sums = read_token_sums(self.folder / "parts", name, tokens)
        return self._path(part, f"{tokens}.tokens").open("rb", buffering=0), sums

    def _read_tokens(self, part: int, start: int, stop: int) -> np.ndarray:
        file, sums = self._tokens(part)
        width = self.description.width
        return as_tokens(read_checked(file, start * width, stop * width, sums), width)

    def _path(self, part: int, end: str) -> Path:
        return self.folder / "parts" / f"{self.description.parts[part].name}.{end}"
