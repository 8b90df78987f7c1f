"""What the planner places: whole documents, and the chunks of those that are too long for a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from solo.config import ImageConfig
from solo.data.planning.row_shape import NO_IMAGES, RowShape, TextPerPatch, record_needs
from solo.data.store.index import IMAGE, SUPERVISED_TEXT, SourceIndex

EMPTY = "empty"
TOO_LONG = "too long for a row"
IMAGE_TOO_LARGE = "an image is too large for a row"


@dataclass(frozen=True)
class Chunks:
    """The N chunks of a source, by record and then in reading order, and what became of its records.

    record  int32 [N]     number of the record in its source
    start   int32 [N]     the chunk is the record's reading-order slots [start, stop)
    stop    int32 [N]
    length  int32 [N]     slots of the whole record
    needs   int32 [N, 3]  patch, text and target slots. A supervised token that opens a chunk has nothing before it
                          to be predicted from, and is no target
    documents  records of the source, dropped ones included
    split      records that were cut into several chunks
    dropped    records that were left out, by reason
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
    """What a chunk may hold: at most a row, and so little text that the row's other patches find theirs.

    A row is full only if both regions are, and patches come with text of their own. Beside a text that takes the
    whole text region, the patch region stays empty.
    """

    shape: RowShape
    text_per_patch: TextPerPatch = NO_IMAGES

    def text(self, patches: int) -> int:
        """Most text slots for a chunk with this many patches: what is left beside average documents with images."""
        return self._beside(self.text_per_patch.mean, patches)

    @property
    def longest_text(self) -> int:
        """Longest document without images that is kept whole: beside a longer one, no row can be full."""
        return self._beside(self.text_per_patch.low, 0)

    def hold(self, patches: int, text: int, targets: int) -> bool:
        """Whether a chunk of this size may be made."""
        shape = self.shape
        return patches <= shape.patch_slots and text <= self.text(patches) and targets <= shape.target_slots

    def _beside(self, text_per_patch: float, patches: int) -> int:
        text_slots = self.shape.text_slots
        return max(int(text_slots - text_per_patch * (self.shape.patch_slots - patches)), text_slots // 4, 1)


def make_chunks(
    index: SourceIndex,
    image: ImageConfig,
    shape: RowShape,
    overlong: Literal["split", "drop"],
    text_per_patch: TextPerPatch = NO_IMAGES,
) -> Chunks:
    """Lay out a source in chunks that each fit an empty row.

    A record that fits is one chunk. One that does not is dropped, or cut greedily in reading order: anywhere
    between text tokens, never in an image or between it and its delimiters. A record with an image that does not
    fit by itself is dropped as a whole. Where records are cut, plain text is cut as soon as it would leave the rest
    of its row without text for the patches; text with images only where it must be, to stay with its images.

    Args:
        index: the source's runs.
        image: how images become patches.
        shape: the rows' slots.
        overlong: what to do with a record that does not fit.
        text_per_patch: of the mixture's documents with images; see `ChunkLimits`.
    """
    needs = record_needs(index, image)
    slots = needs[:, 0] + needs[:, 1]
    limits = ChunkLimits(shape, text_per_patch)
    fits = (needs <= [shape.patch_slots, shape.text_slots, shape.target_slots]).all(axis=1) & (slots > 0)
    if overlong == "split":
        fits &= (needs[:, 0] > 0) | (needs[:, 1] <= limits.longest_text)
    whole = np.flatnonzero(fits)
    dropped: Counter[str] = Counter()
    cut: list[tuple[int, int, int, int, int, int]] = []
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
            found = list(_cut(runs, limits))
            if None in found:
                dropped[IMAGE_TOO_LARGE] += 1
            else:
                cut += [(record, *chunk) for chunk in found if chunk is not None]
                split += 1
    extra = np.asarray(cut, np.int64).reshape(-1, 6)
    records = np.concatenate([whole, extra[:, 0]])
    order = np.argsort(records, kind="stable")
    # Every process keeps these arrays of every chunk: half the width is half the memory.
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


def _cut(runs: Iterator[tuple[int, list[int]]], limits: ChunkLimits) -> Iterator[tuple[int, int, int, int, int] | None]:
    """Yield (start, stop, patches, text, targets) of every chunk of a record; None where an image does not fit.

    `runs` are (kind, [patches, text tokens]) in reading order.
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
                # The first slot of a chunk is no target, whatever it is.
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
