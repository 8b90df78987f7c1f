"""Sorts the slots of a row into reading order and determines which tiles of scores are needed there.

A row holds its patches before its text, so the keys that a query sees lie in two places. In reading order they are next
to each other: a document of n slots needs about (n / block)^2 / 2 tiles, wherever its patches and text are.

Letters besides those of solo/batch.py: R key slots; X query blocks and Y key blocks of a row; Q queries and J keys of a
block.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from solo.model.attention.tiles import pad_slots


class Grid(NamedTuple):
    """The static sizes. The last key block of a row is empty, and no query sees it."""

    rows: int
    queries: int
    patches: int
    text: int
    block: int

    @property
    def keys(self) -> int:
        """R, the number of key slots of a row."""
        return self.patches + self.text

    @property
    def query_blocks(self) -> int:
        """X, the number of query blocks of a row."""
        return -(-self.queries // self.block)

    @property
    def key_blocks(self) -> int:
        """Y, the number of key blocks of a row."""
        return -(-self.keys // self.block) + 1


class Order(NamedTuple):
    """An order of the slots of each row.

    slots    int32 [B, S]  the slots, sorted
    inverse  int32 [B, S]  the place of each slot among them
    """

    slots: Array
    inverse: Array

    def sort(self, x_BS: Array, size: int) -> Array:
        """Returns [B, S, ...] in this order, padded with zeros to a size."""
        return pad_slots(_take(x_BS, self.slots), size)

    def unsort(self, x_BS: Array) -> Array:
        """Returns [B, size, ...] in the original order, without padding: the inverse of `sort`."""
        return _take(x_BS, self.inverse)


class Tiles(NamedTuple):
    """Queries and keys in blocks of reading order.

    queries    the order of the queries
    keys       the order of the keys; each region's keys stay in their own order
    intervals  int32 [B, X, Q, 4]  what each query attends to; padding queries attend to nothing
    slots      int32 [B, Y, J]     slot of each key within its region; -1 for padding
    is_text    bool [B, Y, J]      region of each key
    needed     bool [B, X, Y]      whether a query of the block attends to a key of the block
    """

    queries: Order
    keys: Order
    intervals: Array
    slots: Array
    is_text: Array
    needed: Array


def sort_into_tiles(grid: Grid, intervals_BS4: Array) -> Tiles:
    """Sorts queries and keys, and determines the needed tiles.

    Queries that are also the keys are sorted into reading order with them. Otherwise, as with a KV cache, the order of
    the keys is unknown: patches stay before text.
    """
    queries = _by_rank(grid, intervals_BS4)
    keys = queries
    if grid.queries != grid.keys:
        same = jnp.broadcast_to(jnp.arange(grid.keys), (grid.rows, grid.keys))
        keys = Order(same, same)
    intervals = queries.sort(intervals_BS4, grid.query_blocks * grid.block)
    intervals = intervals.reshape(grid.rows, grid.query_blocks, grid.block, 4)
    is_text = keys.slots >= grid.patches
    slots = jnp.where(is_text, keys.slots - grid.patches, keys.slots)
    size = grid.key_blocks * grid.block
    # Slots count from 1 until they are padded with zeros.
    slots, is_text = (pad_slots(x, size).reshape(grid.rows, grid.key_blocks, grid.block) for x in (slots + 1, is_text))
    slots = slots - 1
    patches = _overlap(intervals[..., :2], slots, (slots >= 0) & ~is_text)
    return Tiles(queries, keys, intervals, slots, is_text, patches | _overlap(intervals[..., 2:], slots, is_text))


def _by_rank(grid: Grid, intervals_BS4: Array) -> Order:
    """Sorts slots by the end of what they see.

    With causal masks, the keys before that end are those that precede the slot in its row. Padding comes last. Other
    masks give another order, which may need more tiles but gives the same result.
    """
    starts, ends = intervals_BS4[..., ::2], intervals_BS4[..., 1::2]
    live = jnp.any(starts < ends, axis=-1)
    rank = jnp.where(live, ends.sum(axis=-1), grid.keys + 1)
    if grid.queries == grid.keys:  # Keys of a block must be an interval of each region; see `_overlap`.
        regions = rank[:, : grid.patches], rank[:, grid.patches :]
        rank = jnp.concatenate([lax.cummax(region, axis=1) for region in regions], axis=1)
    slots = jnp.argsort(rank, axis=-1, stable=True)
    return Order(slots, jnp.argsort(slots, axis=-1))


def _overlap(bounds_BXQ2: Array, slots_BYJ: Array, is_in_BYJ: Array) -> Array:
    """Returns bool [B, X, Y]: whether a query's interval contains a key of the block that lies in the region."""
    first = jnp.where(is_in_BYJ, slots_BYJ, jnp.iinfo(jnp.int32).max).min(axis=-1)[:, None, None]
    after = jnp.where(is_in_BYJ, slots_BYJ + 1, 0).max(axis=-1)[:, None, None]
    start, end = bounds_BXQ2[..., :1], bounds_BXQ2[..., 1:]
    return jnp.any(jnp.maximum(start, first) < jnp.minimum(end, after), axis=2)


def _take(x_BS: Array, index_BS: Array) -> Array:
    index = index_BS.reshape(*index_BS.shape, *[1] * (x_BS.ndim - 2))
    return jnp.take_along_axis(x_BS, index, axis=1, mode="promise_in_bounds")
