"""Chunks, which the planner places in rows. A document that fits a row is one chunk; a longer one is split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from solo.config import ImageConfig
from solo.data.planning import tuning
from solo.data.planning.row_shape import NO_IMAGES, RowShape, TextPerPatch, record_needs
from solo.data.store.index import IMAGE, SUPERVISED_TEXT, SourceIndex

EMPTY = "empty"
TOO_LONG = "too long for a row"
IMAGE_TOO_LARGE = "an image is too large for a row"

_Part = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Chunks:
    """The N chunks of a source, ordered by record and then by reading order.

    record  int32 [N]     number of the record in its source
    start   int32 [N]     first slot of the chunk in the record's reading order
    stop    int32 [N]     one past the chunk's last slot
    length  int32 [N]     slots of the whole record
    needs   int32 [N, 3]  patch, text and target slots. A supervised token that begins a chunk is not a target,
                          because no slot precedes it
    documents  records of the source, dropped ones included
    split      records that were split into several chunks
    dropped    number of records that were left out, by reason
    """

    record: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    length: np.ndarray
    needs: np.ndarray
    documents: int
    split: int
    dropped: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.record)


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
    needs = record_needs(index, image)
    slots = needs[:, 0] + needs[:, 1]
    limits = ChunkLimits(shape, text_per_patch)
    fits = (needs <= [shape.patch_slots, shape.text_slots, shape.target_slots]).all(axis=1) & (slots > 0)
    if overlong == "split":
        fits &= (needs[:, 0] > 0) | (needs[:, 1] <= limits.longest_text)
    whole = np.flatnonzero(fits)
    dropped: Counter[str] = Counter()
    parts: list[tuple[int, int, int, int, int, int]] = []
    split = 0
    counts = index.run_counts(image) if overlong == "split" and not fits.all() else None
    for record in np.flatnonzero(~fits).tolist():
        if slots[record] == 0:
            dropped[EMPTY] += 1
        elif counts is None:
            dropped[TOO_LONG] += 1
        else:
            first, last = index.record_run[record : record + 2]
            runs = zip(index.run_kind[first:last].tolist(), counts[first:last, :2].tolist(), strict=True)
            found = list(_split(runs, limits))
            if None in found:
                dropped[IMAGE_TOO_LARGE] += 1
            else:
                parts += [(record, *chunk) for chunk in found if chunk is not None]
                split += 1
    extra = np.asarray(parts, np.int64).reshape(-1, 6)
    records = np.concatenate([whole, extra[:, 0]])
    order = np.argsort(records, kind="stable")
    # Every process keeps these arrays for all chunks, so int32 halves the memory.
    return Chunks(
        record=records[order].astype(np.int32),
        start=np.concatenate([np.zeros(len(whole), np.int64), extra[:, 1]])[order].astype(np.int32),
        stop=np.concatenate([slots[whole], extra[:, 2]])[order].astype(np.int32),
        length=slots[records[order]].astype(np.int32),
        needs=np.concatenate([needs[whole], extra[:, 3:]])[order].astype(np.int32),
        documents=len(index),
        split=split,
        dropped=dict(dropped),
    )


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
