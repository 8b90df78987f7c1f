"""Packs documents into a row. Only this module maps reading order to the two regions and shifts targets.

A row is `[P patches | T text]`. If element i + 1 of a document is a supervised token, it is the target of element i:
`target_slots` holds the slot of element i and `target_ids` holds token i + 1. No later code shifts again. The first
element of a document or chunk is never a target.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from solo.batch import TEXT_AXES, Batch
from solo.config import Average, ImageConfig, SequenceConfig
from solo.data.planning.row_shape import RowShape
from solo.data.rows.document import Document
from solo.data.rows.reading_order import ReadingOrder, join_documents, positions, visible

_PLAIN = SequenceConfig()


def assemble_row(
    documents: Sequence[tuple[Document, int]],
    shape: RowShape,
    image: ImageConfig,
    pad_id: int,
    sequence: SequenceConfig = _PLAIN,
    average: Average = "token",
) -> Batch:
    """Packs documents into one row.

    Args:
        documents: documents in row order, each with the number of its source.
        shape: numbers of patch and text slots of the row.
        image: patch size and image mask; see `solo.data.rows.reading_order.visible`.
        pad_id: token id for empty text slots.
        sequence: sliding window and positions; see `solo.data.rows.reading_order.positions`.
        average: the units that have equal weight in the loss; see `LossConfig`.

    Returns:
        A Batch without its B axis; see `solo.batch` for fields, dtypes and empty slots.

    Raises:
        ValueError: the documents do not fit the row.
    """
    order = join_documents(documents)
    is_patch = order.is_patch
    slot = _slots(is_patch, shape)
    row = _empty_row(shape, image, pad_id, sequence)
    start = 0
    for document, _ in documents:
        stop = start + len(document.patches)
        row.patches[start:stop], row.patch_grid[start:stop] = document.patches, document.patch_grid
        start = stop
    row.text[: len(is_patch) - start] = order.tokens[~is_patch]
    row.positions[slot] = positions(order, sequence)
    row.attend[:] = row_attend(order, shape, image, sequence)
    # Element i + 1 is the target of element i if it is supervised and not the first of its document.
    targets = np.flatnonzero(order.supervised & (order.place > 0))
    if len(targets) > shape.target_slots:
        raise ValueError(f"{len(targets)} targets do not fit a row of {shape.target_slots} target slots")
    row.target_slots[: len(targets)] = slot[targets - 1]
    row.target_ids[: len(targets)] = order.tokens[targets]
    row.target_weights[: len(targets)] = _weights(order.document_start[targets], average)
    row.target_source[: len(targets)] = order.source[targets]
    return row


def row_attend(order: ReadingOrder, shape: RowShape, image: ImageConfig, sequence: SequenceConfig) -> np.ndarray:
    """Returns `Batch.attend` of a row, int32 [S, 4] or [S, M, 4]: `visible` by slot. Empty slots attend to nothing.

    Raises:
        ValueError: the documents do not fit the row.
    """
    attend = np.zeros((shape.slots, *_mask_axes(sequence), 4), np.int32)
    attend[_slots(order.is_patch, shape)] = visible(order, image, sequence)
    return attend


def _weights(document_start: np.ndarray, average: Average) -> np.ndarray:
    """Returns the loss weight of n targets, float64 [n]: 1, 1 / m or 1 / sqrt(m) in a document with m targets."""
    power = {"document": 1.0, "document_root": 0.5}.get(average, 0.0)
    _, number, counts = np.unique(document_start, return_inverse=True, return_counts=True)
    return counts[number] ** -power


def stack(rows: Sequence[Batch]) -> Batch:
    """Stacks rows into a batch: every field gets a leading axis B."""
    return Batch(*(np.stack(field) for field in zip(*rows, strict=True)))


def _slots(is_patch: np.ndarray, shape: RowShape) -> np.ndarray:
    """Returns the slot of every element, int64 [N]. Raises ValueError if they do not fit."""
    patches_so_far = np.cumsum(is_patch)
    count = int(patches_so_far[-1]) if len(is_patch) else 0
    if count > shape.patch_slots or len(is_patch) - count > shape.text_slots:
        raise ValueError(
            f"{count} patches and {len(is_patch) - count} text tokens do not fit a row of {shape.patch_slots} patch "
            f"and {shape.text_slots} text slots"
        )
    return np.where(is_patch, patches_so_far - 1, shape.patch_slots + np.arange(len(is_patch)) - patches_so_far)


def _empty_row(shape: RowShape, image: ImageConfig, pad_id: int, sequence: SequenceConfig) -> Batch:
    patches, text, targets = shape.patch_slots, shape.text_slots, shape.target_slots
    axes = () if TEXT_AXES[sequence.positions] is None else (3,)
    return Batch(
        patches=np.zeros((patches, image.patch_size**2 * 3), np.uint8),
        patch_grid=np.zeros((patches, 2), np.int32),
        text=np.full(text, pad_id, np.int32),
        positions=np.zeros((patches + text, *axes), np.int32),
        attend=np.zeros((patches + text, *_mask_axes(sequence), 4), np.int32),
        target_slots=np.zeros(targets, np.int32),
        target_ids=np.zeros(targets, np.int32),
        target_weights=np.zeros(targets, np.float32),
        target_source=np.zeros(targets, np.int32),
    )


def _mask_axes(sequence: SequenceConfig) -> tuple[int, ...]:
    return (len(sequence.layer_masks),) if sequence.layer_masks else ()
