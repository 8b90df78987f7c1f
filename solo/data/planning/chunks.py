"""Splits documents into chunks that fit in a row. A document that fits is a single chunk."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

from solo.config import ImageConfig
from solo.data.planning import tuning
from solo.data.planning.row_shape import NO_IMAGES, RowShape, TextPerPatch, record_needs
from solo.data.store.index import IMAGE, SUPERVISED_TEXT, SourceIndex

EMPTY = "empty"
TOO_LONG = "too long for a row"
IMAGE_TOO_LARGE = "an image is too large for a row"

_BLOCK = 1 << 17  # records that are processed at a time

_Part = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Split:
    """The M chunks of the E records that are not one chunk, in the order of their records and then in reading order.

    record    int64 [E]     the records, ascending
    first     int64 [E]     number of the record's first chunk among all chunks of the source
    ends      int64 [E+1]   record e has the chunks [ends[e], ends[e+1]) of the M; none if it is dropped
    start     int64 [M]     first slot of the chunk in the record's reading order
    stop      int64 [M]     one past the chunk's last slot
    needs     int64 [M, 3]  patch, text and target slots
    """

    record: np.ndarray
    first: np.ndarray
    ends: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    needs: np.ndarray


@dataclass(frozen=True)
class Chunks:
    """The N chunks of a source, ordered by record and then by reading order.

    Only the records that are split or dropped are stored; the others are looked up in the index, which processes share.

    totals     int64 [3]: patch, text and target slots of all chunks
    documents  records of the source, dropped ones included
    split      records that were split into several chunks
    dropped    number of records that were left out, by reason
    """

    totals: np.ndarray
    documents: int
    split: int
    dropped: Mapping[str, int]
    _index: SourceIndex
    _image: ImageConfig
    _split: Split

    def __len__(self) -> int:
        return self.documents - len(self._split.record) + len(self._split.start)

    def needs(self, chunks: np.ndarray) -> np.ndarray:
        """Returns patch, text and target slots of these chunks, int64 [n, 3].

        A supervised token that begins a chunk is not a target, because no slot precedes it.
        """
        record, part = self.locate(chunks)
        found = np.empty((len(record), 3), np.int64)
        whole = part < 0
        found[whole] = record_needs(self._index.select(record[whole]), self._image)
        found[~whole] = self._split.needs[part[~whole]]
        return found

    def locate(self, chunks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the record of each chunk, and its place in the arrays of `Split`, or -1 for a whole record."""
        chunks, split = np.asarray(chunks, np.int64), self._split
        if not len(split.record):
            return chunks, np.full(len(chunks), -1)
        before = np.searchsorted(split.first, chunks, side="right") - 1
        last = np.maximum(before, 0)
        part = split.ends[last] + chunks - split.first[last]
        inside = (before >= 0) & (part < split.ends[last + 1])
        # Each of the e records before added its chunks in place of one.
        whole = chunks - np.where(before < 0, 0, split.ends[last + 1] - last - 1)
        return np.where(inside, split.record[last], whole), np.where(inside, part, -1)

    def bounds(self, chunks: np.ndarray) -> np.ndarray:
        """Returns the location and size of these chunks, int64 [n, 7].

        Columns: record, first slot, one past the last slot, slots of the whole record, and patch, text and target
        slots of the chunk.
        """
        record, part = self.locate(chunks)
        needs = record_needs(self._index.select(record), self._image)
        length = needs[:, 0] + needs[:, 1]
        found = np.column_stack([record, np.zeros_like(record), length, length, needs])
        inside = part >= 0
        split, part = self._split, part[inside]
        found[inside, 1], found[inside, 2], found[inside, 4:] = split.start[part], split.stop[part], split.needs[part]
        return found


@dataclass(frozen=True)
class ChunkLimits:
    """Limits on the size of a chunk.

    A chunk must fit a row and leave text slots for the documents that fill the row's other patch slots. Images come
    with text: if one chunk took the whole text region, the patch region would stay empty.
    """

    shape: RowShape
    text_per_patch: TextPerPatch = NO_IMAGES

    def text(self, patches: int) -> int:
        """Returns the most text slots for a chunk with this many patches that leave room for average documents."""
        return self._beside(self.text_per_patch.mean, patches)

    @property
    def longest_text(self) -> int:
        """The most text slots of a document without images that is kept whole. A longer one cannot fill a row."""
        return self._beside(self.text_per_patch.low, 0)

    def hold(self, patches: int, text: int, targets: int) -> bool:
        """Returns whether a chunk may have this size."""
        shape = self.shape
        return patches <= shape.patch_slots and text <= self.text(patches) and targets <= shape.target_slots

    def _beside(self, text_per_patch: float, patches: int) -> int:
        text_slots = self.shape.text_slots
        beside = int(text_slots - text_per_patch * (self.shape.patch_slots - patches))
        return max(beside, int(text_slots * tuning.LEAST_TEXT), 1)


def make_chunks(
    index: SourceIndex,
    image: ImageConfig,
    shape: RowShape,
    overlong: Literal["split", "drop"],
    text_per_patch: TextPerPatch = NO_IMAGES,
) -> Chunks:
    """Splits a source into chunks that each fit an empty row.

    A record that fits is one chunk. A record that does not fit is dropped, or split greedily in reading order: between
    any two text tokens, but never inside an image or between an image and its delimiters. A record is dropped if one
    of its images does not fit a row. With `overlong: split`, text without images is split as soon as it would leave
    the row's patch slots without text; text with images stays with its images and is split only if it does not fit.

    Args:
        index: the source's runs.
        image: how images become patches.
        shape: slots of a row.
        overlong: what to do with a record that does not fit.
        text_per_patch: text per patch of the mixture's documents with images; see `ChunkLimits`.
    """
    limits = ChunkLimits(shape, text_per_patch)
    blocks = [range(start, min(start + _BLOCK, len(index))) for start in range(0, len(index), _BLOCK)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # NumPy releases the interpreter's lock
        found = list(threads.map(partial(_find_unfit, index, image, limits, overlong), blocks))
    unfit = np.concatenate([np.zeros(0, np.int64), *(block.records for block in found)])
    totals = sum((block.totals for block in found), np.zeros(3, np.int64))
    dropped: Counter[str] = Counter()
    parts: list[_Part] = []
    ends = [0]
    for record in unfit.tolist():
        chunks = _split_record(index.select(np.asarray([record])), image, limits, overlong)
        if isinstance(chunks, str):
            dropped[chunks] += 1
        else:
            parts += chunks
        ends.append(len(parts))
    table = np.asarray(parts, np.int64).reshape(-1, 5)
    split = Split(
        record=unfit,
        first=unfit - np.arange(len(unfit)) + np.asarray(ends[:-1], np.int64),
        ends=np.asarray(ends, np.int64),
        start=table[:, 0],
        stop=table[:, 1],
        needs=table[:, 2:],
    )
    left_out = sum(dropped.values())
    return Chunks(
        totals + table[:, 2:].sum(axis=0), len(index), len(unfit) - left_out, dict(dropped), index, image, split
    )


class _Unfit(NamedTuple):
    """The records of a block that are not one chunk, and the needs of the others, summed."""

    records: np.ndarray
    totals: np.ndarray


def _find_unfit(
    index: SourceIndex, image: ImageConfig, limits: ChunkLimits, overlong: Literal["split", "drop"], block: range
) -> _Unfit:
    needs, shape = record_needs(index.select(block), image), limits.shape
    fits = (needs <= [shape.patch_slots, shape.text_slots, shape.target_slots]).all(axis=1)
    fits &= needs[:, 0] + needs[:, 1] > 0
    if overlong == "split":
        fits &= (needs[:, 0] > 0) | (needs[:, 1] <= limits.longest_text)
    return _Unfit(block.start + np.flatnonzero(~fits), needs[fits].sum(axis=0))


def _split_record(
    record: SourceIndex, image: ImageConfig, limits: ChunkLimits, overlong: Literal["split", "drop"]
) -> list[_Part] | str:
    """Returns the chunks of a record (an index of one), or the reason why it is dropped."""
    if not record.counts(image)[0, :2].any():
        return EMPTY
    if overlong == "drop":
        return TOO_LONG
    runs = zip(record.run_kinds().tolist(), record.run_counts(image)[:, :2].tolist(), strict=True)
    found = list(_split(runs, limits))
    return IMAGE_TOO_LARGE if None in found else [chunk for chunk in found if chunk is not None]


def _split(runs: Iterator[tuple[int, list[int]]], limits: ChunkLimits) -> Iterator[_Part | None]:
    """Yields (start, stop, patches, text, targets) of a record's chunks, or None for an image that does not fit.

    `runs` holds (kind, [patches, text tokens]) in reading order.
    """
    shape = limits.shape
    start = patches = text = targets = 0
    for kind, (run_patches, run_text) in runs:
        if kind == IMAGE:
            if run_patches > shape.patch_slots or run_text > shape.text_slots:
                yield None
                return
            if text and not limits.hold(patches + run_patches, text + run_text, targets):
                yield start, start + patches + text, patches, text, targets
                start, patches, text, targets = start + patches + text, 0, 0, 0
            patches, text = patches + run_patches, text + run_text
            continue
        supervised = kind == SUPERVISED_TEXT
        while run_text:
            room = limits.text(patches) - text
            if supervised:
                # The first slot of a chunk is never a target.
                room = min(room, shape.target_slots - targets + (text == 0))
            if room <= 0:
                yield start, start + patches + text, patches, text, targets
                start, patches, text, targets = start + patches + text, 0, 0, 0
                continue
            taken = min(room, run_text)
            targets += supervised * (taken - (text == 0))
            text, run_text = text + taken, run_text - taken
    if text:
        yield start, start + patches + text, patches, text, targets
