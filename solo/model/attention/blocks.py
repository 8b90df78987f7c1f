"""Tiled attention (block x block) in plain JAX, for any platform. It visits only the tiles that queries need.

Queries and keys are cut into blocks in reading order. A group of query blocks loops in lock step over the key blocks
that its members need. The backward pass visits the same tiles again.

Letters besides those of solo/batch.py: R key slots, M = H / K query heads that share a key head; X query blocks and Y
key blocks of all rows, N groups of G query blocks; Q queries and J keys of a tile; E the width of a value.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from solo.model.attention.reading_order import Grid, Order, sort_into_tiles
from solo.model.attention.softmax import Softmax, einsum, finish, nothing_seen, see, tile_gradients
from solo.model.attention.tiles import SAVED

# Queries of a group. A larger group wastes visits and cache; a smaller one has smaller, slower products.
_GROUP_QUERIES = 128


class _Visits(NamedTuple):
    """The key blocks that each query block needs. Query blocks of all rows form N groups of G, the busiest first."""

    order: Array  # [N, G] query blocks, counted over all rows; X and above stand for no block
    steps: Array  # [N] number of key blocks that the busiest query block of the group needs
    keys: Array  # [N, steps, G] key blocks, counted over all rows; the empty block pads the needed ones
    intervals: Array  # [N, G, Q, 4]


class _Plan(NamedTuple):
    """The orders of queries and keys, the visits, and region and slot of each key [Y, J]; see `SortedTiles`."""

    queries: Order
    keys: Order
    visits: _Visits
    slots: Array
    is_text: Array


def _plan(grid: Grid, intervals_BS4: Array) -> _Plan:
    tiles = sort_into_tiles(grid, intervals_BS4)
    group, empty = max(1, _GROUP_QUERIES // grid.block), grid.key_blocks - 1
    needed = tiles.needed[..., :empty]
    count = needed.sum(axis=-1, keepdims=True)
    keys = jnp.where(jnp.arange(empty) < count, jnp.argsort(~needed, axis=-1, stable=True), empty)
    keys = (keys + grid.key_blocks * jnp.arange(grid.rows)[:, None, None]).reshape(-1, empty)
    count = jnp.pad(count.reshape(-1), (0, -count.size % group))
    order = jnp.argsort(-count).reshape(-1, group)
    keys = keys.at[order].get(mode="fill", fill_value=empty).swapaxes(1, 2)
    intervals = _in_groups(tiles.intervals.reshape(-1, grid.block, 4), order)
    visits = _Visits(order, count[order[:, 0]], keys, intervals)
    slots, is_text = (x.reshape(-1, grid.block) for x in (tiles.slots, tiles.is_text))
    return _Plan(tiles.queries, tiles.keys, visits, slots, is_text)


def _in_groups(x_X: Array, order_NG: Array) -> Array:
    """Returns query blocks [X, ...] in groups [N, G, ...], padded with zeros."""
    return x_X.at[order_NG].get(mode="fill", fill_value=0)


def _in_rows(x_NG: Array, order_NG: Array, X: int) -> Array:
    """Returns groups [N, G, ...] as query blocks [X, ...]. A gather by the inverse order is faster than a scatter."""
    return x_NG.reshape(-1, *x_NG.shape[2:])[jnp.argsort(order_NG.reshape(-1))[:X]]


def _visible(plan: _Plan, at_G: Array, intervals_GQ4: Array) -> Array:
    """Returns bool [G, Q, J]: the keys of a key block that the queries of each query block attend to."""
    slots, is_text = _at(plan.slots, at_G)[:, None], _at(plan.is_text, at_G)[:, None]
    a0, a1, a2, a3 = (bound[..., None] for bound in jnp.moveaxis(intervals_GQ4, -1, 0))
    return (slots >= jnp.where(is_text, a2, a0)) & (slots < jnp.where(is_text, a3, a1))


def _at(x_Y: Array, at_G: Array) -> Array:
    return x_Y.at[at_G].get(mode="promise_in_bounds")


def _query_groups(grid: Grid, plan: _Plan, x_BSHC: Array, K: int) -> Array:
    """Returns queries or their outputs in groups, [N, G, K, M, Q, C]."""
    H, C = x_BSHC.shape[2:]  # C or E
    x = plan.queries.sort(x_BSHC, grid.query_blocks * grid.block)
    x_XKMQC = x.reshape(-1, grid.block, K, H // K, C).transpose(0, 2, 3, 1, 4)
    return _in_groups(x_XKMQC, plan.visits.order)


def _from_query_groups(grid: Grid, plan: _Plan, x_NGKMQC: Array) -> Array:
    """The inverse of `_query_groups`: [B, S, H, .]."""
    x_XKMQC = _in_rows(x_NGKMQC, plan.visits.order, grid.rows * grid.query_blocks)
    _, K, M, _, C = x_XKMQC.shape
    return plan.queries.unsort(x_XKMQC.transpose(0, 3, 1, 2, 4).reshape(grid.rows, -1, K * M, C))


def _key_blocks(grid: Grid, plan: _Plan, k_BRKC: Array, v_BRKE: Array) -> Array:
    """Returns keys and values as the blocks of all rows, [Y, K, J C + J E]. Together, they need one copy per tile."""

    def blocks(x_BRK: Array) -> Array:
        x = plan.keys.sort(x_BRK, grid.key_blocks * grid.block)
        x_YKJ = x.reshape(-1, grid.block, *x.shape[2:]).transpose(0, 2, 1, 3)
        return x_YKJ.reshape(*x_YKJ.shape[:2], -1)

    return jnp.concatenate([blocks(k_BRKC), blocks(v_BRKE)], axis=-1)


def _keys_and_values(grid: Grid, kv_GK: Array, dim: int) -> tuple[Array, Array]:
    """Returns the keys [G, K, J, C] and values [G, K, J, E] of blocks of `_key_blocks`; `dim` is C."""
    J = grid.block
    k, v = jnp.split(kv_GK, [J * dim], axis=-1)
    return k.reshape(*k.shape[:2], J, -1), v.reshape(*v.shape[:2], J, -1)


def block_attention(
    grid: Grid, q_BSHC: Array, k_BRKC: Array, v_BRKE: Array, intervals_BS4: Array, scale: float
) -> Array:
    """Returns [B, S, H, E]; see `interval_attention`. No interval may reach beyond its region."""
    return _attend(grid, scale, q_BSHC, k_BRKC, v_BRKE, _plan(grid, intervals_BS4))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(grid: Grid, scale: float, q_BSHC: Array, k_BRKC: Array, v_BRKE: Array, plan: _Plan) -> Array:
    return _attend_forward(grid, scale, q_BSHC, k_BRKC, v_BRKE, plan)[0]


def _attend_forward(grid: Grid, scale: float, q_BSHC: Array, k_BRKC: Array, v_BRKE: Array, plan: _Plan) -> tuple:
    dim, value_dim = k_BRKC.shape[3], v_BRKE.shape[3]
    q_NGKMQC = _query_groups(grid, plan, q_BSHC, k_BRKC.shape[2])
    kv_YK = _key_blocks(grid, plan, k_BRKC, v_BRKE)

    def group(_: None, inputs: tuple[Array, _Visits]) -> tuple[None, tuple[Array, Array]]:
        q, visit = inputs

        def step(i: Array, seen: Softmax) -> Softmax:
            at = visit.keys[i]
            keys, values = _keys_and_values(grid, _at(kv_YK, at), dim)
            return see(seen, q, keys, values, _visible(plan, at, visit.intervals), scale)

        out, log_total = finish(lax.fori_loop(0, visit.steps, step, nothing_seen(q, value_dim)))
        return None, (out.astype(q.dtype), log_total)

    _, results = lax.scan(group, None, (q_NGKMQC, plan.visits))
    out, log_total = checkpoint_name(results, SAVED)
    return _from_query_groups(grid, plan, out), (q_NGKMQC, kv_YK, plan, out, log_total)


def _attend_backward(grid: Grid, scale: float, saved: tuple, d_out_BSHE: Array) -> tuple:
    q_NGKMQC, kv_YK, plan, out, log_total = saved
    dim = q_NGKMQC.shape[-1]

    def group(d_kv: Array, inputs: tuple[Array, tuple, _Visits]) -> tuple[Array, Array]:
        q, out_side, visit = inputs

        def step(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
            d_q, d_kv = sums
            at = visit.keys[i]
            keys, values = _keys_and_values(grid, _at(kv_YK, at), dim)
            visible = _visible(plan, at, visit.intervals)
            tile_q, *tile_kv = tile_gradients(q, keys, values, visible, scale, out_side)
            return d_q + tile_q, d_kv.at[at].add(jnp.concatenate(tile_kv, axis=2), mode="promise_in_bounds")

        d_q, d_kv = lax.fori_loop(0, visit.steps, step, (jnp.zeros_like(q, jnp.float32), d_kv))
        return d_kv, d_q.astype(q.dtype)

    d_out = _query_groups(grid, plan, d_out_BSHE, kv_YK.shape[1])
    out_side = (d_out, log_total, einsum("...e,...e->...", d_out, out))
    # The gradients of a block's keys and values, one after the other: [Y, K, C + E, J].
    zeros = jnp.zeros_like(kv_YK, jnp.float32).reshape(*kv_YK.shape[:2], -1, grid.block)
    d_kv, d_q = lax.scan(group, zeros, (q_NGKMQC, out_side, plan.visits))
    d_kv_YJK = d_kv.astype(kv_YK.dtype).transpose(0, 3, 1, 2)
    d_kv_BRK = plan.keys.unsort(d_kv_YJK.reshape(grid.rows, -1, *d_kv_YJK.shape[2:]))
    return _from_query_groups(grid, plan, d_q), d_kv_BRK[..., :dim], d_kv_BRK[..., dim:], None


_attend.defvjp(_attend_forward, _attend_backward)
