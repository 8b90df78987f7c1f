"""The index of a source: the runs of every record as flat arrays. Planning reads nothing else.

Image sizes are stored in pixels, before any resizing or rotation, so one index serves every image geometry and both
EXIF rules.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from solo.config import ImageConfig
from solo.data.images.delimiters import image_text
from solo.data.images.geometry import patch_grid, visual_tokens
from solo.data.record import Exif, Image
from solo.data.text.templates import TextRun

TEXT, SUPERVISED_TEXT, IMAGE, TURNED_IMAGE = 0, 1, 2, 3
# A run is one uint32: 2 bits for the kind, and 30 bits for the token count or the image number.
_VALUE_BITS = 30
MOST_TOKENS = MOST_IMAGES = (1 << _VALUE_BITS) - 1
_BLOCK = 1 << 16  # records whose counts are computed at once


@dataclass(frozen=True, eq=False)
class SourceIndex:
    """The R runs of N records, and the sizes of M distinct images. Arrays may be memory-mapped.

    Adjacent text runs of the same kind are merged. A record of `<s>`, an image and a caption takes 20 bytes.

    runs        uint32 [R]           kind << 30 | token count of a text, or number of an image. The kinds are TEXT,
                                     SUPERVISED_TEXT, IMAGE, and TURNED_IMAGE, whose EXIF header swaps width and height
    record_run  uint32 or int64 [N+1]  record i has the runs [record_run[i], record_run[i+1])
    image_size  uint16 [M, 2]        width and height in pixels, before any rotation
    folder      the folder from which `open_index` mapped the arrays, if it did. Such an index pickles as the folder's
                path, so that processes share its memory
    """

    runs: np.ndarray
    record_run: np.ndarray
    image_size: np.ndarray
    folder: Path | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self.folder is not None:
            return open_index, (self.folder,)
        return SourceIndex, (self.runs, self.record_run, self.image_size)

    def __len__(self) -> int:
        return len(self.record_run) - 1

    def span(self, start: int = 0, stop: int | None = None) -> tuple[int, int]:
        """Returns the range [first, last) of the runs of the records [start, stop)."""
        return int(self.record_run[start]), int(self.record_run[len(self) if stop is None else stop])

    def run_kinds(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns the kind of each run of the records [start, stop), uint8: TEXT, SUPERVISED_TEXT or IMAGE."""
        first, last = self.span(start, stop)
        return np.minimum(self.runs[first:last] >> _VALUE_BITS, IMAGE).astype(np.uint8)

    def run_values(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns the token count or image number of each run of the records [start, stop), int64."""
        first, last = self.span(start, stop)
        return (self.runs[first:last] & MOST_TOKENS).astype(np.int64)

    def unpacked(self, first: int, last: int) -> list[tuple[int, int]]:
        """Returns the kind and value of the runs [first, last). For a few runs; see `run_kinds` and `run_values`."""
        return [(min(run >> _VALUE_BITS, IMAGE), run & MOST_TOKENS) for run in self.runs[first:last].tolist()]

    def tokens(self, first: int, last: int) -> int:
        """Returns the number of text tokens in the runs [first, last), without image delimiters and row tokens."""
        runs = self.runs[first:last]
        return int((runs[runs < IMAGE << _VALUE_BITS] & MOST_TOKENS).sum(dtype=np.int64))

    def first_kinds(self) -> np.ndarray:
        """Returns the kind of the first run of every record, uint8 [N]; TEXT for a record without runs."""
        if not len(self.runs):
            return np.zeros(len(self), np.uint8)
        first = np.minimum(self.record_run[:-1], len(self.runs) - 1)
        kinds = np.minimum(self.runs[first] >> _VALUE_BITS, IMAGE).astype(np.uint8)
        kinds[self.record_run[:-1] == self.record_run[1:]] = TEXT
        return kinds

    def blocks(self, size: int = _BLOCK) -> Iterator[tuple[int, int]]:
        """Yields ranges [start, stop) of consecutive records, to bound the memory of work on all of them."""
        for start in range(0, len(self), size):
            yield start, min(start + size, len(self))

    def run_counts(self, config: ImageConfig, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns the counts of the runs of the records [start, stop).

        Returns:
            int64 [R, 3]: patches, text tokens (including delimiters and row tokens), supervised tokens.
        """
        return np.stack(self._run_counts(config, start, stop), axis=1).astype(np.int64)

    def _run_counts(self, config: ImageConfig, start: int, stop: int | None) -> tuple[np.ndarray, ...]:
        """Returns the columns of `run_counts`, uint32 [R] each."""
        first, last = self.span(start, stop)
        runs = self.runs[first:last]
        image = runs >= IMAGE << _VALUE_BITS
        text = runs & np.uint32(MOST_TOKENS)
        patches = np.zeros_like(text)
        if image.any():
            width, height = self.image_sizes(config.exif, start, stop).T
            shares = config.share_tiles or config.share_pixels
            together = self._images_of_record(image, start, stop) if shares else 1
            grid = patch_grid(width, height, config, together)
            patches[image] = visual_tokens(grid, config)
            text[image] = image_text(grid.rows, config)
        learned = (runs >> _VALUE_BITS) == SUPERVISED_TEXT
        return patches, text, text * learned

    def image_sizes(self, exif: Exif, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns the width and height in pixels of every image of the records [start, stop), int64 [images, 2].

        Args:
            exif: "apply" gives the sizes after EXIF rotation, "ignore" the stored sizes.
            start: first record.
            stop: one past the last record; default: all.
        """
        first, last = self.span(start, stop)
        runs = self.runs[first:last]
        runs = runs[runs >= IMAGE << _VALUE_BITS]
        sizes = self.image_size[runs & MOST_IMAGES].astype(np.int64)
        if exif == "apply":
            turned = runs >= TURNED_IMAGE << _VALUE_BITS
            sizes[turned] = sizes[turned, ::-1]
        return sizes

    def _images_of_record(self, image: np.ndarray, start: int, stop: int | None) -> np.ndarray:
        """Returns, for each image, the number of images in its record, int64 [images]."""
        first, _ = self.span(start, stop)
        ends = self.record_run[start : (len(self) if stop is None else stop) + 1].astype(np.int64) - first
        counts = np.diff(np.concatenate([np.zeros(1, np.int64), np.cumsum(image)])[ends])
        return np.repeat(counts, counts)

    def counts(self, config: ImageConfig, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns `run_counts` summed over each of the records [start, stop), int64 [N, 3]."""
        stop = len(self) if stop is None else stop
        found = np.empty((stop - start, 3), np.int64)
        for first in range(start, stop, _BLOCK):
            last = min(first + _BLOCK, stop)
            ends = self.record_run[first : last + 1] - self.record_run[first]
            for column, counts in enumerate(self._run_counts(config, first, last)):
                # Cumulative sums over the block may wrap around; their differences are still correct.
                sums = np.zeros(len(counts) + 1, np.uint32)
                np.cumsum(counts, dtype=np.uint32, out=sums[1:])
                sums = sums[ends]
                found[first - start : last - start, column] = sums[1:] - sums[:-1]
        return found

    def select(self, records: np.ndarray | range) -> SourceIndex:
        """Returns an index of some records, in this order. It shares `image_size`, and for a range also `runs`."""
        if isinstance(records, range):
            first, last = self.span(records.start, records.stop)
            ends = self.record_run[records.start : records.stop + 1].astype(np.int64) - first
            return SourceIndex(self.runs[first:last], ends, self.image_size)
        begins = self.record_run[:-1][records].astype(np.int64)
        lengths = self.record_run[1:][records].astype(np.int64) - begins
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        runs = np.repeat(begins - ends[:-1], lengths) + np.arange(ends[-1])
        return SourceIndex(self.runs[runs], ends, self.image_size)


def open_index(folder: Path) -> SourceIndex:
    """Memory-maps the index in a folder; see `solo.data.store.assemble`."""
    runs, record_run, image_size = (open_array(folder, name) for name in ("runs", "record_run", "image_size"))
    return SourceIndex(runs, record_run, image_size, folder)


def open_array(folder: Path, name: str) -> np.ndarray:
    """Memory-maps the array in `<name>.npy`."""
    path = folder / f"{name}.npy"
    try:
        found: np.ndarray = np.load(path, mmap_mode="r")
    except ValueError:  # an empty array cannot be mapped
        found = np.load(path)
    return found.view(np.ndarray)  # slicing np.memmap is several times slower


def joined_runs(parts: Sequence[TextRun | Image], number: Callable[[Image], tuple[int, bool]]) -> list[int]:
    """Returns the `SourceIndex.runs` of one record.

    Args:
        parts: runs of the record.
        number: returns the number of an image, and whether EXIF swaps its sides. It is called in image order.

    Raises:
        ValueError: a text has too many tokens.
    """
    found: list[int] = []
    kind = -1
    for part in parts:
        if isinstance(part, Image):
            value, turned = number(part)
            kind = TURNED_IMAGE if turned else IMAGE
            found.append(kind << _VALUE_BITS | value)
            continue
        joined = kind == part.supervised  # TEXT is 0, SUPERVISED_TEXT is 1
        kind = SUPERVISED_TEXT if part.supervised else TEXT
        tokens = len(part.tokens) + (found.pop() & MOST_TOKENS if joined else 0)
        if tokens > MOST_TOKENS:
            raise ValueError(f"a text has {tokens:,} tokens; the most is {MOST_TOKENS:,}")
        found.append(kind << _VALUE_BITS | tokens)
    return found


class IndexBuilder:
    """Builds an index in memory, one record at a time."""

    def __init__(self) -> None:
        # Flat arrays, because a list of tuples would take ten times the memory.
        self._runs = array("I")
        self._sizes = array("H")
        self._ends = array("q", [0])

    def add(self, parts: Sequence[TextRun | Image]) -> None:
        """Adds the runs of one record.

        Raises:
            OSError: the header of an image cannot be read, or an image is too large. Nothing is added then.
        """
        headers = [part.header() for part in parts if isinstance(part, Image)]
        first = len(self._sizes) // 2
        numbers = iter([(first + number, turned) for number, (_, _, turned) in enumerate(headers)])
        self._runs.extend(joined_runs(parts, lambda _: next(numbers)))
        for width, height, _ in headers:
            self._sizes.extend((width, height))
        self._ends.append(len(self._runs))

    def build(self) -> SourceIndex:
        """Returns the index of all records added so far."""
        return SourceIndex(
            np.array(self._runs, np.uint32),
            np.array(self._ends, np.int64),
            np.array(self._sizes, np.uint16).reshape(-1, 2),
        )


def make_index(run_kind: np.ndarray, run_size: np.ndarray, record_run: np.ndarray) -> SourceIndex:
    """Returns an index made from separate arrays, for generated data.

    Args:
        run_kind: integers [R]: TEXT, SUPERVISED_TEXT or IMAGE.
        run_size: integers [R, 2]: (tokens, 0) of a text, (width, height) of an image.
        record_run: integers [N+1], as in `SourceIndex`. Adjacent runs are not merged.
    """
    image = run_kind == IMAGE
    values = np.where(image, np.cumsum(image) - 1, run_size[:, 0]).astype(np.uint32)
    runs = run_kind.astype(np.uint32) << np.uint32(_VALUE_BITS) | values
    return SourceIndex(runs, record_run.astype(np.int64), run_size[image].astype(np.uint16))
