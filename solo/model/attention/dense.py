"""Attention that materialises all S x R scores of a row. Used for single queries and for short rows on a CPU.

Letters besides those of solo/batch.py: R key slots, M = H / K query heads that share a key head; E the width of a
value.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from solo.model.attention.softmax import finish, nothing_seen, see, tile_weights, within


def dense_attention(
    q_BSHC: Array, k_BRKC: Array, v_BRKE: Array, intervals_BS4: Array, num_patches: int, scale: float
) -> Array:
    """Returns [B, S, H, E]; see `interval_attention`. Every row is one tile."""
    q_BKMSC, visible_BSR = _grouped(q_BSHC, k_BRKC), _visible(k_BRKC, intervals_BS4, num_patches)
    nothing = nothing_seen(q_BKMSC, v_BRKE.shape[-1])
    seen = see(nothing, q_BKMSC, k_BRKC.swapaxes(1, 2), v_BRKE.swapaxes(1, 2), visible_BSR, scale)
    out_BSKME = finish(seen)[0].transpose(0, 3, 1, 2, 4)
    return out_BSKME.reshape(*q_BSHC.shape[:3], -1).astype(q_BSHC.dtype)


def dense_weights(q_BSHC: Array, k_BRKC: Array, intervals_BS4: Array, num_patches: int, scale: float) -> Array:
    """Returns the weights with which `dense_attention` sums the values, float32 [B, S, H, R]."""
    visible_BSR = _visible(k_BRKC, intervals_BS4, num_patches)
    weights_BKMSR = tile_weights(_grouped(q_BSHC, k_BRKC), k_BRKC.swapaxes(1, 2), visible_BSR, scale)
    return weights_BKMSR.transpose(0, 3, 1, 2, 4).reshape(*q_BSHC.shape[:3], -1)


def _grouped(q_BSHC: Array, k_BRKC: Array) -> Array:
    """Returns queries by the key head that they share, [B, K, M, S, C]."""
    B, S, H, C = q_BSHC.shape
    K = k_BRKC.shape[2]
    return q_BSHC.reshape(B, S, K, H // K, C).transpose(0, 2, 3, 1, 4)


def _visible(k_BRKC: Array, intervals_BS4: Array, num_patches: int) -> Array:
    """Returns bool [B, S, R]: whether a query attends to a key."""
    patches = within(jnp.arange(num_patches), intervals_BS4[..., :2])
    text = within(jnp.arange(k_BRKC.shape[1] - num_patches), intervals_BS4[..., 2:])
    return jnp.concatenate([patches, text], axis=-1)
