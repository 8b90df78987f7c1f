"""Code that the forward and the backward kernel for TPU share: the list of tiles, and the mask of a tile.

Letters as in `solo.model.attention.tpu`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from solo.model.attention.pallas import Sizes, seen_tiles
from solo.model.attention.tiles import Tiles

# The place of a visit in its query block and its row, and whether its tile needs a mask: bits of `Visits.kind`.
FIRST, LAST, FIRST_OF_ROW, LAST_OF_ROW, SOME, FULL = (1 << i for i in range(6))


class Visits(NamedTuple):
    """The tiles to visit, ordered by row and query block: int32 [N], of which the first `number` are valid.

    Every query block has at least one visit: a block that sees nothing still has to write zeros.
    """

    number: Array
    row: Array
    query: Array
    key: Array
    kind: Array


def plan_visits(sizes: Sizes, intervals_BS4: Array, first: int = 0, end: int | None = None) -> Visits:
    """Returns the needed tiles of the key blocks [first, end). No interval may reach beyond its region."""
    seen = Tiles(*(each[..., first:end] for each in seen_tiles(sizes, intervals_BS4)))
    X, Y = seen.some.shape[1:]
    visited = seen.some.at[..., 0].max(~seen.some.any(axis=-1))
    at = jnp.nonzero(visited.reshape(-1), size=visited.size, fill_value=0)[0].astype(jnp.int32)
    count = visited.sum(dtype=jnp.int32)
    block, row = at // Y, at // (X * Y)

    def edges(group: Array, first: int, last: int) -> Array:
        differs = group[1:] != group[:-1]
        ends = jnp.arange(1, len(group)) >= count
        return first * jnp.pad(differs, (1, 0), constant_values=True) + last * jnp.pad(
            differs | ends, (0, 1), constant_values=True
        )

    sight = SOME * seen.some.reshape(-1)[at] + FULL * seen.full.reshape(-1)[at]
    kind = edges(block, FIRST, LAST) + edges(row, FIRST_OF_ROW, LAST_OF_ROW) + sight
    return Visits(count, row, block % X, at % Y + first, kind.astype(jnp.int32))


def on_kind(kind: Array, bit: int) -> Callable[[Callable[[], None]], None]:
    """Decorates a function to run only at visits of this kind."""
    return pl.when((kind & bit) != 0)


def by_sight(kind: Array, tile: Callable[[bool], None]) -> None:
    """Runs a tile with a mask if it is partly visible, and without a mask if it is fully visible."""
    pl.when((kind & (SOME | FULL)) == SOME)(lambda: tile(True))
    pl.when((kind & FULL) != 0)(lambda: tile(False))


def visible_keys(sizes: Sizes, bounds_ref: Any, key: Array) -> Array:
    """Returns bool [J, Q]: the keys of block `key` that each query sees.

    bounds_ref  int32 [1, 4, Q]: (a0, a1, a2, a3) of each query; those of text count from the start of the row
    """
    is_text = key * sizes.key_block >= sizes.padded_patches
    start, end = (jnp.where(is_text, bounds_ref[0, i + 2 : i + 3], bounds_ref[0, i : i + 1]) for i in (0, 1))
    slots = key * sizes.key_block + lax.broadcasted_iota(jnp.int32, (sizes.key_block, sizes.query_block), 0)
    return (slots >= start) & (slots < end)


def specification(block: tuple[int, ...], place: Callable[..., tuple[Any, ...]]) -> pl.BlockSpec:
    """Returns a block spec whose index is a function of (key head, row, query block, key block)."""

    def index(head: Any, n: Any, row: Any, query: Any, key: Any, kind: Any) -> tuple[Any, ...]:
        return place(head, row[n], query[n], key[n])

    return pl.BlockSpec(block, index)


def compiler_parameters(sizes: Sizes, vmem_bytes: int) -> dict[str, Any]:
    """Returns the compiler parameters: key heads may run on different cores; the tiles of a key head run in order."""
    parameters = pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=vmem_bytes)
    return {"compiler_params": parameters, "interpret": sizes.interpret}
