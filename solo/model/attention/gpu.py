"""Interval attention as Pallas kernels for NVIDIA GPUs, lowered through Triton.

A program of the grid takes one block of queries of one head (in the forward pass and for d_q) or one block of keys of
one key head (for d_k and d_v), and loops over the tiles that it needs. The tiles are listed before the kernel runs:
first those that are fully visible, then those that are partly visible, which need a mask.

Letters besides those of solo/batch.py: R key slots, M = H / K query heads that share a key head; X query blocks and Y
key blocks of a row; of a tile: Q queries, J keys; E the width of a value.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from solo.model.attention.pallas import (
    NN,
    NT,
    TN,
    Sizes,
    check_dtypes,
    differentiable,
    pad_bounds,
    pad_regions,
    product,
    scores,
    seen_tiles,
)
from solo.model.attention.tiles import FLOOR, Tiles, pad_slots

# The smallest head dimension that the tensor cores multiply; larger ones are padded to a power of two, values and keys
# each to their own.
LEAST_DIM = 16


class Visits(NamedTuple):
    """For each block: counts of fully visible and of all visible blocks, then indices, fully visible ones first."""

    keys: Array  # int32 [B, X, 2 + Y]
    queries: Array  # int32 [B, Y, 2 + X]


def triton_attention(sizes: Sizes, q_BSHC: Array, k_BRKC: Array, v_BRKE: Array, intervals_BS4: Array) -> Array:
    """Returns [B, S, H, E]; see `interval_attention`. No interval may reach beyond its region.

    Raises:
        ValueError: dtypes differ, or are neither float32 nor bfloat16.
    """
    check_dtypes(q_BSHC, k_BRKC, v_BRKE)
    S, E = q_BSHC.shape[1], v_BRKE.shape[3]
    q, k, v = (_pad_dim(x) for x in (q_BSHC, k_BRKC, v_BRKE))
    q = pad_slots(q, sizes.padded_queries)
    k, v = (pad_regions(sizes, x) for x in (k, v))
    bounds = pad_bounds(sizes, intervals_BS4)
    attend = differentiable(_forward, _backward)
    return attend(sizes, q, k, v, bounds, plan_visits(sizes, intervals_BS4))[:, :S, :, :E]


def _pad_dim(x: Array) -> Array:
    dim = max(LEAST_DIM, pl.next_power_of_2(x.shape[-1]))
    return jnp.pad(x, [(0, 0)] * 3 + [(0, dim - x.shape[-1])])


def plan_visits(sizes: Sizes, intervals_BS4: Array) -> Visits:
    """Returns the tiles of each block of queries and of each block of keys."""
    seen = seen_tiles(sizes, intervals_BS4)
    return Visits(_list(seen), _list(Tiles(*(x.swapaxes(1, 2) for x in seen))))


def _list(seen: Tiles) -> Array:
    counts = (x.sum(axis=-1, keepdims=True) for x in (seen.full, seen.some))
    rank = jnp.where(seen.full, 0, jnp.where(seen.some, 1, 2))
    return jnp.concatenate([*counts, jnp.argsort(rank, axis=-1, stable=True)], axis=-1).astype(jnp.int32)


def _backward(sizes: Sizes, q: Array, k: Array, v: Array, bounds: Array, visits: Visits, outside: tuple) -> tuple:
    out, log_total, d_out = outside
    rest = (d_out, log_total, jnp.einsum("bshe,bshe->bhs", d_out, out, preferred_element_type=jnp.float32))
    d_k, d_v = _key_gradients(sizes, q, k, v, bounds, visits.queries, rest)
    return _query_gradients(sizes, q, k, v, bounds, visits.keys, rest), d_k, d_v


# --- Shared by all kernels ---


def _call(kernel: Callable[..., None], sizes: Sizes, name: str, **arguments: Any) -> Callable[..., Any]:
    parameters = plgpu.CompilerParams(num_warps=8 if sizes.query_block * sizes.key_block > 64 * 64 else 4, num_stages=2)
    return pl.pallas_call(
        functools.partial(kernel, sizes),
        interpret=sizes.interpret,
        compiler_params=parameters,
        name=f"interval_attention_{name}",
        **arguments,
    )


class _Specs(NamedTuple):
    """The specs of arrays for a grid of (X, H, B)."""

    visits: pl.BlockSpec
    queries: pl.BlockSpec  # [Q, C]
    keys: pl.BlockSpec  # [R, C]
    values: pl.BlockSpec  # [R, E]
    bounds: pl.BlockSpec  # [4, Q]
    outputs: pl.BlockSpec  # [Q, E]
    numbers: pl.BlockSpec  # [Q]


def _of_query_block(sizes: Sizes, heads: int, k_BRKC: Array, v_BRKE: Array, visits: Array) -> _Specs:
    (R, K, C), E, Q = k_BRKC.shape[1:], v_BRKE.shape[3], sizes.query_block
    return _Specs(
        visits=pl.BlockSpec((None, None, visits.shape[2]), lambda x, h, b: (b, x, 0)),
        queries=pl.BlockSpec((None, Q, None, C), lambda x, h, b: (b, x, h, 0)),
        keys=pl.BlockSpec((None, R, None, C), lambda x, h, b: (b, 0, h // (heads // K), 0)),
        values=pl.BlockSpec((None, R, None, E), lambda x, h, b: (b, 0, h // (heads // K), 0)),
        bounds=pl.BlockSpec((None, 4, Q), lambda x, h, b: (b, 0, x)),
        outputs=pl.BlockSpec((None, Q, None, E), lambda x, h, b: (b, x, h, 0)),
        numbers=pl.BlockSpec((None, None, Q), lambda x, h, b: (b, h, x)),
    )


def _visible(sizes: Sizes, bounds_ref: Any, queries: Any, key: Any) -> Array:
    """Returns bool [Q, J]: the keys of block `key` that each query of a slice of bounds_ref [4, S or Q] sees."""
    region = 2 * (key * sizes.key_block >= sizes.padded_patches).astype(jnp.int32)
    start_Q, end_Q = bounds_ref[region, queries], bounds_ref[region + 1, queries]
    slots_J = key * sizes.key_block + jnp.arange(sizes.key_block)
    return (slots_J[None, :] >= start_Q[:, None]) & (slots_J[None, :] < end_Q[:, None])


def _visit(visits_ref: Any, tile: Callable[..., Any], start: Any, times: int = 1) -> Any:
    """Fold `tile` over a block's visits, each `times` times: (index of the visit, masked, sums) -> sums."""
    full, some = visits_ref[0] * times, visits_ref[1] * times
    sums = lax.fori_loop(0, full, lambda i, sums: tile(i, False, sums), start)
    return lax.fori_loop(full, some, lambda i, sums: tile(i, True, sums), sums)


# --- The forward pass ---


def _forward(sizes: Sizes, q_BSHC: Array, k_BRKC: Array, v_BRKE: Array, bounds_B4S: Array, visits: Visits) -> Any:
    """Returns the output and the base-2 log of the sum of exp(score), float32 [B, H, S]; FLOOR without keys."""
    (B, S, H), E = q_BSHC.shape[:3], v_BRKE.shape[3]
    specs = _of_query_block(sizes, H, k_BRKC, v_BRKE, visits.keys)
    return _call(
        _forward_kernel,
        sizes,
        "forward",
        grid=(S // sizes.query_block, H, B),
        in_specs=specs[:5],
        out_specs=[specs.outputs, specs.numbers],
        out_shape=[
            jax.ShapeDtypeStruct((B, S, H, E), q_BSHC.dtype),
            jax.ShapeDtypeStruct((B, H, S), jnp.float32),
        ],
    )(visits.keys, q_BSHC, k_BRKC, v_BRKE, bounds_B4S)


def _forward_kernel(
    sizes: Sizes, visits_ref: Any, q_ref: Any, k_ref: Any, v_ref: Any, bounds_ref: Any, out_ref: Any, log_total_ref: Any
) -> None:
    q_QC, J = q_ref[...], sizes.key_block

    def tile(i: Any, masked: bool, sums: tuple) -> tuple:
        weighted_QE, total_Q, maximum_Q = sums
        key = visits_ref[2 + i]
        here = pl.ds(key * J, J)
        visible_QJ = _visible(sizes, bounds_ref, slice(None), key) if masked else None
        scores_QJ = scores(sizes, q_QC, k_ref[here, :], visible_QJ)
        highest_Q = jnp.maximum(maximum_Q, scores_QJ.max(axis=1))
        weights_QJ = jnp.exp2(scores_QJ - highest_Q[:, None])
        fade_Q = jnp.exp2(maximum_Q - highest_Q)
        values_QE = product(weights_QJ.astype(q_QC.dtype), v_ref[here, :], NN)
        return weighted_QE * fade_Q[:, None] + values_QE, total_Q * fade_Q + weights_QJ.sum(axis=1), highest_Q

    zeros_Q = jnp.zeros(sizes.query_block, jnp.float32)
    zeros_QE = jnp.zeros((sizes.query_block, v_ref.shape[1]), jnp.float32)
    weighted_QE, total_Q, maximum_Q = _visit(visits_ref, tile, (zeros_QE, zeros_Q, zeros_Q + FLOOR))
    total_Q = jnp.where(total_Q == 0, 1.0, total_Q)
    out_ref[...] = (weighted_QE / total_Q[:, None]).astype(out_ref.dtype)
    log_total_ref[...] = maximum_Q + jnp.log2(total_Q)


# --- The backward pass ---


def _query_gradients(
    sizes: Sizes, q_BSHC: Array, k_BRKC: Array, v_BRKE: Array, bounds_B4S: Array, visits: Array, rest: tuple
) -> Array:
    """Returns d_q [B, S, H, C].

    `rest` is d_out [B, S, H, E], then the log of the total and d_out . out, float32 [B, H, S] each.
    """
    B, S, H = q_BSHC.shape[:3]
    specs = _of_query_block(sizes, H, k_BRKC, v_BRKE, visits)
    return _call(
        _query_gradients_kernel,
        sizes,
        "query_gradients",
        grid=(S // sizes.query_block, H, B),
        in_specs=[*specs, specs.numbers],
        out_specs=specs.queries,
        out_shape=jax.ShapeDtypeStruct(q_BSHC.shape, q_BSHC.dtype),
    )(visits, q_BSHC, k_BRKC, v_BRKE, bounds_B4S, *rest)


def _query_gradients_kernel(
    sizes: Sizes,
    visits_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    bounds_ref: Any,
    d_out_ref: Any,
    log_total_ref: Any,
    inner_ref: Any,
    d_q_ref: Any,
) -> None:
    q_QC, d_out_QE, J = q_ref[...], d_out_ref[...], sizes.key_block
    log_total_Q, inner_Q = log_total_ref[...], inner_ref[...]

    def tile(i: Any, masked: bool, d_q_QC: Array) -> Array:
        key = visits_ref[2 + i]
        here = pl.ds(key * J, J)
        k_JC = k_ref[here, :]
        visible_QJ = _visible(sizes, bounds_ref, slice(None), key) if masked else None
        weights_QJ = jnp.exp2(scores(sizes, q_QC, k_JC, visible_QJ) - log_total_Q[:, None])
        d_scores_QJ = weights_QJ * (product(d_out_QE, v_ref[here, :], NT) - inner_Q[:, None])
        return d_q_QC + product(d_scores_QJ.astype(k_JC.dtype), k_JC, NN)

    d_q_QC = _visit(visits_ref, tile, jnp.zeros(q_QC.shape, jnp.float32))
    d_q_ref[...] = (d_q_QC * sizes.scale).astype(d_q_ref.dtype)


def _key_gradients(
    sizes: Sizes, q_BSHC: Array, k_BRKC: Array, v_BRKE: Array, bounds_B4S: Array, visits: Array, rest: tuple
) -> Any:
    """Returns d_k [B, R, K, C] and d_v [B, R, K, E]. `rest` is that of `_query_gradients`."""
    (B, S, H, C), (R, K), E = q_BSHC.shape, k_BRKC.shape[1:3], v_BRKE.shape[3]
    M = H // K
    of_keys, of_values = (
        pl.BlockSpec((None, sizes.key_block, None, dim), lambda y, k, b: (b, y, k, 0)) for dim in (C, E)
    )
    of_queries, of_outputs = (pl.BlockSpec((None, S, M, dim), lambda y, k, b: (b, 0, k, 0)) for dim in (C, E))
    of_bounds = pl.BlockSpec((None, 4, S), lambda y, k, b: (b, 0, 0))
    of_numbers = pl.BlockSpec((None, M, S), lambda y, k, b: (b, k, 0))
    of_visits = pl.BlockSpec((None, None, visits.shape[2]), lambda y, k, b: (b, y, 0))
    return _call(
        _key_gradients_kernel,
        sizes,
        "key_gradients",
        grid=(R // sizes.key_block, K, B),
        in_specs=[of_visits, of_queries, of_keys, of_values, of_bounds, of_outputs, of_numbers, of_numbers],
        out_specs=[of_keys, of_values],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k_BRKC, v_BRKE)],
    )(visits, q_BSHC, k_BRKC, v_BRKE, bounds_B4S, *rest)


def _key_gradients_kernel(
    sizes: Sizes,
    visits_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    bounds_ref: Any,
    d_out_ref: Any,
    log_total_ref: Any,
    inner_ref: Any,
    d_k_ref: Any,
    d_v_ref: Any,
) -> None:
    k_JC, v_JE, key, Q, M = k_ref[...], v_ref[...], pl.program_id(0), sizes.query_block, q_ref.shape[1]

    def tile(i: Any, masked: bool, sums: tuple) -> tuple:
        d_k_JC, d_v_JE = sums
        here, m = pl.ds(visits_ref[2 + lax.div(i, M)] * Q, Q), lax.rem(i, M)
        q_QC, d_out_QE = q_ref[here, m, :], d_out_ref[here, m, :]
        visible_QJ = _visible(sizes, bounds_ref, here, key) if masked else None
        weights_QJ = jnp.exp2(scores(sizes, q_QC, k_JC, visible_QJ) - log_total_ref[m, here][:, None])
        d_scores_QJ = weights_QJ * (product(d_out_QE, v_JE, NT) - inner_ref[m, here][:, None])
        d_k_JC += product(d_scores_QJ.astype(q_QC.dtype), q_QC, TN)
        return d_k_JC, d_v_JE + product(weights_QJ.astype(q_QC.dtype), d_out_QE, TN)

    zeros = jnp.zeros(k_JC.shape, jnp.float32), jnp.zeros(v_JE.shape, jnp.float32)
    d_k_JC, d_v_JE = _visit(visits_ref, tile, zeros, times=M)
    d_k_ref[...] = (d_k_JC * sizes.scale).astype(d_k_ref.dtype)
    d_v_ref[...] = d_v_JE.astype(d_v_ref.dtype)
