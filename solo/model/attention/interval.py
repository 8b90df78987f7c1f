"""Attention of each query over two intervals of its row: one of patches and one of text.

`Batch.attend` expresses all masking: packed documents, causality, image masks, sliding windows and padding. The key
blocks that a query block needs are therefore known in advance, and all others are skipped. Instead of the square of the
row's length, the forward and backward passes cost about the sum of the squares of its documents' lengths.

Letters besides those of solo/batch.py: R key slots, E the width of a value.
"""

from __future__ import annotations

from typing import get_args

import jax.numpy as jnp
from jax import Array

from solo.model.attention.blocks import block_attention
from solo.model.attention.dense import dense_attention
from solo.model.attention.gpu import triton_attention
from solo.model.attention.kernel import Implementation, Kernel
from solo.model.attention.pallas import Sizes
from solo.model.attention.reading_order import Grid
from solo.model.attention.tpu import flash_attention


def interval_attention(
    q_BSHC: Array,
    k_BRKC: Array,
    v_BRKE: Array,
    intervals_BS4: Array,
    *,
    num_patches: int,
    scale: float | None = None,
    implementation: Implementation = "blocks",
    block: int = 128,
    key_block: int | None = None,
    interpret: bool = False,
) -> Array:
    """Computes softmax attention of each query over the patches [a0, a1) and the text [a2, a3) of its row.

    The first `num_patches` of the R key slots are patches, the others text. Intervals count within their region; parts
    beyond it are ignored. There may be fewer queries than keys. The output of a query without keys is zero. Scores,
    softmax and sums are float32.

    On a mesh, call it inside `shard_map`: it sorts the query blocks of all its rows by the number of their tiles.

    Args:
        q_BSHC: queries, any float dtype; H is a multiple of K.
        k_BRKC: keys of the same dtype.
        v_BRKE: values of the same dtype, at most as wide as keys.
        intervals_BS4: int32 (a0, a1, a2, a3) of each query, as in `Batch.attend`.
        num_patches: number of patches among the R key slots.
        scale: factor on the scores; None: C ** -0.5.
        implementation: a module of `solo.model.attention`: `dense`, `blocks`, or the kernels `pallas_tpu` (`tpu`) and
            `pallas_gpu` (`gpu`).
        block: number of queries of a tile.
        key_block: number of keys of a kernel's tile; None: the same as `block`. The tiles of `blocks` are square.
        interpret: run a kernel step by step on any platform.

    Returns:
        [B, S, H, E] in the dtype of q.

    Raises:
        ValueError: shapes or arguments do not fit together.
    """
    kernel = Kernel(implementation, block, key_block or block, interpret)
    _check(q_BSHC, k_BRKC, v_BRKE, intervals_BS4, num_patches, kernel)
    scale = q_BSHC.shape[3] ** -0.5 if scale is None else scale
    num_text = k_BRKC.shape[1] - num_patches
    intervals_BS4 = jnp.clip(intervals_BS4, 0, jnp.array([num_patches, num_patches, num_text, num_text]))
    if implementation == "dense":
        return dense_attention(q_BSHC, k_BRKC, v_BRKE, intervals_BS4, num_patches, scale)
    if implementation in ("pallas_tpu", "pallas_gpu"):
        attend = flash_attention if implementation == "pallas_tpu" else triton_attention
        sizes = _sizes(kernel, q_BSHC, k_BRKC, v_BRKE, num_patches, scale)
        return attend(sizes, q_BSHC, k_BRKC, v_BRKE, intervals_BS4)
    grid = Grid(len(q_BSHC), q_BSHC.shape[1], num_patches, num_text, block)
    return block_attention(grid, q_BSHC, k_BRKC, v_BRKE, intervals_BS4, scale)


def _sizes(kernel: Kernel, q_BSHC: Array, k_BRKC: Array, v_BRKE: Array, num_patches: int, scale: float) -> Sizes:
    rows, queries, num_text = *q_BSHC.shape[:2], k_BRKC.shape[1] - num_patches
    dims = q_BSHC.shape[3], v_BRKE.shape[3]
    kernel = kernel.fitted(queries, num_patches, num_text, dims[0])
    tile = kernel.block, kernel.key_block
    return Sizes(rows, queries, num_patches, num_text, *tile, *dims, scale, kernel.interpret)


def _check(q: Array, k: Array, v: Array, intervals: Array, num_patches: int, kernel: Kernel) -> None:
    B, S, H, C = q.shape
    R, K = k.shape[1:3]
    if k.shape != (B, R, K, C) or v.shape[:3] != (B, R, K) or not 0 < v.shape[3] <= C or H % K:
        raise ValueError(f"queries {q.shape}, keys {k.shape} and values {v.shape} do not fit together")
    if intervals.shape != (B, S, 4) or not jnp.issubdtype(intervals.dtype, jnp.signedinteger):
        raise ValueError(f"intervals must be int32 {(B, S, 4)}, not {intervals.dtype} {intervals.shape}")
    if not 0 <= num_patches <= R or kernel.block < 1 or kernel.key_block < 1:
        raise ValueError(f"num_patches={num_patches} of {R} keys, in blocks of {kernel.block} x {kernel.key_block}")
    if kernel.implementation not in get_args(Implementation):
        raise ValueError(f"implementation={kernel.implementation!r}: choose one of {get_args(Implementation)}")
    if kernel.implementation == "blocks" and kernel.block != kernel.key_block:
        raise ValueError(
            f"'blocks' computes square tiles, not {kernel.block} x {kernel.key_block}; leave key_block out"
        )
