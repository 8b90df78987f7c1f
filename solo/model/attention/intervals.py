"""Who sees whom, block by block: what every implementation of attention asks of the intervals.

Letters besides those of solo/batch.py: X query blocks of a row, Y its key blocks; J the keys of a block, Q its queries.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

# The score of a hidden key, and the least maximum of a softmax: exp(HIDDEN - FLOOR) is 0, so that a query which
# sees nothing sums up to 0 instead of NaN. True scores stay far above both.
HIDDEN = -1e30
FLOOR = -1e29
# A checkpoint policy that saves this name spares the backward pass a second forward pass.
SAVED = "interval_attention"


class Tiles(NamedTuple):
    """Of every tile (query block, key block), bool [B, X, Y]; patch blocks come first among the keys."""

    some: Array  # some query sees some key
    full: Array  # every query sees every key


def tiles(intervals_BS4: Any, *, num_patches: int, num_text: int, block: int, key_block: int | None = None) -> Tiles:
    """What the queries of each block see of each key block.

    Queries are cut into blocks of `block` across the regions, keys into blocks of `key_block` (default: the same)
    within each. What fills up the last block of queries sees nothing; what fills up one of keys is seen by none.

    intervals_BS4  int32 as `Batch.attend`, none beyond its region
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
    """Which key blocks some query of a query block sees: bool [B, X, Y]. "blocks" and "pallas" visit the True tiles."""
    return tiles(intervals_BS4, num_patches=num_patches, num_text=num_text, block=block, key_block=key_block).some


def round_up(slots: int, block: int) -> int:
    """The slots of as many blocks as hold these."""
    return -(-slots // block) * block


def pad_slots(x_BS: Array, size: int) -> Array:
    """Zeros after the slots [B, S, ...] up to a size."""
    return jnp.pad(x_BS, [(0, 0), (0, size - x_BS.shape[1])] + [(0, 0)] * (x_BS.ndim - 2))
