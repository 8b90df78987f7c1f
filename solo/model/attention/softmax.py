"""The arithmetic of a tile of scores, for the implementations in plain JAX.

Letters besides those of solo/batch.py: G tiles side by side, with M = H / K query heads that share a key head, Q
queries and J keys each; E the width of a value.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from solo.model.attention.tiles import FLOOR, HIDDEN

einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


class Softmax(NamedTuple):
    """The float32 state of an online softmax: a weighted sum of values over the keys that were added so far."""

    weighted: Array  # [G, K, M, Q, E] sum of exp(score - maximum) * value
    total: Array  # [G, K, M, Q] sum of exp(score - maximum)
    maximum: Array  # [G, K, M, Q]


def nothing_seen(q_GKMQC: Array, value_dim: int) -> Softmax:
    """Returns the state before any keys are added."""
    zeros = jnp.zeros_like(q_GKMQC[..., 0], jnp.float32)
    return Softmax(jnp.broadcast_to(zeros[..., None], (*zeros.shape, value_dim)), zeros, zeros + FLOOR)


def within(slots_J: Array, bounds_Q2: Array) -> Array:
    """Returns bool [..., Q, J]: whether slot j lies in [start, end) of query q."""
    slots = slots_J[..., None, :]
    return (slots >= bounds_Q2[..., :1]) & (slots < bounds_Q2[..., 1:])


def see(seen: Softmax, q_GKMQC: Array, k_GKJC: Array, v_GKJE: Array, visible_GQJ: Array, scale: float) -> Softmax:
    """Add the keys and values of one tile."""
    scores = _scores(q_GKMQC, k_GKJC, visible_GQJ, scale)
    # The result does not depend on the maximum, so it needs no gradient.
    maximum = lax.stop_gradient(jnp.maximum(seen.maximum, scores.max(axis=-1)))
    weights = jnp.exp(scores - maximum[..., None])
    fade = jnp.exp(seen.maximum - maximum)
    values = einsum("gkmqj,gkje->gkmqe", weights.astype(v_GKJE.dtype), v_GKJE)
    return Softmax(seen.weighted * fade[..., None] + values, seen.total * fade + weights.sum(axis=-1), maximum)


def tile_weights(q_GKMQC: Array, k_GKJC: Array, visible_GQJ: Array, scale: float) -> Array:
    """Returns the weights of all keys of a query, float32 [G, K, M, Q, J], if they are one tile. No keys: zeros."""
    weights = jax.nn.softmax(_scores(q_GKMQC, k_GKJC, visible_GQJ, scale), axis=-1)
    return jnp.where(visible_GQJ[:, None, None], weights, 0.0)


def finish(seen: Softmax) -> tuple[Array, Array]:
    """Returns the output [G, K, M, Q, E] and the log of the sum of exp(score) [G, K, M, Q]. No keys: 0 and FLOOR."""
    total = jnp.where(seen.total == 0, 1.0, seen.total)
    return seen.weighted / total[..., None], seen.maximum + jnp.log(total)


def tile_gradients(
    q_GKMQC: Array, k_GKJC: Array, v_GKJE: Array, visible_GQJ: Array, scale: float, out_side: tuple
) -> tuple[Array, Array, Array]:
    """Returns the contributions of a tile to d_q [G, K, M, Q, C], d_k [G, K, C, J] and d_v [G, K, E, J], in float32.

    out_side  d_out [G, K, M, Q, E]; the log of the sum of exp(score) and d_out . out, [G, K, M, Q] each
    """
    d_out_GKMQE, log_total_GKMQ, inner_GKMQ = out_side
    weights = jnp.exp(_scores(q_GKMQC, k_GKJC, visible_GQJ, scale) - log_total_GKMQ[..., None])
    d_weights = einsum("gkmqe,gkje->gkmqj", d_out_GKMQE, v_GKJE)
    d_scores = weights * (d_weights - inner_GKMQ[..., None]) / (1 / scale)
    weights, d_scores = weights.astype(q_GKMQC.dtype), d_scores.astype(q_GKMQC.dtype)
    # The products end in J: those that end in C or E would transpose weights and d_scores, the largest arrays here.
    d_q = einsum("gkmqj,gkjc->gkmqc", d_scores, k_GKJC)
    d_k = einsum("gkcmq,gkmqj->gkcj", jnp.moveaxis(q_GKMQC, -1, 2), d_scores)
    d_v = einsum("gkemq,gkmqj->gkej", jnp.moveaxis(d_out_GKMQE, -1, 2), weights)
    return d_q, d_k, d_v


def _scores(q_GKMQC: Array, k_GKJC: Array, visible_GQJ: Array, scale: float) -> Array:
    # By default, 1 / scale is sqrt(C), which is often a whole number.
    scores = einsum("gkmqc,gkjc->gkmqj", q_GKMQC, k_GKJC) / (1 / scale)
    return jnp.where(visible_GQJ[:, None, None], scores, HIDDEN)
