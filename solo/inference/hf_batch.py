"""Batches in Hugging Face form: converts the tensors of a published forward pass, and reorders results.

`input_ids` are in reading order, with a placeholder for each patch. They become an ordinary batch, and the slot of each
element is kept so that results can be returned in the order of `input_ids`. Numpy only.

Shape letters in addition to those of solo/batch.py: N elements of a row of `input_ids`, n patches of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from solo.batch import Batch
from solo.config import Config
from solo.data.planning.row_shape import RowShape
from solo.data.rows.assembly import assemble_row, stack
from solo.data.rows.document import NO_IMAGE, PATCH, Document
from solo.inference.hf_images import given_images

IGNORED = -100  # the label of an element without a target, as in PyTorch's cross-entropy

_NAMES = (
    "input_ids",
    "attention_mask",
    "position_ids",
    "labels",
    "pixel_values",
    "image_flags",
    "image_grid_hw",
    "seq_boundaries",
    "image_position_ids",
    "mm_token_type_ids",
    "vision_patches",
    "vision_patch_indices",
)


class HFBatch(NamedTuple):
    """A batch, and the mapping of its slots to the order of `input_ids`.

    slots     int64 [B, N]: the slot of each element
    under_id  the id at every patch's place in `input_ids`, whose embedding SOLO adds to the patch; or None
    """

    batch: Batch
    slots: np.ndarray
    under_id: int | None

    def in_input_order(self, x_BS: np.ndarray) -> np.ndarray:
        """Returns results by slot [B, S, ...] in the order of `input_ids`, [B, N, ...]."""
        return x_BS[np.arange(len(self.slots))[:, None], self.slots]


@dataclass(frozen=True)
class HFTensors:
    """Tensors in Hugging Face form, as numpy arrays with consistent shapes.

    ids         int32 [B, N]
    labels      int32 [B, N]; IGNORED where there is no target
    real        bool [B, N]; False for padding, before or after a row's elements
    positions   int32 [B, N]
    patch       int64 [B, N]: index into `patches`; -1 for text and padding
    patches     float32 [n, p*p*3], normalised, channel-major
    grid        int32 [n, 2]: row and column of each patch in its tile; zeros if the model does not use them
    under_id    see `HFBatch`
    starts      the first element of every document; more than one only if there is a single row
    """

    ids: np.ndarray
    labels: np.ndarray
    real: np.ndarray
    positions: np.ndarray
    patch: np.ndarray
    patches: np.ndarray
    grid: np.ndarray
    under_id: int | None
    starts: tuple[int, ...] = (0,)


def check_tensors(tensors: dict[str, Any], config: Config, placeholder_id: int) -> HFTensors:
    """Check tensors with the names of the published code.

    Args:
        tensors: `input_ids` [B, N], and optionally `labels`, `attention_mask`, `position_ids` [B, N], or [N] if there
            is one row, and `seq_boundaries` [documents + 1] of the documents packed into that row. Images are
            `pixel_values` [tiles, 3, h, w] with `image_flags` [tiles] or [tiles, 1] (0 for a dummy tile, which is
            dropped); `pixel_values` [fine patches, 3*p*p] with `image_grid_hw` [images, 2], fine rows and columns
            (NEO); `pixel_values` [images, slots, p*p*3], ordered (y, x, channel), with `image_position_ids`
            [images, slots, 2], column and row of each patch, -1 where there is none (Gemma 4), and optionally
            `mm_token_type_ids` [B, N]; or `vision_patches` [n, p*p*3] with `vision_patch_indices` [B, N] or [N].
            PyTorch tensors, or anything numpy can read.
        config: patch and tile size, and the order of a tile's patches.
        placeholder_id: the id in `input_ids` that stands for a patch of `pixel_values`.

    Raises:
        ValueError: a name is unknown, shapes are inconsistent, or the numbers of patches and placeholders differ.
    """
    if unknown := sorted(set(tensors) - set(_NAMES)):
        raise ValueError(f"batch() does not know {', '.join(unknown)}; it takes {', '.join(_NAMES)}")
    given = {name: _numpy(value) for name, value in tensors.items() if value is not None}
    if "input_ids" not in given or given["input_ids"].ndim != 2:
        raise ValueError("input_ids of shape [rows, length] are needed")
    if "position_ids" in given and config.sequence.positions != "text":
        raise ValueError("position_ids are not read: this model's times, rows and columns follow from its images")
    ids = given["input_ids"].astype(np.int32)
    for name in ("labels", "attention_mask", "position_ids"):
        if name in given and given[name].shape == ids.shape[1:] and len(ids) == 1:
            given[name] = given[name][None]
        if name in given and given[name].shape != ids.shape:
            raise ValueError(f"{name} has shape {given[name].shape}, input_ids {ids.shape}")
    real = _real(given, ids)
    starts = _starts(given, real)
    before = np.repeat(starts, np.diff([*starts, ids.shape[1]]))
    counted = np.where(real, np.cumsum(real, axis=1) - 1 - before, 1)
    patch, patches, grid, under_id = given_images(given, ids, real, config, placeholder_id)
    return HFTensors(
        ids=ids,
        labels=given.get("labels", np.full_like(ids, IGNORED)).astype(np.int32),
        real=real,
        positions=given.get("position_ids", counted).astype(np.int32),
        patch=patch,
        patches=patches.astype(np.float32),
        grid=grid.astype(np.int32),
        under_id=under_id,
        starts=starts,
    )


def _numpy(value: Any) -> np.ndarray:
    """Converts array-likes and PyTorch tensors on any device to numpy (bfloat16 to float32)."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
    return np.asarray(value)


def _real(given: dict[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    real = given.get("attention_mask", np.ones_like(ids)).astype(bool)
    # Padding may be on both sides of a row, but not within it: the real elements are contiguous.
    begins = np.diff(real.astype(int), axis=1, prepend=0) > 0
    if not (begins.sum(axis=1) == 1).all():
        raise ValueError("attention_mask must be one run of ones in every row, with padding before or after it")
    return real


def _starts(given: dict[str, np.ndarray], real: np.ndarray) -> tuple[int, ...]:
    """Returns the first element of every document of the only row; (0,) if rows are documents."""
    bounds = given.get("seq_boundaries", np.array([0, real.shape[1]])).reshape(-1).tolist()
    if "seq_boundaries" in given and (len(real) > 1 or not real.all()):
        raise ValueError("seq_boundaries describe the documents of one row, without padding")
    if bounds[0] != 0 or bounds[-1] != real.shape[1] or (np.diff(bounds) <= 0).any():
        raise ValueError(f"seq_boundaries rise from 0 to the {real.shape[1]} elements of the row; found {bounds}")
    return tuple(bounds[:-1])


def hf_batch(given: HFTensors, config: Config, *, slot_multiple: int = 8) -> HFBatch:
    """Makes one row per row of `input_ids`. As in the published code, padding after a row attends to its elements."""

    def round_up(count: int) -> int:
        return -(-count // slot_multiple) * slot_multiple

    is_patch = given.patch >= 0
    shape = RowShape(
        round_up(int(is_patch.sum(axis=1).max())),
        # There is one slot more than elements; see `_note_length`.
        round_up(int((~is_patch).sum(axis=1).max()) + 1),
        round_up(int((given.labels[:, 1:] != IGNORED).sum(axis=1).max(initial=0))),
    )
    rows = [_row(given, number, shape, config) for number in range(len(given.ids))]
    return HFBatch(stack([row for row, _ in rows]), np.stack([slots for _, slots in rows]), given.under_id)


def _row(given: HFTensors, number: int, shape: RowShape, config: Config) -> tuple[Batch, np.ndarray]:
    """Returns a row, and the slots of its N elements."""
    real = np.flatnonzero(given.real[number])
    before, elements = np.arange(real[0]), np.arange(real[0], len(given.real[number]))
    patch = given.patch[number, elements]
    is_patch = patch >= 0
    count = int(is_patch.sum())
    # The last document includes the padding after it, as text.
    documents = [(_document(given, number, each), 0) for each in np.split(elements, given.starts[1:])]
    row = assemble_row(documents, shape, config.image, 0, config.sequence)
    # Nothing sees padding.
    row.attend[..., 2:] = np.minimum(row.attend[..., 2:], len(real) - count)
    slots = np.empty(given.ids.shape[1], np.int64)
    slots[elements[is_patch]] = np.arange(count)
    slots[np.concatenate([elements[~is_patch], before])] = shape.patch_slots + np.arange(len(slots) - count)
    row.text[slots[before] - shape.patch_slots] = given.ids[number, before]
    pixels = np.zeros((shape.patch_slots, given.patches.shape[1]), np.float32)
    pixels[:count] = given.patches[patch[is_patch]]
    if row.positions.ndim == 1:
        row.positions[slots] = given.positions[number]
    _note_length(row, slots)
    return _targets(row._replace(patches=pixels), slots, given.labels[number]), slots


def _document(given: HFTensors, number: int, elements: np.ndarray) -> Document:
    """Returns elements of a row as a document, without pixels."""
    patch = given.patch[number, elements]
    is_patch = patch >= 0
    return Document(
        np.where(is_patch, PATCH, given.ids[number, elements]).astype(np.int32),
        np.zeros(len(elements), bool),
        _images(is_patch),
        np.zeros((int(is_patch.sum()), given.patches.shape[1]), np.uint8),
        given.grid[patch[is_patch]],
    )


def _images(is_patch: np.ndarray) -> np.ndarray:
    """Returns the number of each element's image, int32. Every run of consecutive patches is one image."""
    begins = np.diff(is_patch.astype(int), prepend=0) > 0
    return np.where(is_patch, np.cumsum(begins) - 1, NO_IMAGE).astype(np.int32)


def _note_length(row: Batch, slots: np.ndarray) -> None:
    """Gives an empty slot the last position, because the published code scales frequencies by the padded length."""
    empty = np.setdiff1d(np.arange(len(row.positions)), slots)[-1]
    row.positions[empty] = len(slots) - 1


def _targets(row: Batch, slots: np.ndarray, labels: np.ndarray) -> Batch:
    """Makes element n - 1 predict the label of element n, as the published code does."""
    targets = np.flatnonzero(labels[1:] != IGNORED) + 1
    row.target_slots[: len(targets)] = slots[targets - 1]
    row.target_ids[: len(targets)] = labels[targets]
    row.target_weights[: len(targets)] = 1
    return row
