"""The backward kernel for TPU: one pass over the tiles for all three gradients.

The tiles are ordered by query block, so d_q accumulates in place; d_k and d_v accumulate over the whole row, in the
chip's vector memory. Two passes, one for each order of the tiles, would compute scores and weights twice: seven
products a tile instead of five. With a head dimension of 128, the vector memory holds the gradients of 24,576 keys in
bfloat16. The keys of a longer row are divided into parts, with one pass over the tiles of each part.

Letters as in `solo.model.attention.tpu`.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from solo.model.attention.pallas import NN, NT, TN, Sizes, product, scores
from solo.model.attention.tpu_tiles import (
    FIRST,
    FIRST_OF_ROW,
    LAST,
    LAST_OF_ROW,
    Visits,
    by_sight,
    compiler_parameters,
    on_kind,
    specification,
    visible_keys,
)

VMEM_BYTES = 60 * 2**20
# The part of the vector memory for the arrays of a tile, with a margin.
TILE_BYTES = 12 * 2**20


def key_parts(sizes: Sizes, itemsize: int) -> list[tuple[int, int]]:
    """Returns ranges [first, end) of key blocks whose gradients fit into the vector memory, about equally long."""
    # For d_k and d_v each: the sum in float32, and two buffers of the result, one of which is being written out.
    of_key = (sizes.dim + sizes.value_dim) * (4 + 2 * itemsize)
    blocks, most = sizes.padded_keys // sizes.key_block, (VMEM_BYTES - TILE_BYTES) // (of_key * sizes.key_block)
    size = -(-blocks // -(-blocks // max(1, most)))
    return [(first, min(first + size, blocks)) for first in range(0, blocks, size)]


def backward(
    sizes: Sizes,
    q_BHSC: Array,
    k_BKRC: Array,
    v_BKRE: Array,
    bounds_B4S: Array,
    visits: tuple[Visits, ...],
    out_side: tuple,
) -> tuple[Array, Array, Array]:
    """Returns d_q, d_k and d_v, shaped like q, k and v.

    visits    the needed tiles of each of `key_parts`
    out_side  d_out [B, H, S, E], then the base-2 log of the sum of exp(score) and d_out . out, float32 [B, K, M, S]
    """
    arrays = q_BHSC, k_BKRC, v_BKRE, bounds_B4S, *out_side
    parts = key_parts(sizes, k_BKRC.dtype.itemsize)
    if len(parts) == 1:
        return _backward_of_part(sizes, parts[0], visits[0], arrays, q_BHSC.dtype)
    found = [
        _backward_of_part(sizes, part, of_part, arrays, jnp.dtype(jnp.float32))
        for part, of_part in zip(parts, visits, strict=True)
    ]
    d_q, d_k, d_v = zip(*found, strict=True)
    return sum(d_q[1:], d_q[0]).astype(q_BHSC.dtype), jnp.concatenate(d_k, axis=2), jnp.concatenate(d_v, axis=2)


def _backward_of_part(
    sizes: Sizes, part: tuple[int, int], visits: Visits, arrays: tuple[Array, ...], d_q_dtype: Any
) -> tuple[Array, Array, Array]:
    """Returns d_q from the key blocks [first, end), and their d_k and d_v."""
    q_BHSC, k_BKRC, v_BKRE, bounds_B4S, *out_side = arrays
    (B, H, _, C), K = q_BHSC.shape, k_BKRC.shape[1]
    M, Q, J, E = H // K, sizes.query_block, sizes.key_block, sizes.value_dim
    R = (part[1] - part[0]) * J
    of_queries, of_outputs = (
        specification((1, M, Q, dim), lambda head, row, query, key: (row, head, query, 0)) for dim in (C, E)
    )
    of_keys, of_values = (
        specification((1, 1, J, dim), lambda head, row, query, key: (row, head, key, 0)) for dim in (C, E)
    )
    of_bounds = specification((1, 4, Q), lambda head, row, query, key: (row, 0, query))
    of_rows = specification((1, 1, M, Q), lambda head, row, query, key: (row, head, 0, query))
    d_key, d_value = (specification((1, 1, R, dim), lambda head, row, query, key: (row, head, 0, 0)) for dim in (C, E))
    return tuple(
        pl.pallas_call(
            functools.partial(_backward_kernel, sizes, part[0]),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=4,
                grid=(K, visits.number),
                in_specs=[of_queries, of_keys, of_values, of_bounds, of_outputs, of_rows, of_rows],
                out_specs=[of_queries, d_key, d_value],
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in ((M, C, Q), (R, C), (R, E))],
            ),
            out_shape=[
                jax.ShapeDtypeStruct(q_BHSC.shape, d_q_dtype),
                jax.ShapeDtypeStruct((B, K, R, C), k_BKRC.dtype),
                jax.ShapeDtypeStruct((B, K, R, E), k_BKRC.dtype),
            ],
            name="interval_attention_backward",
            **compiler_parameters(sizes, VMEM_BYTES),
        )(*visits[1:], q_BHSC, k_BKRC, v_BKRE, bounds_B4S, *out_side)
    )


def _backward_kernel(
    sizes: Sizes,
    first: int,
    row: Any,
    query: Any,
    key: Any,
    kinds: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    bounds_ref: Any,
    d_out_ref: Any,
    log_total_ref: Any,
    inner_ref: Any,
    d_q_ref: Any,
    d_k_ref: Any,
    d_v_ref: Any,
    d_q_MCQ: Any,
    d_k_RC: Any,
    d_v_RE: Any,
) -> None:
    n = pl.program_id(1)
    kind, heads, J = kinds[n], range(q_ref.shape[1]), sizes.key_block

    @on_kind(kind, FIRST_OF_ROW)
    def _() -> None:
        d_k_RC[...] = jnp.zeros_like(d_k_RC)
        d_v_RE[...] = jnp.zeros_like(d_v_RE)

    @on_kind(kind, FIRST)
    def _() -> None:
        d_q_MCQ[...] = jnp.zeros_like(d_q_MCQ)

    def tile(masked: bool) -> None:
        k_JC, v_JE = k_ref[0, 0], v_ref[0, 0]
        visible_JQ = visible_keys(sizes, bounds_ref, key[n]) if masked else None
        here = pl.ds(pl.multiple_of((key[n] - first) * J, J), J)
        q_MQC, d_out_MQE = ([ref[0, m] for m in heads] for ref in (q_ref, d_out_ref))
        # Each stage runs for all heads before the next one, as in the forward pass.
        scores_MJQ = [scores(sizes, k_JC, q_QC, visible_JQ) for q_QC in q_MQC]
        d_weights_MJQ = [product(v_JE, d_out_QE, NT) for d_out_QE in d_out_MQE]
        weights_MJQ = [jnp.exp2(scores_MJQ[m] - log_total_ref[0, 0, m : m + 1]) for m in heads]
        d_scores_MJQ = [weights_MJQ[m] * (d_weights_MJQ[m] - inner_ref[0, 0, m : m + 1]) for m in heads]
        weights_MJQ, d_scores_MJQ = ([x.astype(k_JC.dtype) for x in xs] for xs in (weights_MJQ, d_scores_MJQ))
        d_v_RE[here] += sum(product(weights_MJQ[m], d_out_MQE[m], NN) for m in heads)
        d_k_RC[here] += sum(product(d_scores_MJQ[m], q_MQC[m], NN) for m in heads)
        for m in heads:
            d_q_MCQ[m] += product(k_JC, d_scores_MJQ[m], TN)

    by_sight(kind, tile)

    @on_kind(kind, LAST)
    def _() -> None:
        for m in heads:
            d_q_ref[0, m] = (d_q_MCQ[m] * sizes.scale).T.astype(d_q_ref.dtype)

    @on_kind(kind, LAST_OF_ROW)
    def _() -> None:
        d_k_ref[0, 0] = (d_k_RC[...] * sizes.scale).astype(d_k_ref.dtype)
        d_v_ref[0, 0] = d_v_RE[...].astype(d_v_ref.dtype)
