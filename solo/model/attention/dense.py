"""Attention that materialises all S x R scores of a row, for a single query and for short rows on a CPU.

Letters besides those of solo/batch.py: R key slots, M = H / K query heads that share a key head.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from solo.model.attention.softmax import finish, nothing_seen, see, within


def dense_attention(q_BSHC: Array, k_BRKC: Array, v_BRKC: Array, intervals_BS4: Array, num_patches: int) -> Array:
    """Returns [B, S, H, C]; see `interval_attention`. Every row is one tile."""
    B, S, H, C = q_BSHC.shape
    R, K = k_BRKC.shape[1:3]
    q_BKMSC = q_BSHC.reshape(B, S, K, H // K, C).transpose(0, 2, 3, 1, 4)
    patches = within(jnp.arange(num_patches), intervals_BS4[..., :2])
    text = within(jnp.arange(R - num_patches), intervals_BS4[..., 2:])
    visible_BSR = jnp.concatenate([patches, text], axis=-1)
    seen = see(nothing_seen(q_BKMSC), q_BKMSC, k_BRKC.swapaxes(1, 2), v_BRKC.swapaxes(1, 2), visible_BSR)
    return finish(seen)[0].transpose(0, 3, 1, 2, 4).reshape(q_BSHC.shape).astype(q_BSHC.dtype)
