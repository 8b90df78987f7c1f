"""Attention for decoding: one query per row attends to the keys of both regions, in place in the KV cache.

Concatenating the regions would copy the whole cache for every token.

Shape letters besides those of solo/batch.py: R key slots of a region, M = H / K query heads per key head, E the width
of a value.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
from jax import Array

from solo.model.attention.softmax import einsum, within
from solo.model.attention.tiles import FLOOR, HIDDEN
from solo.model.regions import Regions


def attend_once(q_B1HC: Array, k: Regions, v: Regions, intervals_B14: Array, scale: float) -> Array:
    """Returns the attention output [B, 1, H, E] for one query per row; see `interval_attention`.

    Args:
        q_B1HC: queries.
        k: keys [B, R, K, C] of each region.
        v: values [B, R, K, E] of each region.
        intervals_B14: int32, as in `Batch.attend`.
        scale: factor on the scores.
    """
    B, _, H, C = q_B1HC.shape
    K = k.text.shape[2]
    q_BKMC = q_B1HC.reshape(B, K, H // K, C)
    bounds = Regions(intervals_B14[..., :2], intervals_B14[..., 2:])
    regions = [part for part in zip(k, v, bounds, strict=True) if part[0].shape[1]]
    scores = [_scores(q_BKMC, keys, bounds_B12, scale) for keys, _, bounds_B12 in regions]
    # If a query sees no key, all its scores are HIDDEN; with the maximum at FLOOR, their weights are 0.
    most = functools.reduce(jnp.maximum, (part.max(axis=-1, keepdims=True) for part in scores), jnp.float32(FLOOR))
    weights = [jnp.exp(part - most) for part in scores]
    total = sum(part.sum(axis=-1, keepdims=True) for part in weights)
    weighted = sum(
        einsum("bkmr,bkre->bkme", part.astype(values.dtype), values.swapaxes(1, 2))
        for part, (_, values, _) in zip(weights, regions, strict=True)
    )
    return (weighted / jnp.where(total == 0, 1.0, total)).reshape(B, 1, H, -1).astype(q_B1HC.dtype)


def _scores(q_BKMC: Array, k_BRKC: Array, bounds_B12: Array, scale: float) -> Array:
    """Returns the scores for the keys of a region, float32 [B, K, M, R]."""
    # Keys are the left operand, so that a matmul on a CPU reads them in the layout of the cache.
    scores = einsum("bkrc,bkmc->bkrm", k_BRKC.swapaxes(1, 2), q_BKMC).swapaxes(2, 3) / (1 / scale)
    visible_B1R = within(jnp.arange(k_BRKC.shape[1]), bounds_B12)
    return jnp.where(visible_B1R[:, None], scores, HIDDEN)
