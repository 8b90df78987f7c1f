"""The decoder layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from solo.config import ModelConfig
from solo.model.attention.projections import OutputProjection, QKVProjection
from solo.model.declare import constant
from solo.model.dense import Dense
from solo.model.ffn import FFN
from solo.model.kv_cache import KVCache, keys_and_values
from solo.model.moe import MoEFFN, RoutedFFN
from solo.model.norms import LayerNorm, RMSNorm, make_norm
from solo.model.parametrisation import query_multiplier, residual_multiplier
from solo.model.regions import PerRegion, Regions
from solo.model.remat import PROJECTION, named


class Context(NamedTuple):
    """The arguments of every layer other than its input.

    dense       products with weights
    rotate      applies the batch's rotary positions to the queries or keys of both regions
    attention   (q, k, v) -> outputs of the heads, with the mask of the batch
    routed_ffn  computes a mixture of experts
    live        bool [B, .]: the slots that are not empty
    append      writes a layer's keys and values into the cache
    """

    dense: Dense
    rotate: Callable[[Regions], Regions]
    attention: Callable[[Regions, Regions, Regions], Regions]
    routed_ffn: RoutedFFN
    live: Regions
    append: Callable[[KVCache, Any, Regions, Regions], KVCache]


class LayerOutput(NamedTuple):
    """The hidden states after a layer, the extended cache, and the load-balancing loss (0 without a router)."""

    x: Regions
    cache: KVCache | None
    auxiliary: jax.Array


class Layer(nnx.Module):
    """A pre-norm layer: x + out(attention(norm(x))), then x + ffn(norm(x)).

    With `norm_placement: sandwich`, the output of each branch has a norm too: x + norm(ffn(norm(x))).

    Each component is shared by both regions or separate for each (`ModelConfig.experts`).
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        # Residual outputs have a smaller initial scale, so that the sum of 2 L outputs keeps its scale (GPT-2).
        residual_std = config.init_std / (2 * config.layers) ** 0.5
        experts = config.experts
        self.query_multiplier, self.residual_multiplier = query_multiplier(config), residual_multiplier(config)
        self.attention_norm = PerRegion(experts.norms, lambda: hidden_norm(config))
        self.qkv = PerRegion(experts.qkv, lambda: QKVProjection(config, rngs))
        self.out = PerRegion(experts.out, lambda: OutputProjection(config, residual_std, rngs))
        self.ffn_norm = PerRegion(experts.norms, lambda: hidden_norm(config))
        is_sandwich = config.norm_placement == "sandwich"
        self.attention_post_norm = PerRegion(experts.norms, lambda: hidden_norm(config)) if is_sandwich else None
        self.ffn_post_norm = PerRegion(experts.norms, lambda: hidden_norm(config)) if is_sandwich else None
        self.scalar = constant((1,), ("norm",), "norms") if config.layer_scalar else None
        self.ffn: PerRegion | MoEFFN
        if experts.ffn == "moe":
            self.ffn = MoEFFN(config, residual_std, rngs)
        else:
            self.ffn = PerRegion(experts.ffn, lambda: FFN(config, residual_std, rngs))

    def __call__(self, x: Regions, context: Context, cache: KVCache | None = None, number: Any = None) -> LayerOutput:
        """Maps [B, ., D] to [B, ., D]. With a cache, queries also attend to its keys of layer `number`."""
        q, k, v = self._heads(x, context)
        if cache is not None:
            assert number is not None
            cache = context.append(cache, number, k, v)
            k, v = keys_and_values(cache, number)
        return self._output(x, q, k, v, context, cache)

    def for_some(
        self, x: Regions, context: Context, some: Regions, context_of_some: Context, cache: KVCache, number: Any
    ) -> LayerOutput:
        """Returns the output for `some` of the slots of `x`; keys and values of all slots go into the cache."""
        _, k, v = self._heads(x, context)
        q, _, _ = self._heads(some, context_of_some)
        cache = context.append(cache, number, k, v)
        return self._output(some, q, *keys_and_values(cache, number), context_of_some, cache)

    def _heads(self, x: Regions, context: Context) -> tuple[Regions, Regions, Regions]:
        q, k, v = self.qkv(self.attention_norm(x), context.dense)
        q, k = context.rotate(_times(q, self.query_multiplier)), context.rotate(k)
        return named(q, PROJECTION), named(k, PROJECTION), named(v, PROJECTION)

    def _output(
        self, x: Regions, q: Regions, k: Regions, v: Regions, context: Context, cache: KVCache | None
    ) -> LayerOutput:
        out = named(self.out(context.attention(q, k, v), context.dense), PROJECTION)
        x = self._added(x, out, self.attention_post_norm)
        out, auxiliary = self._ffn(self.ffn_norm(x), context)
        x = self._added(x, out, self.ffn_post_norm)
        if self.scalar is not None:
            scalar = jax.lax.stop_gradient(self.scalar[...])
            x = x.map(lambda part: part * scalar.astype(part.dtype))
        return LayerOutput(x, cache, auxiliary)

    def _added(self, x: Regions, branch: Regions, norm: PerRegion | None) -> Regions:
        branch = branch if norm is None else norm(branch)
        return x.map(jnp.add, _times(branch, self.residual_multiplier))

    def _ffn(self, x: Regions, context: Context) -> tuple[Regions, jax.Array]:
        if isinstance(self.ffn, MoEFFN):
            return self.ffn.moe(x, context.live, context.routed_ffn)
        return self.ffn(x, context.dense), jnp.zeros((), jnp.float32)


def hidden_norm(config: ModelConfig) -> RMSNorm | LayerNorm:
    """Returns the norm of hidden states."""
    return make_norm(config.norm, config.width, config.norm_eps, scale_dtype=config.norm_scale_dtype)


def _times(x: Regions, factor: float) -> Regions:
    return x if factor == 1 else x.map(lambda part: part * factor)
