"""Documents to a row: the one place where reading order becomes two regions, and where labels are shifted.

A row is `[P patches | T text]`. In reading order element i of a document is followed by element i + 1; if that one is
a supervised token, it is the target of element i: its `target_slots` is the slot of element i, wherever that
stands, and its `target_ids` is token i + 1. Nothing after this file shifts again. The first element of a document,
or of a piece of one, is nobody's target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from solo.batch import Batch
from solo.config import ImageConfig
from solo.data.document import NO_IMAGE, PATCH, Document
from solo.data.shape import RowShape


def assemble_row(documents: Sequence[tuple[Document, int]], shape: RowShape, image: ImageConfig, pad_id: int) -> Batch:
    """Lay documents out in one row.

    Args:
        documents: each with the number of its source, in the order in which they are to stand.
        shape: slots of the row.
        image: patch size, and how the tokens of one image see each other. causal: what is before them in reading
            order, and themselves. bidirectional: besides, every slot from an image's first patch to its last sees
            all of that span. isolated: as causal, but a patch sees only itself.
        pad_id: token of empty text slots.

    Returns:
        A Batch without its B axis; see `solo.batch` for the fields, their types and what empty slots hold.

    Raises:
        ValueError: the documents do not fit the row.
    """
    order = _join(documents, shape)
    text = np.flatnonzero(~order.is_patch)
    row = _empty_row(shape, image, pad_id)
    start = 0
    for document, _ in documents:
        stop = start + len(document.patches)
        row.patches[start:stop], row.patch_grid[start:stop] = document.patches, document.patch_grid
        start = stop
    row.text[: len(text)] = order.tokens[text]
    row.positions[order.slot] = order.place
    row.attend[order.slot] = _attend(order, image)
    # Element i + 1 is the target of element i if it is supervised and of the same document: a first one never is.
    targets = np.flatnonzero(order.supervised & (order.place > 0))
    if len(targets) > shape.target_slots:
        raise ValueError(f"{len(targets)} targets do not fit a row of {shape.target_slots} target slots")
    row.target_slots[: len(targets)] = order.slot[targets - 1]
    row.target_ids[: len(targets)] = order.tokens[targets]
    row.target_weights[: len(targets)] = 1
    row.target_source[: len(targets)] = order.source[targets]
    return row


def stack(rows: Sequence[Batch]) -> Batch:
    """Rows to a batch: every field gets the axis B in front."""
    return Batch(*(np.stack(field) for field in zip(*rows, strict=True)))


class _Order(NamedTuple):
    """All elements of a row, document after document, each in reading order: N in all.

    tokens, supervised, image   as in Document, images numbered through the row
    is_patch  bool [N]
    place     int64 [N]  place in the document's reading order
    source    int64 [N]  number of the document's source
    opening   int64 [N]  first element of the document
    slot      int64 [N]  slot in the row
    """

    tokens: np.ndarray
    supervised: np.ndarray
    image: np.ndarray
    is_patch: np.ndarray
    place: np.ndarray
    source: np.ndarray
    opening: np.ndarray
    slot: np.ndarray


def _join(documents: Sequence[tuple[Document, int]], shape: RowShape) -> _Order:
    none = np.zeros(0, np.int32)
    tokens = np.concatenate([none, *(document.tokens for document, _ in documents)])
    supervised = np.concatenate([none.astype(bool), *(document.supervised for document, _ in documents)])
    image = np.concatenate([none, *(document.image for document, _ in documents)])
    lengths = np.asarray([len(document.tokens) for document, _ in documents], np.int64)
    opening = np.repeat(np.cumsum(lengths) - lengths, lengths)
    source = np.repeat(np.asarray([source for _, source in documents], np.int64), lengths)
    is_patch = tokens == PATCH
    patches_so_far = np.cumsum(is_patch)
    count = int(patches_so_far[-1]) if len(tokens) else 0
    if count > shape.patch_slots or len(tokens) - count > shape.text_slots:
        raise ValueError(
            f"{count} patches and {len(tokens) - count} text tokens do not fit a row of {shape.patch_slots} patch "
            f"and {shape.text_slots} text slots"
        )
    element = np.arange(len(tokens))
    slot = np.where(is_patch, patches_so_far - 1, shape.patch_slots + element - patches_so_far)
    return _Order(tokens, supervised, image, is_patch, element - opening, source, opening, slot)


def _attend(order: _Order, image: ImageConfig) -> np.ndarray:
    """int64 [N, 4]: what every element sees, as intervals of patches and of text, counted in each region."""
    last = np.arange(len(order.tokens))  # the last element that each one sees
    if image.attention == "bidirectional":
        last = _last_of_image(order)
    # patches_before[i] patches stand before element i of the row; the rest of what is before it is text.
    patches_before = np.concatenate([[0], np.cumsum(order.is_patch)])
    text_before = np.arange(len(patches_before)) - patches_before
    attend = np.stack(
        [patches_before[order.opening], patches_before[last + 1], text_before[order.opening], text_before[last + 1]],
        axis=1,
    )
    if image.attention == "isolated":
        own = patches_before[:-1][order.is_patch]
        attend[order.is_patch] = np.stack([own, own + 1, np.zeros_like(own), np.zeros_like(own)], axis=1)
    return attend


def _last_of_image(order: _Order) -> np.ndarray:
    """int64 [N]: the last element of an element's image; the element itself outside images."""
    # An image is a run of equal numbers: its delimiters, which belong to no image, part it from the next.
    inside = order.image != NO_IMAGE
    ends = np.ones(len(inside), bool)
    ends[:-1] = ~inside[:-1] | (order.image[1:] != order.image[:-1]) | (order.place[1:] == 0)
    last = np.flatnonzero(ends)
    return last[np.searchsorted(last, np.arange(len(inside)))]


def _empty_row(shape: RowShape, image: ImageConfig, pad_id: int) -> Batch:
    patches, text, targets = shape.patch_slots, shape.text_slots, shape.target_slots
    return Batch(
        patches=np.zeros((patches, image.patch_size**2 * 3), np.uint8),
        patch_grid=np.zeros((patches, 2), np.int32),
        text=np.full(text, pad_id, np.int32),
        positions=np.zeros(patches + text, np.int32),
        attend=np.zeros((patches + text, 4), np.int32),
        target_slots=np.zeros(targets, np.int32),
        target_ids=np.zeros(targets, np.int32),
        target_weights=np.zeros(targets, np.float32),
        target_source=np.zeros(targets, np.int32),
    )
