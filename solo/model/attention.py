"""Attention over two intervals per query: the patches and the texts of its row that it sees.

Whatever decides who sees whom (packed documents, causality, bidirectional images, prefixes, padding) reaches the
device as `Batch.attend`, so that a block of queries knows beforehand which blocks of keys it needs. The others
are never touched: the cost falls from the row's square to about the sum of its documents' squares, in the forward
and in the backward pass.

Letters besides those of solo/batch.py: R key slots, M = H / K query heads that share a key head; of the tiles:
N groups, G query blocks of a group, Q queries and J keys of a tile.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

# Query blocks that advance in lock step. More of them waste visits on the shortest, fewer give smaller products.
GROUP = 8
# The score of a hidden key, and the least maximum of a softmax: exp(HIDDEN - FLOOR) is 0, so that a query which
# sees nothing sums up to 0 instead of NaN. True scores stay far above both.
HIDDEN = -1e30
FLOOR = -1e29
# A checkpoint policy that saves this name spares the backward pass a second forward pass.
SAVED = "interval_attention"

_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def interval_attention(
    q_BSHC: jax.Array,
    k_BRKC: jax.Array,
    v_BRKC: jax.Array,
    intervals_BS4: jax.Array,
    *,
    num_patches: int,
    implementation: Literal["blocks", "dense"] = "blocks",
    block: int = 128,
) -> jax.Array:
    """Softmax attention of each query over the key patches [a0, a1) and the key texts [a2, a3) of its row.

    The first `num_patches` of the R key slots are patches, the others text; an interval counts within its region and
    what lies outside of the region is ignored. Queries may be fewer than keys. A query that sees nothing gets zeros.

    q_BSHC         queries, any float dtype; H is a multiple of K
    k_BRKC, v_BRKC keys and values of the same dtype
    intervals_BS4  int32 (a0, a1, a2, a3) of each query, as `Batch.attend`
    implementation "dense" holds S x R scores: right for a single query; "blocks" holds some block x block tiles of them
    block          queries and keys per tile side

    Returns [B, S, H, C] in the dtype of q; scores, softmax and sums are float32 throughout.
    Under a mesh call it inside `shard_map`: it orders the query blocks of all the rows that it is given by their work.
    Raises ValueError where shapes or arguments do not fit together.
    """
    _check(q_BSHC, k_BRKC, v_BRKC, intervals_BS4, num_patches, implementation, block)
    num_text = k_BRKC.shape[1] - num_patches
    ends = jnp.array([num_patches, num_patches, num_text, num_text], intervals_BS4.dtype)
    intervals_BS4 = jnp.clip(intervals_BS4, 0, ends)
    if implementation == "dense":
        return _dense(q_BSHC, k_BRKC, v_BRKC, intervals_BS4, num_patches)
    rows, queries = intervals_BS4.shape[:2]
    grid = _Grid(rows, queries, num_patches, num_text, block)
    return _blocks(grid, q_BSHC, k_BRKC, v_BRKC, intervals_BS4)


def needed_blocks(intervals_BS4: Any, *, num_patches: int, num_text: int, block: int) -> jax.Array:
    """Which key blocks some query of a query block sees: bool [B, query blocks, key blocks], patch blocks first.

    Queries are cut into blocks across the regions, keys within each. The True tiles are those that "blocks" visits.
    """
    rows, queries, _ = intervals_BS4.shape
    grid = _Grid(rows, queries, num_patches, num_text, block)
    intervals = _pad_to(jnp.asarray(intervals_BS4), 1, grid.query_blocks * block)
    intervals = intervals.reshape(rows, grid.query_blocks, block, 1, 4)

    def meets(start: jax.Array, end: jax.Array, blocks: int) -> jax.Array:
        first = jnp.arange(blocks, dtype=intervals.dtype) * block
        return jnp.any(jnp.maximum(start, first) < jnp.minimum(end, first + block), axis=2)

    patches = meets(intervals[..., 0], intervals[..., 1], grid.patch_blocks)
    text = meets(intervals[..., 2], intervals[..., 3], grid.text_blocks)
    return jnp.concatenate([patches, text], axis=-1)


def _check(
    q: jax.Array, k: jax.Array, v: jax.Array, intervals: jax.Array, num_patches: int, implementation: str, block: int
) -> None:
    B, S, H, C = q.shape
    R, K = k.shape[1:3]
    if k.shape != (B, R, K, C) or v.shape != k.shape or H % K:
        raise ValueError(f"queries {q.shape}, keys {k.shape} and values {v.shape} do not fit together")
    if intervals.shape != (B, S, 4) or not jnp.issubdtype(intervals.dtype, jnp.signedinteger):
        raise ValueError(f"intervals must be int32 {(B, S, 4)}, not {intervals.dtype} {intervals.shape}")
    if not 0 <= num_patches <= R:
        raise ValueError(f"num_patches={num_patches} of {R} keys")
    if implementation not in ("blocks", "dense"):
        raise ValueError(f"implementation={implementation!r}: choose 'blocks' or 'dense'")
    if block < 1:
        raise ValueError(f"block={block} must be positive")


# --- One tile: the arithmetic of both implementations ---


class _Softmax(NamedTuple):
    """A softmax-weighted sum of values that has seen some of its keys; float32."""

    weighted: jax.Array  # [G, K, M, Q, C] sum of exp(score - maximum) * value
    total: jax.Array  # [G, K, M, Q] sum of exp(score - maximum)
    maximum: jax.Array  # [G, K, M, Q]


def _nothing_seen(q_GKMQC: jax.Array) -> _Softmax:
    zeros = jnp.zeros_like(q_GKMQC, jnp.float32)
    return _Softmax(zeros, zeros[..., 0], zeros[..., 0] + FLOOR)


def _within(slots_J: jax.Array, bounds_Q2: jax.Array) -> jax.Array:
    """bool [..., Q, J]: whether slot j lies in [start, end) of query q."""
    slots = slots_J[..., None, :]
    return (slots >= bounds_Q2[..., :1]) & (slots < bounds_Q2[..., 1:])


def _scores(q_GKMQC: jax.Array, k_GKJC: jax.Array, visible_GQJ: jax.Array) -> jax.Array:
    scores = _einsum("gkmqc,gkjc->gkmqj", q_GKMQC, k_GKJC) / math.sqrt(q_GKMQC.shape[-1])
    return jnp.where(visible_GQJ[:, None, None], scores, HIDDEN)


def _see(seen: _Softmax, q_GKMQC: jax.Array, k_GKJC: jax.Array, v_GKJC: jax.Array, visible_GQJ: jax.Array) -> _Softmax:
    """Add the keys and values of one tile."""
    scores = _scores(q_GKMQC, k_GKJC, visible_GQJ)
    # The result does not depend on the maximum: no gradient.
    maximum = lax.stop_gradient(jnp.maximum(seen.maximum, scores.max(axis=-1)))
    weights = jnp.exp(scores - maximum[..., None])
    fade = jnp.exp(seen.maximum - maximum)
    values = _einsum("gkmqj,gkjc->gkmqc", weights.astype(v_GKJC.dtype), v_GKJC)
    return _Softmax(seen.weighted * fade[..., None] + values, seen.total * fade + weights.sum(axis=-1), maximum)


def _finish(seen: _Softmax) -> tuple[jax.Array, jax.Array]:
    """The output [G, K, M, Q, C] and the log of the sum of exp(score) [G, K, M, Q]: 0 and FLOOR of nothing seen."""
    total = jnp.where(seen.total == 0, 1.0, seen.total)
    return seen.weighted / total[..., None], seen.maximum + jnp.log(total)


class _Backward(NamedTuple):
    """What the gradients of a tile need to know about its queries, besides themselves."""

    d_out: jax.Array  # [G, K, M, Q, C]
    log_total: jax.Array  # [G, K, M, Q] log of the sum of exp(score)
    inner: jax.Array  # [G, K, M, Q] inner product of output and d_out


def _tile_gradients(
    back: _Backward, q_GKMQC: jax.Array, k_GKJC: jax.Array, v_GKJC: jax.Array, visible_GQJ: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What a tile adds to the gradients d_q [G, K, M, Q, C], d_k [G, K, C, J] and d_v [G, K, C, J]; float32."""
    weights = jnp.exp(_scores(q_GKMQC, k_GKJC, visible_GQJ) - back.log_total[..., None])
    d_weights = _einsum("gkmqc,gkjc->gkmqj", back.d_out, v_GKJC)
    d_scores = weights * (d_weights - back.inner[..., None]) / math.sqrt(q_GKMQC.shape[-1])
    weights, d_scores = weights.astype(q_GKMQC.dtype), d_scores.astype(q_GKMQC.dtype)
    # Products that end in J: those that end in C would transpose weights and d_scores, the largest arrays here.
    d_q = _einsum("gkmqj,gkjc->gkmqc", d_scores, k_GKJC)
    d_k = _einsum("gkcmq,gkmqj->gkcj", jnp.moveaxis(q_GKMQC, -1, 2), d_scores)
    d_v = _einsum("gkcmq,gkmqj->gkcj", jnp.moveaxis(back.d_out, -1, 2), weights)
    return d_q, d_k, d_v


def _dense(q_BSHC: jax.Array, k_BRKC: jax.Array, v_BRKC: jax.Array, intervals_BS4: jax.Array, P: int) -> jax.Array:
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

    @property
    def query_blocks(self) -> int:
        return -(-self.queries // self.block)

    @property
    def patch_blocks(self) -> int:
        return -(-self.patches // self.block)

    @property
    def text_blocks(self) -> int:
        return -(-self.text // self.block)

    @property
    def key_blocks(self) -> int:
        return self.patch_blocks + self.text_blocks + 1


class _Visits(NamedTuple):
    """Which key blocks each query block needs: N groups of G query blocks of any rows, the busiest first."""

    order: jax.Array  # [N, G] query block, counted over all rows
    steps: jax.Array  # [N] how many key blocks the busiest of the group needs
    keys: jax.Array  # [N, V, G] the v-th key block it needs, counted over all rows; afterwards its row's empty one


def _plan_visits(grid: _Grid, intervals_BS4: jax.Array) -> _Visits:
    needed = needed_blocks(intervals_BS4, num_patches=grid.patches, num_text=grid.text, block=grid.block)
    empty = grid.key_blocks - 1
    keys = jnp.argsort(~needed, axis=-1, stable=True)
    keys = jnp.where(jnp.arange(empty) < needed.sum(axis=-1, keepdims=True), keys, empty)
    keys = keys + grid.key_blocks * jnp.arange(grid.rows)[:, None, None]
    total = grid.rows * grid.query_blocks
    spare = -total % GROUP  # query blocks that need nothing, to fill up the last group
    counts = jnp.pad(needed.sum(axis=-1).reshape(total), (0, spare))
    keys = jnp.pad(keys.reshape(total, empty), ((0, spare), (0, 0)), constant_values=empty)
    order = jnp.argsort(-counts).reshape(-1, GROUP)
    return _Visits(order, counts[order[:, 0]], keys[order].swapaxes(1, 2))


def _visible(grid: _Grid, key_block_G: jax.Array, intervals_GQ4: jax.Array) -> jax.Array:
    """bool [G, Q, J]: what the queries of each query block see of one key block."""
    index = (key_block_G % grid.key_blocks)[:, None]
    is_text = index >= grid.patch_blocks
    slots_GJ = jnp.where(is_text, index - grid.patch_blocks, index) * grid.block + jnp.arange(grid.block)
    return _within(slots_GJ, jnp.where(is_text[..., None], intervals_GQ4[..., 2:], intervals_GQ4[..., :2]))


def _pad_to(x: jax.Array, axis: int, size: int) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths)


def _group_queries(grid: _Grid, visits: _Visits, key_heads: int, x_BSHC: jax.Array) -> jax.Array:
    """Queries, or what else there is per query and head, as [N, G, K, M, Q, C]."""
    B, _, H, C = x_BSHC.shape
    x = _pad_to(x_BSHC, 1, grid.query_blocks * grid.block)
    x = x.reshape(B * grid.query_blocks, grid.block, key_heads, H // key_heads, C).transpose(0, 2, 3, 1, 4)
    return _pad_to(x, 0, visits.order.size)[visits.order]


def _ungroup_queries(grid: _Grid, visits: _Visits, x_NGKMQC: jax.Array) -> jax.Array:
    """Back to [B, S, H, C]."""
    _, _, K, M, Q, C = x_NGKMQC.shape
    x = x_NGKMQC.reshape(-1, K, M, Q, C)[jnp.argsort(visits.order.reshape(-1))]
    x = x[: grid.rows * grid.query_blocks].reshape(grid.rows, grid.query_blocks, K, M, Q, C)
    return x.transpose(0, 1, 4, 2, 3, 5).reshape(grid.rows, -1, K * M, C)[:, : grid.queries]


def _cut_keys(grid: _Grid, x_BRKC: jax.Array) -> jax.Array:
    """Keys or values as blocks of all rows [B * key blocks, K, J, C]."""
    patches = _pad_to(x_BRKC[:, : grid.patches], 1, grid.patch_blocks * grid.block)
    text = _pad_to(x_BRKC[:, grid.patches :], 1, (grid.text_blocks + 1) * grid.block)
    x = jnp.concatenate([patches, text], axis=1)
    return x.reshape(grid.rows * grid.key_blocks, grid.block, *x.shape[2:]).swapaxes(1, 2)


def _join_keys(grid: _Grid, x_KCJ: jax.Array) -> jax.Array:
    """Blocks [B * key blocks, K, C, J] back to [B, R, K, C]."""
    _, K, C, _ = x_KCJ.shape
    x = x_KCJ.transpose(0, 3, 1, 2).reshape(grid.rows, -1, K, C)
    text_start = grid.patch_blocks * grid.block
    return jnp.concatenate([x[:, : grid.patches], x[:, text_start : text_start + grid.text]], axis=1)


# --- Blocks: forward and backward ---


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocks(grid: _Grid, q: jax.Array, k: jax.Array, v: jax.Array, intervals: jax.Array) -> jax.Array:
    return _blocks_forward(grid, q, k, v, intervals)[0]


def _blocks_forward(
    grid: _Grid, q_BSHC: jax.Array, k_BRKC: jax.Array, v_BRKC: jax.Array, intervals_BS4: jax.Array
) -> tuple[jax.Array, tuple]:
    visits = _plan_visits(grid, intervals_BS4)
    keys, values = _cut_keys(grid, k_BRKC), _cut_keys(grid, v_BRKC)

    def group(_: None, inputs: tuple) -> tuple[None, tuple[jax.Array, jax.Array]]:
        q, intervals_GQ4, steps, keys_VG = inputs

        def visit(step: jax.Array, seen: _Softmax) -> _Softmax:
            at = keys_VG[step]
            return _see(seen, q, keys[at], values[at], _visible(grid, at, intervals_GQ4))

        out, log_total = _finish(lax.fori_loop(0, steps, visit, _nothing_seen(q)))
        return None, (out.astype(q.dtype), log_total)

    q_NGKMQC = _group_queries(grid, visits, k_BRKC.shape[2], q_BSHC)
    intervals_NGQ4 = _group_queries(grid, visits, 1, intervals_BS4[:, :, None])[:, :, 0, 0]
    _, (out, log_total) = lax.scan(group, None, (q_NGKMQC, intervals_NGQ4, visits.steps, visits.keys))
    out_BSHC = checkpoint_name(_ungroup_queries(grid, visits, out), SAVED)
    log_total = checkpoint_name(log_total, SAVED)
    return out_BSHC, (q_BSHC, k_BRKC, v_BRKC, intervals_BS4, visits, out_BSHC, log_total)


def _blocks_backward(grid: _Grid, saved: tuple, d_out_BSHC: jax.Array) -> tuple:
    q_BSHC, k_BRKC, v_BRKC, intervals_BS4, visits, out_BSHC, log_total = saved
    keys, values = _cut_keys(grid, k_BRKC), _cut_keys(grid, v_BRKC)

    def group(d_keys: tuple, inputs: tuple) -> tuple[tuple, jax.Array]:
        q, back, intervals_GQ4, steps, keys_VG = inputs

        def visit(step: jax.Array, sums: tuple) -> tuple:
            d_q, d_k, d_v = sums
            at = keys_VG[step]
            tile = _tile_gradients(back, q, keys[at], values[at], _visible(grid, at, intervals_GQ4))
            return d_q + tile[0], d_k.at[at].add(tile[1]), d_v.at[at].add(tile[2])

        d_q, d_k, d_v = lax.fori_loop(0, steps, visit, (jnp.zeros_like(q, jnp.float32), *d_keys))
        return (d_k, d_v), d_q.astype(q.dtype)

    group_queries = functools.partial(_group_queries, grid, visits, k_BRKC.shape[2])
    inner_BSH1 = _einsum("bshc,bshc->bsh", d_out_BSHC, out_BSHC)[..., None]
    back = _Backward(group_queries(d_out_BSHC), log_total, group_queries(inner_BSH1)[..., 0])
    intervals_NGQ4 = _group_queries(grid, visits, 1, intervals_BS4[:, :, None])[:, :, 0, 0]
    zeros = jnp.zeros_like(keys.swapaxes(2, 3), jnp.float32)
    inputs = (group_queries(q_BSHC), back, intervals_NGQ4, visits.steps, visits.keys)
    (d_k, d_v), d_q = lax.scan(group, (zeros, zeros), inputs)
    d_k, d_v = _join_keys(grid, d_k), _join_keys(grid, d_v)
    return _ungroup_queries(grid, visits, d_q), d_k.astype(k_BRKC.dtype), d_v.astype(v_BRKC.dtype), None


_blocks.defvjp(_blocks_forward, _blocks_backward)
