"""Interval attention as Pallas kernels for TPU: flash attention that visits only the tiles that are needed.

A tile is a block of queries, of all heads that share a key head, and a block of keys of one region. The needed tiles
are listed before the kernel runs, in four integer arrays that the chip's scalar unit prefetches. The grid has one step
per listed tile. Its length is known only on the device, and a tile that no query needs does not cost a grid step.

Scores are transposed in a tile, keys down and queries across. A query's intervals, maximum and sum are then rows of
lanes, and sums over keys run down the sublanes, mostly as plain additions.

Letters besides those of solo/batch.py: R key slots, M = H / K query heads that share a key head; X query blocks and Y
key blocks of a row; of a tile: Q queries, J keys; N tiles of all rows; E the width of a value.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from solo.model.attention.pallas import (
    TN,
    Sizes,
    check_dtypes,
    differentiable,
    pad_bounds,
    pad_regions,
    product,
    scores,
)
from solo.model.attention.tiles import FLOOR, pad_slots
from solo.model.attention.tpu_backward import backward, key_parts
from solo.model.attention.tpu_tiles import (
    FIRST,
    LAST,
    Visits,
    by_sight,
    compiler_parameters,
    on_kind,
    plan_visits,
    specification,
    visible_keys,
)

# The lists of tiles are in scalar memory, which is 1 MiB from TPU v4 on; the compiler uses some of it. Rows with more
# tiles in all are computed a few at a time.
MOST_TILES = 40_000
VMEM_BYTES = 48 * 2**20


def flash_attention(sizes: Sizes, q_BSHC: Array, k_BRKC: Array, v_BRKE: Array, intervals_BS4: Array) -> Array:
    """Returns [B, S, H, E]; see `interval_attention`. No interval may reach beyond its region.

    Raises:
        ValueError: dtypes differ, or are neither float32 nor bfloat16, or a row has too many tiles.
    """
    check_dtypes(q_BSHC, k_BRKC, v_BRKE)
    rows = _rows_at_once(sizes)
    if rows < sizes.rows:
        arrays = [x.reshape(-1, rows, *x.shape[1:]) for x in (q_BSHC, k_BRKC, v_BRKE, intervals_BS4)]
        of_some = sizes._replace(rows=rows)
        out = lax.map(lambda some: flash_attention(of_some, *some), tuple(arrays))
        return out.reshape(*q_BSHC.shape[:3], -1)
    S = q_BSHC.shape[1]
    q_BHSC = pad_slots(q_BSHC, sizes.padded_queries).swapaxes(1, 2)
    k_BKRC, v_BKRE = (pad_regions(sizes, x).swapaxes(1, 2) for x in (k_BRKC, v_BRKE))
    bounds, visits = pad_bounds(sizes, intervals_BS4), plan_visits(sizes, intervals_BS4)
    parts = key_parts(sizes, k_BRKC.dtype.itemsize)
    of_parts = (visits,) if len(parts) == 1 else tuple(plan_visits(sizes, intervals_BS4, *part) for part in parts)
    attend = differentiable(_forward, _backward)
    out_BHSE = attend(sizes, q_BHSC, k_BKRC, v_BKRE, bounds, _Visits(visits, of_parts))
    return out_BHSE.swapaxes(1, 2)[:, :S]


class _Visits(NamedTuple):
    """The tiles that the forward pass visits, and those of each part of the keys for the backward pass."""

    all: Visits
    parts: tuple[Visits, ...]


def _rows_at_once(sizes: Sizes) -> int:
    """Returns the largest number of rows that divides all rows and whose tiles fit in the chip's list."""
    of_row = (sizes.padded_queries // sizes.query_block) * (sizes.padded_keys // sizes.key_block)
    if of_row > MOST_TILES:
        raise ValueError(
            f"a row of {sizes.queries} queries and {sizes.patches} + {sizes.text} keys makes {of_row} tiles of "
            f"{sizes.query_block} x {sizes.key_block}, and the chip's list holds {MOST_TILES}; choose larger blocks, "
            "or shard the slots over mesh.context"
        )
    return next(rows for rows in range(sizes.rows, 0, -1) if sizes.rows % rows == 0 and rows * of_row <= MOST_TILES)


def _backward(sizes: Sizes, q: Array, k: Array, v: Array, bounds: Array, visits: _Visits, outside: tuple) -> tuple:
    out, log_total, d_out = outside
    inner = jnp.einsum("bhse,bhse->bhs", d_out, out, preferred_element_type=jnp.float32)
    return backward(sizes, q, k, v, bounds, visits.parts, (d_out, log_total, inner.reshape(log_total.shape)))


def _forward(sizes: Sizes, q_BHSC: Array, k_BKRC: Array, v_BKRE: Array, bounds_B4S: Array, visits: _Visits) -> Any:
    """Returns the output and the base-2 log of the sum of exp(score), float32 [B, K, M, S]; FLOOR without keys."""
    (B, H, S, C), K = q_BHSC.shape, k_BKRC.shape[1]
    M, Q, J, E = H // K, sizes.query_block, sizes.key_block, sizes.value_dim
    of_queries, of_outputs = (
        specification((1, M, Q, dim), lambda head, row, query, key: (row, head, query, 0)) for dim in (C, E)
    )
    of_keys, of_values = (
        specification((1, 1, J, dim), lambda head, row, query, key: (row, head, key, 0)) for dim in (C, E)
    )
    of_bounds = specification((1, 4, Q), lambda head, row, query, key: (row, 0, query))
    of_rows = specification((1, 1, M, Q), lambda head, row, query, key: (row, head, 0, query))
    return pl.pallas_call(
        functools.partial(_forward_kernel, sizes),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(K, visits.all.number),
            in_specs=[of_queries, of_keys, of_values, of_bounds],
            out_specs=[of_outputs, of_rows],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in ((M, E, Q), (M, 1, Q), (M, 1, Q))],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((B, H, S, E), q_BHSC.dtype),
            jax.ShapeDtypeStruct((B, K, M, S), jnp.float32),
        ],
        name="interval_attention_forward",
        **compiler_parameters(sizes, VMEM_BYTES),
    )(*visits.all[1:], q_BHSC, k_BKRC, v_BKRE, bounds_B4S)


def _forward_kernel(
    sizes: Sizes,
    row: Any,
    query: Any,
    key: Any,
    kinds: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    bounds_ref: Any,
    out_ref: Any,
    log_total_ref: Any,
    weighted_MEQ: Any,
    total_M1Q: Any,
    maximum_M1Q: Any,
) -> None:
    n = pl.program_id(1)
    kind, heads = kinds[n], range(q_ref.shape[1])

    @on_kind(kind, FIRST)
    def _() -> None:
        weighted_MEQ[...] = jnp.zeros_like(weighted_MEQ)
        total_M1Q[...] = jnp.zeros_like(total_M1Q)
        maximum_M1Q[...] = jnp.full_like(maximum_M1Q, FLOOR)

    def tile(masked: bool) -> None:
        k_JC, v_JE = k_ref[0, 0], v_ref[0, 0]
        visible_JQ = visible_keys(sizes, bounds_ref, key[n]) if masked else None
        # Each stage runs for all heads before the next one: while one head waits for its scores, the others compute.
        before_M1Q = [maximum_M1Q[m] for m in heads]
        scores_MJQ = [scores(sizes, k_JC, q_ref[0, m], visible_JQ) for m in heads]
        after_M1Q = [jnp.maximum(before_M1Q[m], scores_MJQ[m].max(axis=0, keepdims=True)) for m in heads]
        weights_MJQ = [jnp.exp2(scores_MJQ[m] - after_M1Q[m]) for m in heads]
        fade_M1Q = [jnp.exp2(before_M1Q[m] - after_M1Q[m]) for m in heads]
        values_MEQ = [product(v_JE, weights_JQ.astype(v_JE.dtype), TN) for weights_JQ in weights_MJQ]
        for m in heads:
            weighted_MEQ[m] = weighted_MEQ[m] * fade_M1Q[m] + values_MEQ[m]
            total_M1Q[m] = total_M1Q[m] * fade_M1Q[m] + weights_MJQ[m].sum(axis=0, keepdims=True)
            maximum_M1Q[m] = after_M1Q[m]

    by_sight(kind, tile)

    @on_kind(kind, LAST)
    def _() -> None:
        for m in heads:
            total_1Q = jnp.where(total_M1Q[m] == 0, 1.0, total_M1Q[m])
            out_ref[0, m] = (weighted_MEQ[m] / total_1Q).T.astype(out_ref.dtype)
            log_total_ref[0, 0, m : m + 1] = maximum_M1Q[m] + jnp.log2(total_1Q)
