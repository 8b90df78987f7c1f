"""Sorts the slots of a row into reading order, and determines which tiles of attention scores are needed.

A row stores its patches before its text, so the keys that a query sees are in two places. In reading order they are
contiguous: a document of n slots needs about (n / block)^2 / 2 tiles, wherever its patches and text are in the row.

Shape letters besides those of solo/batch.py: R key slots; X query blocks and Y key blocks of a row; Q queries and J
keys of a block.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from solo.model.attention.tiles import pad_slots


class Grid(NamedTuple):
    """The static sizes. The last key block of a row is empty, and no query attends to it."""

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
    inverse  int32 [B, S]  the position of each slot in `slots`
    """

    slots: Array
    inverse: Array

    def sort(self, x_BS: Array, size: int) -> Array:
        """Returns x [B, S, ...] in this order, padded with zeros to [B, size, ...]."""
        return pad_slots(_take(x_BS, self.slots), size)

    def unsort(self, x_BS: Array) -> Array:
        """Returns x [B, size, ...] in the original order, without padding: the inverse of `sort`."""
        return _take(x_BS, self.inverse)


class SortedTiles(NamedTuple):
    """Queries and keys in reading order, cut into blocks.

    queries    the order of the queries
    keys       the order of the keys; within a region, keys keep their order
    intervals  int32 [B, X, Q, 4]  intervals that each query attends to; empty for padding
    slots      int32 [B, Y, J]     slot of each key within its region; -1 for padding
    is_text    bool [B, Y, J]      whether each key is in the text region
    needed     bool [B, X, Y]      whether any query of the query block attends to any key of the key block
    """

    queries: Order
    keys: Order
    intervals: Array
    slots: Array
    is_text: Array
    needed: Array


def sort_into_tiles(grid: Grid, intervals_BS4: Array) -> SortedTiles:
    """Sorts queries and keys, and determines which tiles are needed.

    If queries and keys are the same slots, both are sorted into reading order. Otherwise, as with a KV cache, the
    reading order of the keys is unknown, and patches stay before text.
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
    # Slots are numbered from 1 here, so that the zeros of the padding become -1.
    slots, is_text = (pad_slots(x, size).reshape(grid.rows, grid.key_blocks, grid.block) for x in (slots + 1, is_text))
    slots = slots - 1
    patches = _overlap(intervals[..., :2], slots, (slots >= 0) & ~is_text)
    return SortedTiles(queries, keys, intervals, slots, is_text, patches | _overlap(intervals[..., 2:], slots, is_text))


def _by_rank(grid: Grid, intervals_BS4: Array) -> Order:
    """Sorts slots by the sum of the ends of the intervals that they attend to.

    With a causal mask, this sum is the number of slots up to this one in reading order. Padding comes last. Any
    other mask gives another order, which may need more tiles but leads to the same result.
    """
    starts, ends = intervals_BS4[..., ::2], intervals_BS4[..., 1::2]
    live = jnp.any(starts < ends, axis=-1)
    rank = jnp.where(live, ends.sum(axis=-1), grid.keys + 1)
    if grid.queries == grid.keys:  # A key block must be an interval of each region; see `_overlap`.
        regions = rank[:, : grid.patches], rank[:, grid.patches :]
        rank = jnp.concatenate([lax.cummax(region, axis=1) for region in regions], axis=1)
    slots = jnp.argsort(rank, axis=-1, stable=True)
    return Order(slots, jnp.argsort(slots, axis=-1))


def _overlap(bounds_BXQ2: Array, slots_BYJ: Array, is_in_BYJ: Array) -> Array:
    """Returns bool [B, X, Y]: whether any query's interval contains a key of the key block that is in the region."""
    first = jnp.where(is_in_BYJ, slots_BYJ, jnp.iinfo(jnp.int32).max).min(axis=-1)[:, None, None]
    after = jnp.where(is_in_BYJ, slots_BYJ + 1, 0).max(axis=-1)[:, None, None]
    start, end = bounds_BXQ2[..., :1], bounds_BXQ2[..., 1:]
    return jnp.any(jnp.maximum(start, first) < jnp.minimum(end, after), axis=2)


def _take(x_BS: Array, index_BS: Array) -> Array:
    index = index_BS.reshape(*index_BS.shape, *[1] * (x_BS.ndim - 2))
    return jnp.take_along_axis(x_BS, index, axis=1, mode="promise_in_bounds")
