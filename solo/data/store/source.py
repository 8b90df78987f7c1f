"""A prepared source with random access to records and to chunks of long records."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from solo.config import ConfigError, ImageConfig
from solo.data.record import Image, Record
from solo.data.store.assemble import TOKENS_EVERY
from solo.data.store.checksums import FileSum, fault, read_checked
from solo.data.store.description import Description
from solo.data.store.index import IMAGE, SUPERVISED_TEXT, SourceIndex, open_array, open_index
from solo.data.store.mirror import Mirror, open_file
from solo.data.store.part import decode_record, is_image_file, open_array_record, stored_image
from solo.data.store.part_tokens import as_tokens
from solo.data.text.templates import TextRun

_OPEN_FILES = 256  # for each of two kinds, over all sources: the usual limit of a process is about 1,000 open files


@dataclass(frozen=True, slots=True)
class Piece:
    """The runs of a record that a chunk needs: whole images, but only the chunk's own tokens.

    parts        runs in reading order
    skip         slots of `parts` before the chunk, if the chunk begins inside an image
    length       slots of the whole record
    first_image  number of the record's images before `parts`
    images       number of images of the whole record
    """

    parts: list[TextRun | Image]
    skip: int
    length: int
    first_image: int
    images: int


class _Place(NamedTuple):
    """Location of a record: part number, index in `.records`, and index of its first token in `.tokens`."""

    part: int
    record: int
    token: int


class PreparedSource:
    """A prepared source. Opens files lazily, and keeps a limited number of them open.

    Thread-safe. Pickles as the path of its folder, so that processes share the memory of the index.

    Args:
        folder: the source's folder.
        check: verify the sizes of all files and the checksums of the index.

    Raises:
        FileNotFoundError: the folder does not contain a prepared source.
        ConfigError: a file is missing, truncated or damaged; the message names it.
    """

    def __init__(self, folder: str | Path, check: bool = True) -> None:
        self.folder = Path(folder)
        description = Description.read(self.folder)
        if description is None:
            raise FileNotFoundError(f"{self.folder} holds no prepared source")
        self.description = description
        self._index_folder = description.index_folder(self.folder)
        self._owner = _Owner(description)
        if check:
            self.check()

    def __len__(self) -> int:
        return self.description.records

    def __reduce__(self) -> tuple[type[PreparedSource], tuple[Path, bool]]:
        return PreparedSource, (self.folder, False)

    def check(self, contents: bool = False) -> None:
        """Verifies the files.

        Args:
            contents: verify the checksums of all files, which reads all of the data; otherwise the checksums of the
                index and the sizes of the other files.

        Raises:
            ConfigError: a file is missing, truncated or damaged.
        """
        parts = self.folder / "parts"
        faults = [fault(self._index_folder / name, found, whole=True) for name, found in self.description.index.items()]
        files = self._owner.files
        if (mirror := Mirror.around(self.folder)) is not None:
            faults += mirror.faults(self.folder, files, contents)
        else:
            faults += [fault(parts / name, found, whole=contents) for name, found in files.items()]
        if found := [each for each in faults if each is not None]:
            if contents:  # preparation does not verify them, because it would have to read all of the data
                shown = "".join(f"\n  {each}" for each in found)
                raise ConfigError(f"prepared data is damaged; remove these files and run: solo prepare CONFIG{shown}")
            more = f" (and {len(found) - 1:,} more files)" if len(found) > 1 else ""
            raise ConfigError(f"prepared data is damaged: {found[0]}{more}; run: solo prepare CONFIG")

    @cached_property
    def index(self) -> SourceIndex:
        """The runs of every record."""
        return open_index(self._index_folder)

    def id(self, number: int) -> str:
        """Returns the id of record `number`, from 0."""
        return self._record(self._place(number), stored_image).id

    def read(self, number: int) -> Record:
        """Returns record `number`, from 0, with its images.

        Raises:
            IndexError: there is no such record.
            OSError, RuntimeError: it cannot be read.
        """
        at = self._place(number)
        # Templates keep the order of a record's images, so it is also their order in the index.
        runs = self.index.unpacked(*self.index.span(number, number + 1))
        images = iter([value for kind, value in runs if kind == IMAGE])
        return self._record(at, lambda _: self._image(next(images)))

    def whole(self, number: int) -> list[TextRun | Image]:
        """Returns all runs of record `number`.

        Raises:
            IndexError: there is no such record.
            OSError, RuntimeError: a file cannot be read.
        """
        at = self._place(number)
        first, last = self.index.span(number, number + 1)
        found: list[TextRun | Image] = []
        tokens = self._read_tokens(at, 0, self.index.tokens(first, last))
        for kind, value in self.index.unpacked(first, last):
            if kind == IMAGE:
                found.append(self._image(value))
            else:
                found.append(TextRun(tokens[:value], kind == SUPERVISED_TEXT))
                tokens = tokens[value:]
        return found

    def chunk(self, number: int, start: int, stop: int, image: ImageConfig) -> Piece:
        """Returns the slots [start, stop) of record `number` in reading order.

        Reads only the tokens and images of these slots.

        Args:
            number: number of the record, from 0.
            start: first slot.
            stop: one past the last slot.
            image: config of the conversion of images to patches.

        Raises:
            IndexError: there is no such record.
            OSError, RuntimeError: a file cannot be read.
        """
        at = self._place(number)
        kinds, values = self.index.run_kinds(number, number + 1), self.index.run_values(number, number + 1)
        ends = np.cumsum(self.index.run_counts(image, number, number + 1)[:, :2].sum(axis=1))
        begins = np.concatenate([[0], ends[:-1]])
        is_image = kinds == IMAGE
        tokens_before = np.cumsum(np.where(is_image, 0, values)) - np.where(is_image, 0, values)
        inside = np.flatnonzero((ends > start) & (begins < stop)).tolist()
        parts: list[TextRun | Image] = []
        for run in inside:
            if is_image[run]:
                parts.append(self._image(int(values[run])))
                continue
            begin, first = int(begins[run]), int(tokens_before[run])
            tokens = self._read_tokens(at, first + max(start - begin, 0), first + min(stop, int(ends[run])) - begin)
            parts.append(TextRun(tokens, bool(kinds[run] == SUPERVISED_TEXT)))
        first_run = inside[0] if inside else 0
        return Piece(
            parts,
            skip=max(start - int(begins[first_run]), 0) if inside and is_image[first_run] else 0,
            length=int(ends[-1]),
            first_image=int(is_image[:first_run].sum()),
            images=int(is_image.sum()),
        )

    def _place(self, number: int) -> _Place:
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} of {self.folder}, which has {len(self)}")
        left_out = int(np.searchsorted(self._gaps, number, side="right")) if len(self._gaps) else 0
        block, index = number // TOKENS_EVERY, self.index
        tokens = int(self._tokens_before[block])
        tokens += index.tokens(int(index.record_run[block * TOKENS_EVERY]), int(index.record_run[number]))
        if left_out:
            tokens += int(self._excluded[left_out - 1, 1])
        raw = number + left_out
        part = bisect_right(self._before[0], raw) - 1
        return _Place(part, raw - self._before[0][part], tokens - self._before[1][part])

    @cached_property
    def _before(self) -> list[list[int]]:
        """Numbers of records, tokens, stored images and token checksums before each part."""
        found: list[list[int]] = open_array(self._index_folder, "parts").T.tolist()
        return found

    @cached_property
    def _sums(self) -> np.ndarray:
        return open_array(self._index_folder, "token_sums")

    @cached_property
    def _tokens_before(self) -> np.ndarray:
        return open_array(self._index_folder, "tokens_before")

    @cached_property
    def _excluded(self) -> np.ndarray:
        return open_array(self._index_folder, "excluded")

    @cached_property
    def _gaps(self) -> np.ndarray:
        """Number of records that are not excluded before each excluded one, int64 [E]."""
        found: np.ndarray = self._excluded[:, 0] - np.arange(len(self._excluded))
        return found

    def _record(self, at: _Place, image: Callable[[int], Image]) -> Record:
        return decode_record(self._entry(self._path(at.part, "records"), at.record), image).record

    def _image(self, number: int) -> Image:
        part = bisect_right(self._before[2], number) - 1
        return Image(self._entry(self._image_paths[part], number - self._before[2][part]))

    def _entry(self, path: str, number: int) -> bytes:
        data: bytes = _shard(self._owner, path).read([number])[0]
        if not data:  # ArrayRecord returns nothing if a file was truncated after it was opened
            raise OSError(f"{path} is cut or damaged")
        return data

    def _read_tokens(self, at: _Place, start: int, stop: int) -> np.ndarray:
        """Returns the tokens [start, stop) of a record."""
        if start == stop:
            return np.zeros(0, np.uint16)
        file = _token_file(self._owner, self._path(at.part, f"{self.description.tokens}.tokens"))
        width = self.description.width
        sums = self._sums[self._before[3][at.part] : self._before[3][at.part + 1]]
        return as_tokens(read_checked(file, (at.token + start) * width, (at.token + stop) * width, sums), width)

    # Paths are strings, because joining a Path takes as long as finding a record.

    def _path(self, part: int, end: str) -> str:
        return f"{self.folder}/parts/{self.description.parts[part].name}.{end}"

    @cached_property
    def _image_paths(self) -> list[str]:
        """Path of each part's image file; "" if it has none."""
        found = [next(filter(is_image_file, part.files), "") for part in self.description.parts]
        return [name and f"{self.folder}/parts/{name}" for name in found]


class _Owner:
    """Opens the files of a source."""

    def __init__(self, description: Description) -> None:
        self._description = description

    @cached_property
    def files(self) -> dict[str, FileSum]:
        """Size and checksum of every file of the parts, by its name."""
        return {name: found for part in self._description.parts for name, found in part.files.items()}

    def open(self, path: Path, opened: Callable[[Path], Any]) -> Any:
        """Opens a file, after downloading it if it is in a bucket."""
        is_here = path.exists()
        file = open_file(path, self.files[path.name], opened)
        if not is_here:  # deleted files use disk space until they are closed
            _shard.cache_clear()
            _token_file.cache_clear()
        return file


# Open files of all sources. `owner` distinguishes a source from one reopened after its files changed.


@lru_cache(_OPEN_FILES)
def _shard(owner: _Owner, path: str) -> Any:
    return owner.open(Path(path), open_array_record)


@lru_cache(_OPEN_FILES)
def _token_file(owner: _Owner, path: str) -> IO[bytes]:
    return owner.open(Path(path), lambda path: path.open("rb", buffering=0))
