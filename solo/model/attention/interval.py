"""Attention over two intervals per query: the patches and the texts of its row that it sees.

Whatever decides who sees whom (packed documents, causality, bidirectional images, prefixes, padding) reaches the
device as `Batch.attend`, so that a block of queries knows beforehand which blocks of keys it needs. The others
are never touched: the cost falls from the row's square to about the sum of its documents' squares, in the forward
and in the backward pass.

Letters besides those of solo/batch.py: R key slots, M = H / K query heads that share a key head; of the tiles:
X query blocks and Y key blocks of all rows, N groups of G query blocks, Q queries and J keys of a tile.
"""

from __future__ import annotations

import functools
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from solo.model.attention.gpu import triton_attention
from solo.model.attention.intervals import FLOOR, HIDDEN, SAVED, needed_blocks, pad_slots
from solo.model.attention.kernel import Implementation, Kernel
from solo.model.attention.tiles import Sizes
from solo.model.attention.tpu import flash_attention

__all__ = ["SAVED", "interval_attention", "needed_blocks"]

# Query blocks that advance in lock step. More of them waste visits and outgrow the caches, fewer give small products.
GROUP = 4

_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def interval_attention(
    q_BSHC: Array,
    k_BRKC: Array,
    v_BRKC: Array,
    intervals_BS4: Array,
    *,
    num_patches: int,
    implementation: Implementation = "blocks",
    block: int = 128,
    key_block: int | None = None,
    interpret: bool = False,
) -> Array:
    """Softmax attention of each query over the key patches [a0, a1) and the key texts [a2, a3) of its row.

    The first `num_patches` of the R key slots are patches, the others text; an interval counts within its region and
    what lies outside of the region is ignored. Queries may be fewer than keys. A query that sees nothing gets zeros.

    q_BSHC         queries, any float dtype; H is a multiple of K
    k_BRKC, v_BRKC keys and values of the same dtype
    intervals_BS4  int32 (a0, a1, a2, a3) of each query, as `Batch.attend`
    implementation "dense" holds S x R scores: right for a single query; "blocks" holds some block x block tiles of
                   them; "pallas_tpu" and "pallas_gpu" are the kernels of `solo.model.attention.tpu` and `attention_gpu`
    block          queries of a tile
    key_block      keys of a tile of a kernel, the same if not given; those of "blocks" are square
    interpret      let a kernel be computed step by step on any platform

    Returns [B, S, H, C] in the dtype of q; scores, softmax and sums are float32 throughout.
    Under a mesh call it inside `shard_map`: it orders the query blocks of all the rows that it is given by their work.
    Raises ValueError where shapes or arguments do not fit together.
    """
    kernel = Kernel(implementation, block, key_block or block, interpret)
    _check(q_BSHC, k_BRKC, v_BRKC, intervals_BS4, num_patches, kernel)
    num_text = k_BRKC.shape[1] - num_patches
    intervals_BS4 = jnp.clip(intervals_BS4, 0, jnp.array([num_patches, num_patches, num_text, num_text]))
    if implementation == "dense":
        return _dense(q_BSHC, k_BRKC, v_BRKC, intervals_BS4, num_patches)
    if implementation in ("pallas_tpu", "pallas_gpu"):
        attend = flash_attention if implementation == "pallas_tpu" else triton_attention
        return attend(_sizes(kernel, q_BSHC, k_BRKC, num_patches), q_BSHC, k_BRKC, v_BRKC, intervals_BS4)
    grid = _Grid(len(q_BSHC), q_BSHC.shape[1], num_patches, num_text, block)
    return _blocks(grid, q_BSHC, k_BRKC, v_BRKC, intervals_BS4)


def _sizes(kernel: Kernel, q_BSHC: Array, k_BRKC: Array, num_patches: int) -> Sizes:
    rows, queries, num_text = *q_BSHC.shape[:2], k_BRKC.shape[1] - num_patches
    kernel = kernel.fitted(queries, num_patches, num_text)
    dim, interpret = q_BSHC.shape[3], kernel.interpret
    return Sizes(rows, queries, num_patches, num_text, kernel.block, kernel.key_block, dim, interpret)


def _check(q: Array, k: Array, v: Array, intervals: Array, num_patches: int, kernel: Kernel) -> None:
    B, S, H, C = q.shape
    R, K = k.shape[1:3]
    if k.shape != (B, R, K, C) or v.shape != k.shape or H % K:
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


# --- One tile: the arithmetic of both implementations ---


class _Softmax(NamedTuple):
    """A softmax-weighted sum of values that has seen some of its keys; float32."""

    weighted: Array  # [G, K, M, Q, C] sum of exp(score - maximum) * value
    total: Array  # [G, K, M, Q] sum of exp(score - maximum)
    maximum: Array  # [G, K, M, Q]


def _nothing_seen(q_GKMQC: Array) -> _Softmax:
    zeros = jnp.zeros_like(q_GKMQC, jnp.float32)
    return _Softmax(zeros, zeros[..., 0], zeros[..., 0] + FLOOR)


def _within(slots_J: Array, bounds_Q2: Array) -> Array:
    """bool [..., Q, J]: whether slot j lies in [start, end) of query q."""
    slots = slots_J[..., None, :]
    return (slots >= bounds_Q2[..., :1]) & (slots < bounds_Q2[..., 1:])


def _scores(q_GKMQC: Array, k_GKJC: Array, visible_GQJ: Array) -> Array:
    scores = _einsum("gkmqc,gkjc->gkmqj", q_GKMQC, k_GKJC) / q_GKMQC.shape[-1] ** 0.5
    return jnp.where(visible_GQJ[:, None, None], scores, HIDDEN)


def _see(seen: _Softmax, q_GKMQC: Array, k_GKJC: Array, v_GKJC: Array, visible_GQJ: Array) -> _Softmax:
    """Add the keys and values of one tile."""
    scores = _scores(q_GKMQC, k_GKJC, visible_GQJ)
    # The result does not depend on the maximum: no gradient.
    maximum = lax.stop_gradient(jnp.maximum(seen.maximum, scores.max(axis=-1)))
    weights = jnp.exp(scores - maximum[..., None])
    fade = jnp.exp(seen.maximum - maximum)
    values = _einsum("gkmqj,gkjc->gkmqc", weights.astype(v_GKJC.dtype), v_GKJC)
    return _Softmax(seen.weighted * fade[..., None] + values, seen.total * fade + weights.sum(axis=-1), maximum)


def _finish(seen: _Softmax) -> tuple[Array, Array]:
    """The output [G, K, M, Q, C] and the log of the sum of exp(score) [G, K, M, Q]: 0 and FLOOR of nothing seen."""
    total = jnp.where(seen.total == 0, 1.0, seen.total)
    return seen.weighted / total[..., None], seen.maximum + jnp.log(total)


def _tile_gradients(q_GKMQC: Array, k_GKJC: Array, v_GKJC: Array, visible_GQJ: Array, out_side: tuple) -> tuple:
    """What a tile adds to d_q [G, K, M, Q, C], d_k [G, K, C, J] and d_v [G, K, C, J], in float32.

    out_side  d_out [G, K, M, Q, C], and per query [G, K, M, Q] the log of the sum of exp(score) and d_out . out
    """
    d_out_GKMQC, log_total_GKMQ, inner_GKMQ = out_side
    weights = jnp.exp(_scores(q_GKMQC, k_GKJC, visible_GQJ) - log_total_GKMQ[..., None])
    d_weights = _einsum("gkmqc,gkjc->gkmqj", d_out_GKMQC, v_GKJC)
    d_scores = weights * (d_weights - inner_GKMQ[..., None]) / q_GKMQC.shape[-1] ** 0.5
    weights, d_scores = weights.astype(q_GKMQC.dtype), d_scores.astype(q_GKMQC.dtype)
    # Products that end in J: those that end in C would transpose weights and d_scores, the largest arrays here.
    d_q = _einsum("gkmqj,gkjc->gkmqc", d_scores, k_GKJC)
    d_k = _einsum("gkcmq,gkmqj->gkcj", jnp.moveaxis(q_GKMQC, -1, 2), d_scores)
    d_v = _einsum("gkcmq,gkmqj->gkcj", jnp.moveaxis(d_out_GKMQC, -1, 2), weights)
    return d_q, d_k, d_v


def _dense(q_BSHC: Array, k_BRKC: Array, v_BRKC: Array, intervals_BS4: Array, P: int) -> Array:
    """The whole row as one tile."""
    B, S, H, C = q_BSHC.shape
    R, K = k_BRKC.shape[1:3]
    q_BKMSC = q_BSHC.reshape(B, S, K, H // K, C).transpose(0, 2, 3, 1, 4)
    patches = _within(jnp.arange(P), intervals_BS4[..., :2])
    text = _within(jnp.arange(R - P), intervals_BS4[..., 2:])
    visible_BSR = jnp.concatenate([patches, text], axis=-1)
    seen = _see(_nothing_seen(q_BKMSC), q_BKMSC, k_BRKC.swapaxes(1, 2), v_BRKC.swapaxes(1, 2), visible_BSR)
    return _finish(seen)[0].transpose(0, 3, 1, 2, 4).reshape(q_BSHC.shape).astype(q_BSHC.dtype)


# --- Blocks: how a row is cut, which tiles are visited, and in which order ---


class _Grid(NamedTuple):
    """The static sizes. A key block lies within one region; the last key block of a row is empty and never seen."""

    rows: int
    queries: int
    patches: int
    text: int
    block: int

    def blocks(self, slots: int) -> int:
        """How many blocks hold these slots."""
        return -(-slots // self.block)

    @property
    def key_blocks(self) -> int:
        return self.blocks(self.patches) + self.blocks(self.text) + 1


class _Visits(NamedTuple):
    """Which key blocks each query block needs: N groups of G query blocks of any rows, the busiest first."""

    order: Array  # [N, G] query block, counted over all rows; from X, their number, on: none
    steps: Array  # [N] how many key blocks the busiest of the group needs
    keys: Array  # [N, steps, G] the key blocks it needs, counted over all rows; afterwards an empty one
    intervals: Array  # [N, G, Q, 4]


def _plan_visits(grid: _Grid, intervals_BS4: Array) -> _Visits:
    needed = needed_blocks(intervals_BS4, num_patches=grid.patches, num_text=grid.text, block=grid.block)
    count = needed.sum(axis=-1, keepdims=True)
    empty = grid.key_blocks - 1
    keys = jnp.where(jnp.arange(empty) < count, jnp.argsort(~needed, axis=-1, stable=True), empty)
    keys = (keys + grid.key_blocks * jnp.arange(grid.rows)[:, None, None]).reshape(-1, empty)
    count = jnp.pad(count.reshape(-1), (0, -count.size % GROUP))
    order = jnp.argsort(-count).reshape(-1, GROUP)
    keys = keys.at[order].get(mode="fill", fill_value=empty).swapaxes(1, 2)
    intervals = pad_slots(intervals_BS4, grid.blocks(grid.queries) * grid.block).reshape(-1, grid.block, 4)
    return _Visits(order, count[order[:, 0]], keys, _in_order(intervals, order))


def _in_order(x_X: Array, order_NG: Array) -> Array:
    """Query blocks [X, ...] as groups [N, G, ...], zeros where there is none."""
    return x_X.at[order_NG].get(mode="fill", fill_value=0)


def _in_rows(x_NG: Array, order_NG: Array, X: int) -> Array:
    """Back to [X, ...]. The inverse is a gather, like the way there: faster than to scatter."""
    return x_NG.reshape(-1, *x_NG.shape[2:])[jnp.argsort(order_NG.reshape(-1))[:X]]


def _visible(grid: _Grid, key_block_G: Array, intervals_GQ4: Array) -> Array:
    """bool [G, Q, J]: what the queries of each query block see of one key block."""
    index = (key_block_G % grid.key_blocks)[:, None]
    is_text = index >= grid.blocks(grid.patches)
    slots_GJ = jnp.where(is_text, index - grid.blocks(grid.patches), index) * grid.block + jnp.arange(grid.block)
    return _within(slots_GJ, jnp.where(is_text[..., None], intervals_GQ4[..., 2:], intervals_GQ4[..., :2]))


def _cut_keys(grid: _Grid, x_BRKC: Array) -> Array:
    """Keys or values as blocks of all rows [B * key blocks, K, J, C]."""
    patches = pad_slots(x_BRKC[:, : grid.patches], grid.blocks(grid.patches) * grid.block)
    text = pad_slots(x_BRKC[:, grid.patches :], (grid.blocks(grid.text) + 1) * grid.block)
    x = jnp.concatenate([patches, text], axis=1)
    return x.reshape(grid.rows * grid.key_blocks, grid.block, *x.shape[2:]).swapaxes(1, 2)


def _blocks(grid: _Grid, q_BSHC: Array, k_BRKC: Array, v_BRKC: Array, attend_BS4: Array) -> Array:
    """Cut everything into blocks, visit the tiles, put the outputs together again."""
    B, S, H, C = q_BSHC.shape
    K, Q = k_BRKC.shape[2], grid.block
    visits = _plan_visits(grid, attend_BS4)
    q = pad_slots(q_BSHC, grid.blocks(S) * Q)
    q_XKMQC = q.reshape(B * grid.blocks(S), Q, K, H // K, C).transpose(0, 2, 3, 1, 4)
    out_XKMQC = _visit(grid, q_XKMQC, _cut_keys(grid, k_BRKC), _cut_keys(grid, v_BRKC), visits)
    return out_XKMQC.transpose(0, 3, 1, 2, 4).reshape(B, -1, H, C)[:, :S]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _visit(grid: _Grid, q_XKMQC: Array, k_YKJC: Array, v_YKJC: Array, visits: _Visits) -> Array:
    return _visit_forward(grid, q_XKMQC, k_YKJC, v_YKJC, visits)[0]


def _visit_forward(grid: _Grid, q_XKMQC: Array, k_YKJC: Array, v_YKJC: Array, visits: _Visits) -> tuple:
    def group(_: None, inputs: tuple[Array, _Visits]) -> tuple[None, tuple[Array, Array]]:
        q, visit = inputs

        def step(i: Array, seen: _Softmax) -> _Softmax:
            at = visit.keys[i]
            return _see(seen, q, k_YKJC[at], v_YKJC[at], _visible(grid, at, visit.intervals))

        out, log_total = _finish(lax.fori_loop(0, visit.steps, step, _nothing_seen(q)))
        return None, (out.astype(q.dtype), log_total)

    _, results = lax.scan(group, None, (_in_order(q_XKMQC, visits.order), visits))
    out, log_total = checkpoint_name(results, SAVED)
    return _in_rows(out, visits.order, len(q_XKMQC)), (q_XKMQC, k_YKJC, v_YKJC, visits, out, log_total)


def _visit_backward(grid: _Grid, saved: tuple, d_out_XKMQC: Array) -> tuple:
    q_XKMQC, k_YKJC, v_YKJC, visits, out, log_total = saved

    def group(d_keys: tuple, inputs: tuple[Array, tuple, _Visits]) -> tuple[tuple, Array]:
        q, out_side, visit = inputs

        def step(i: Array, sums: tuple) -> tuple:
            d_q, d_k, d_v = sums
            at = visit.keys[i]
            tile = _tile_gradients(q, k_YKJC[at], v_YKJC[at], _visible(grid, at, visit.intervals), out_side)
            return d_q + tile[0], d_k.at[at].add(tile[1]), d_v.at[at].add(tile[2])

        d_q, *d_keys = lax.fori_loop(0, visit.steps, step, (jnp.zeros_like(q, jnp.float32), *d_keys))
        return tuple(d_keys), d_q.astype(q.dtype)

    d_out = _in_order(d_out_XKMQC, visits.order)
    out_side = (d_out, log_total, _einsum("...c,...c->...", d_out, out))
    zeros_YKCJ = jnp.zeros_like(k_YKJC.swapaxes(2, 3), jnp.float32)
    d_keys, d_q = lax.scan(group, (zeros_YKCJ, zeros_YKCJ), (_in_order(q_XKMQC, visits.order), out_side, visits))
    d_k, d_v = (x.swapaxes(2, 3).astype(k_YKJC.dtype) for x in d_keys)
    return _in_rows(d_q, visits.order, len(q_XKMQC)), d_k, d_v, None


_visit.defvjp(_visit_forward, _visit_backward)
