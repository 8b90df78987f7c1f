"""The projections from hidden states to queries, keys and values, and from attention outputs to hidden states."""

from __future__ import annotations

from typing import Any

from flax import nnx

from solo.config import ConfigError, ModelConfig
from solo.model.declare import normal, zeros
from solo.model.dense import Dense, add_bias
from solo.model.norms import make_norm


class QKVProjection(nnx.Module):
    """Projects to queries, keys and values of grouped-query attention, with an optional QK norm per head."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        for key in ("head_parts", "value_dim", "attention_scale"):
            if getattr(config, key) is not None:
                raise ConfigError(f"model.{key} is not implemented yet")
        width, dim, std = config.width, config.dim_per_head, config.init_std
        q_axes, k_axes = ("embed", "heads", "head_dim"), ("embed", "kv_heads", "head_dim")
        self.q = normal(rngs, (width, config.heads, dim), q_axes, std, "qkv", "hidden")
        self.k = normal(rngs, (width, config.kv_heads, dim), k_axes, std, "qkv", "hidden")
        self.v = normal(rngs, (width, config.kv_heads, dim), k_axes, std, "qkv", "hidden")
        biased, normed = config.bias != "none", config.qk_norm
        self.q_bias = zeros((config.heads, dim), q_axes[1:], "qkv") if biased else None
        self.k_bias = zeros((config.kv_heads, dim), k_axes[1:], "qkv") if biased else None
        self.v_bias = zeros((config.kv_heads, dim), k_axes[1:], "qkv") if biased else None
        self.q_norm = None if normed == "none" else make_norm(normed, dim, config.norm_eps, "qkv")
        self.k_norm = None if normed == "none" else make_norm(normed, dim, config.norm_eps, "qkv")

    def __call__(self, x: Any, dense: Dense) -> tuple[Any, Any, Any]:
        """Maps [B, ., D] to q [B, ., H, C], k and v [B, ., K, C]."""
        q, k, v = dense(x, self.q, self.k, self.v)
        q, k, v = add_bias(q, self.q_bias), add_bias(k, self.k_bias), add_bias(v, self.v_bias)
        return q if self.q_norm is None else self.q_norm(q), k if self.k_norm is None else self.k_norm(k), v


class OutputProjection(nnx.Module):
    """Projects the heads' outputs back to the model's width."""

    def __init__(self, config: ModelConfig, std: float, rngs: nnx.Rngs):
        shape = (config.heads, config.dim_per_head, config.width)
        self.kernel = normal(rngs, shape, ("heads", "head_dim", "embed"), std, "out", "residual", inputs=2)
        self.bias = zeros((config.width,), ("norm",), "out") if config.bias == "all" else None

    def __call__(self, x: Any, dense: Dense) -> Any:
        """Maps [B, ., H, C] to [B, ., D]."""
        return add_bias(dense(x, self.kernel), self.bias)
