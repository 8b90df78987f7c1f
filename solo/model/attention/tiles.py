"""Determines which tiles of scores are needed, from the intervals of `Batch.attend`.

Letters besides those of solo/batch.py: X query blocks of a row, Y its key blocks; J the keys of a block, Q its queries.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

# The score of a hidden key, and the smallest maximum of a softmax: exp(HIDDEN - FLOOR) is 0, so that the weights of a
# query that sees nothing sum to 0 instead of NaN. Real scores stay far above both.
HIDDEN = -1e30
FLOOR = -1e29
# A rematerialisation policy that saves this name avoids a second forward pass in the backward pass.
SAVED = "interval_attention"


class Tiles(NamedTuple):
    """The visibility of each tile (query block, key block), bool [B, X, Y]; the key blocks of patches come first."""

    some: Array  # at least one query attends to at least one key
    full: Array  # every query attends to every key


def tiles(intervals_BS4: Any, *, num_patches: int, num_text: int, block: int, key_block: int | None = None) -> Tiles:
    """Returns which key blocks the queries of each block attend to, partially or fully.

    Blocks of `block` queries run across the regions; blocks of `key_block` keys (default: `block`) lie within one.
    Padding queries attend to nothing, and no query attends to padding keys.

    intervals_BS4  int32, as in `Batch.attend`; no interval may reach beyond its region
    """
    key_block = key_block or block
    rows, queries, _ = intervals_BS4.shape
    intervals = pad_slots(jnp.asarray(intervals_BS4), round_up(queries, block)).reshape(rows, -1, block, 1, 4)

    def compare(start: Array, end: Array, slots: int) -> Tiles:
        first_Y = jnp.arange(0, slots, key_block)
        some = jnp.any(jnp.maximum(start, first_Y) < jnp.minimum(end, first_Y + key_block), axis=2)
        return Tiles(some, jnp.all((start <= first_Y) & (end >= first_Y + key_block), axis=2))

    a0, a1, a2, a3 = jnp.moveaxis(intervals, -1, 0)
    regions = compare(a0, a1, num_patches), compare(a2, a3, num_text)
    return Tiles(*(jnp.concatenate(parts, axis=-1) for parts in zip(*regions, strict=True)))


def needed_blocks(
    intervals_BS4: Any, *, num_patches: int, num_text: int, block: int, key_block: int | None = None
) -> Array:
    """Returns bool [B, X, Y]: whether a tile is visited, because a query attends to one of its keys. See `tiles`."""
    return tiles(intervals_BS4, num_patches=num_patches, num_text=num_text, block=block, key_block=key_block).some


def round_up(slots: int, block: int) -> int:
    """Returns the least multiple of `block` that is at least `slots`."""
    return -(-slots // block) * block


def pad_slots(x_BS: Array, size: int) -> Array:
    """Pad the slots of [B, S, ...] with zeros up to a size."""
    return jnp.pad(x_BS, [(0, 0), (0, size - x_BS.shape[1])] + [(0, 0)] * (x_BS.ndim - 2))
