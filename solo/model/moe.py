"""A mixture of experts with a learned router that replaces the FFN, for comparison with modality experts.

Routing is top-k and dropless: slots are sorted by expert, and every expert computes exactly the slots routed to it. The
load-balancing loss is that of the Switch Transformer (arXiv 2101.03961, eq. 4): E times the sum over experts of (share
of slots) x (mean probability).

Letters besides those of solo/batch.py: N slots of both regions of all rows, E experts, A = top_k.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from solo.config import ModelConfig
from solo.model.declare import Role, normal
from solo.model.regions import Regions


class ExpertWeights(NamedTuple):
    """The weights of a mixture of experts: router [D, E], gate and up [E, D, F], down [E, F, D]."""

    router: Any
    gate: Any
    up: Any
    down: Any


class Load(NamedTuple):
    """The router's load, as float32 sums over the live slots.

    chosen       [E]  number of slots that chose each expert
    probability  [E]  sum of the router's probabilities
    slots        []   live slots
    """

    chosen: Any
    probability: Any
    slots: Any


# (x [B, P, D] and [B, T, D], live bool [B, P] and [B, T], weights, top_k) -> (outputs like x, load over all devices)
RoutedFFN = Callable[[Regions, Regions, ExpertWeights, int], tuple[Regions, Load]]


class MoE(nnx.Module):
    """A router and its SwiGLU experts, without biases."""

    def __init__(self, config: ModelConfig, down_std: float, rngs: nnx.Rngs):
        moe, width, std = config.moe, config.width, config.init_std
        hidden = moe.width or config.ffn_width // moe.top_k
        share = Fraction(moe.top_k, moe.count)

        def experts(shape: tuple[int, ...], axes: tuple[str, ...], std: float, role: Role) -> nnx.Param:
            return normal(rngs, (moe.count, *shape), ("experts", *axes), std, "ffn", role, region="moe", uses=share)

        self.router = normal(rngs, (width, moe.count), ("embed", "experts"), std, "ffn", "router", region="moe")
        self.gate = experts((width, hidden), ("embed", "ffn"), std, "hidden")
        self.up = experts((width, hidden), ("embed", "ffn"), std, "hidden")
        self.down = experts((hidden, width), ("ffn", "embed"), down_std, "residual")
        self.top_k = moe.top_k

    def __call__(self, x: Regions, live: Regions, routed_ffn: RoutedFFN) -> tuple[Regions, jax.Array]:
        """Returns the outputs of both regions and the load-balancing loss, float32 [], which is 1 if balanced."""
        weights = ExpertWeights(self.router[...], self.gate[...], self.up[...], self.down[...])
        out, load = routed_ffn(x, live, weights, self.top_k)
        slots = jnp.maximum(load.slots, 1.0)
        shares, probabilities = load.chosen / (slots * self.top_k), load.probability / slots
        return out, len(shares) * jnp.sum(jax.lax.stop_gradient(shares) * probabilities)


class MoEFFN(nnx.Module):
    """Holds the experts, so that their path is `layers/ffn/moe`."""

    def __init__(self, config: ModelConfig, down_std: float, rngs: nnx.Rngs):
        self.moe = MoE(config, down_std, rngs)


def routed_ffn(x: Regions, live: Regions, weights: ExpertWeights, top_k: int) -> tuple[Regions, Load]:
    """`RoutedFFN` on one device."""
    joined, alive = x.join(), live.join().reshape(-1)
    x_ND = joined.reshape(-1, joined.shape[-1])
    probability_NE = jax.nn.softmax(x_ND.astype(jnp.float32) @ weights.router, axis=-1)
    strength_NA, chosen_NA = jax.lax.top_k(probability_NE, top_k)
    strength_NA = strength_NA / strength_NA.sum(axis=-1, keepdims=True) if top_k > 1 else strength_NA
    out_ND = _apply(x_ND, chosen_NA, strength_NA, weights)
    picked_NE = jax.nn.one_hot(chosen_NA, probability_NE.shape[-1]).sum(axis=1)
    alive_N1 = alive[:, None].astype(jnp.float32)
    load = Load((picked_NE * alive_N1).sum(0), (probability_NE * alive_N1).sum(0), alive_N1.sum())
    return Regions.split(out_ND.reshape(joined.shape), x.patches.shape[1]), load


def _apply(x_ND: jax.Array, chosen_NA: jax.Array, strength_NA: jax.Array, weights: ExpertWeights) -> jax.Array:
    """Returns the weighted sum of the chosen experts' outputs, [N, D]. Sorting slots by expert keeps products dense."""
    count, top_k = len(weights.gate), chosen_NA.shape[1]
    order = jnp.argsort(chosen_NA.reshape(-1), stable=True)
    sizes_E = jnp.bincount(chosen_NA.reshape(-1), length=count)
    sorted_x = x_ND[order // top_k]
    gate, up, down = (weight.astype(x_ND.dtype) for weight in weights[1:])
    inner = jax.nn.silu(jax.lax.ragged_dot(sorted_x, gate, sizes_E)) * jax.lax.ragged_dot(sorted_x, up, sizes_E)
    sorted_out = jax.lax.ragged_dot(inner, down, sizes_E)
    out_NAD = sorted_out[jnp.argsort(order)].reshape(len(x_ND), top_k, -1)
    return jnp.einsum("nad,na->nd", out_NAD, strength_NA.astype(x_ND.dtype))
