"""Tiled attention (block x block) in plain JAX, for any platform. It visits only the tiles that queries need.

A group of query blocks loops in lock step over the key blocks that its members need. The backward pass visits the same
tiles again.

Letters besides those of solo/batch.py: R key slots, M = H / K query heads that share a key head; X query blocks and Y
key blocks of all rows, N groups of G query blocks; Q queries and J keys of a tile.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from solo.model.attention.softmax import Softmax, einsum, finish, nothing_seen, see, tile_gradients, within
from solo.model.attention.tiles import SAVED, needed_blocks, pad_slots

# Query blocks of a group. A larger group wastes visits and cache; a smaller one has smaller, slower products.
GROUP = 4


class Grid(NamedTuple):
    """The static sizes. A key block lies within one region; the last one of a row is empty, and no query sees it."""

    rows: int
    queries: int
    patches: int
    text: int
    block: int

    def blocks(self, slots: int) -> int:
        """Returns the number of blocks that hold this many slots."""
        return -(-slots // self.block)

    @property
    def key_blocks(self) -> int:
        """The number of key blocks of a row."""
        return self.blocks(self.patches) + self.blocks(self.text) + 1


class _Visits(NamedTuple):
    """The key blocks that each query block needs. Query blocks of all rows form N groups of G, the busiest first."""

    order: Array  # [N, G] query blocks, counted over all rows; X and above stand for no block
    steps: Array  # [N] number of key blocks that the busiest query block of the group needs
    keys: Array  # [N, steps, G] key blocks, counted over all rows; the empty block pads the needed ones
    intervals: Array  # [N, G, Q, 4]


def _plan_visits(grid: Grid, intervals_BS4: Array) -> _Visits:
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
    """Returns query blocks [X, ...] in groups [N, G, ...], padded with zeros."""
    return x_X.at[order_NG].get(mode="fill", fill_value=0)


def _in_rows(x_NG: Array, order_NG: Array, X: int) -> Array:
    """Returns groups [N, G, ...] as query blocks [X, ...]. A gather by the inverse order is faster than a scatter."""
    return x_NG.reshape(-1, *x_NG.shape[2:])[jnp.argsort(order_NG.reshape(-1))[:X]]


def _visible(grid: Grid, key_block_G: Array, intervals_GQ4: Array) -> Array:
    """Returns bool [G, Q, J]: the keys of a key block that the queries of each query block attend to."""
    index = (key_block_G % grid.key_blocks)[:, None]
    is_text = index >= grid.blocks(grid.patches)
    slots_GJ = jnp.where(is_text, index - grid.blocks(grid.patches), index) * grid.block + jnp.arange(grid.block)
    return within(slots_GJ, jnp.where(is_text[..., None], intervals_GQ4[..., 2:], intervals_GQ4[..., :2]))


def _key_blocks(grid: Grid, x_BRKC: Array) -> Array:
    """Returns keys or values as the blocks of all rows, [B * key blocks, K, J, C]."""
    patches = pad_slots(x_BRKC[:, : grid.patches], grid.blocks(grid.patches) * grid.block)
    text = pad_slots(x_BRKC[:, grid.patches :], (grid.blocks(grid.text) + 1) * grid.block)
    x = jnp.concatenate([patches, text], axis=1)
    return x.reshape(grid.rows * grid.key_blocks, grid.block, *x.shape[2:]).swapaxes(1, 2)


def block_attention(grid: Grid, q_BSHC: Array, k_BRKC: Array, v_BRKC: Array, intervals_BS4: Array) -> Array:
    """Returns [B, S, H, C]; see `interval_attention`. No interval may reach beyond its region."""
    B, S, H, C = q_BSHC.shape
    K, Q = k_BRKC.shape[2], grid.block
    visits = _plan_visits(grid, intervals_BS4)
    q = pad_slots(q_BSHC, grid.blocks(S) * Q)
    q_XKMQC = q.reshape(B * grid.blocks(S), Q, K, H // K, C).transpose(0, 2, 3, 1, 4)
    out_XKMQC = _visit(grid, q_XKMQC, _key_blocks(grid, k_BRKC), _key_blocks(grid, v_BRKC), visits)
    return out_XKMQC.transpose(0, 3, 1, 2, 4).reshape(B, -1, H, C)[:, :S]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _visit(grid: Grid, q_XKMQC: Array, k_YKJC: Array, v_YKJC: Array, visits: _Visits) -> Array:
    return _visit_forward(grid, q_XKMQC, k_YKJC, v_YKJC, visits)[0]


def _visit_forward(grid: Grid, q_XKMQC: Array, k_YKJC: Array, v_YKJC: Array, visits: _Visits) -> tuple:
    def group(_: None, inputs: tuple[Array, _Visits]) -> tuple[None, tuple[Array, Array]]:
        q, visit = inputs

        def step(i: Array, seen: Softmax) -> Softmax:
            at = visit.keys[i]
            return see(seen, q, k_YKJC[at], v_YKJC[at], _visible(grid, at, visit.intervals))

        out, log_total = finish(lax.fori_loop(0, visit.steps, step, nothing_seen(q)))
        return None, (out.astype(q.dtype), log_total)

    _, results = lax.scan(group, None, (_in_order(q_XKMQC, visits.order), visits))
    out, log_total = checkpoint_name(results, SAVED)
    return _in_rows(out, visits.order, len(q_XKMQC)), (q_XKMQC, k_YKJC, v_YKJC, visits, out, log_total)


def _visit_backward(grid: Grid, saved: tuple, d_out_XKMQC: Array) -> tuple:
    q_XKMQC, k_YKJC, v_YKJC, visits, out, log_total = saved

    def group(d_keys: tuple, inputs: tuple[Array, tuple, _Visits]) -> tuple[tuple, Array]:
        q, out_side, visit = inputs

        def step(i: Array, sums: tuple) -> tuple:
            d_q, d_k, d_v = sums
            at = visit.keys[i]
            tile = tile_gradients(q, k_YKJC[at], v_YKJC[at], _visible(grid, at, visit.intervals), out_side)
            return d_q + tile[0], d_k.at[at].add(tile[1]), d_v.at[at].add(tile[2])

        d_q, *d_keys = lax.fori_loop(0, visit.steps, step, (jnp.zeros_like(q, jnp.float32), *d_keys))
        return tuple(d_keys), d_q.astype(q.dtype)

    d_out = _in_order(d_out_XKMQC, visits.order)
    out_side = (d_out, log_total, einsum("...c,...c->...", d_out, out))
    zeros_YKCJ = jnp.zeros_like(k_YKJC.swapaxes(2, 3), jnp.float32)
    d_keys, d_q = lax.scan(group, (zeros_YKCJ, zeros_YKCJ), (_in_order(q_XKMQC, visits.order), out_side, visits))
    d_k, d_v = (x.swapaxes(2, 3).astype(k_YKJC.dtype) for x in d_keys)
    return _in_rows(d_q, visits.order, len(q_XKMQC)), d_k, d_v, None


_visit.defvjp(_visit_forward, _visit_backward)
