"""The projections from hidden states to queries, keys and values, and from attention outputs to hidden states.

Shape letters besides those of solo/batch.py: G the width of a head in the grid projections, E the width of a value.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from solo.config import ModelConfig
from solo.model.declare import normal, zeros
from solo.model.dense import Dense, add_bias
from solo.model.norms import make_norm, rms_normalised


class QKVProjection(nnx.Module):
    """Projects to queries, keys and values of grouped-query attention, with an optional QK norm per head.

    With `ModelConfig.head_parts`, queries and keys are [main projection | grid projection], and their parts have norms
    of their own.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        width, dim, grid, std = config.width, config.dim_per_head, config.dim_per_grid, config.init_std
        q_axes, k_axes = ("embed", "heads", "head_dim"), ("embed", "kv_heads", "head_dim")
        self.q = normal(rngs, (width, config.heads, dim), q_axes, std, "qkv", "hidden")
        self.k = normal(rngs, (width, config.kv_heads, dim), k_axes, std, "qkv", "hidden")
        own_values, values = not config.keys_are_values, (width, config.kv_heads, config.dim_per_value)
        self.v = normal(rngs, values, k_axes, std, "qkv", "hidden") if own_values else None
        biased = config.bias != "none"
        self.q_bias = zeros((config.heads, dim), q_axes[1:], "qkv") if biased else None
        self.k_bias = zeros((config.kv_heads, dim), k_axes[1:], "qkv") if biased else None
        self.v_bias = zeros((config.kv_heads, config.dim_per_value), k_axes[1:], "qkv") if biased else None
        self.q_grid = normal(rngs, (width, config.heads, grid), q_axes, std, "qkv", "hidden") if grid else None
        self.k_grid = normal(rngs, (width, config.kv_heads, grid), k_axes, std, "qkv", "hidden") if grid else None
        self.q_grid_bias = zeros((config.heads, grid), q_axes[1:], "qkv") if grid and biased else None
        self.k_grid_bias = zeros((config.kv_heads, grid), k_axes[1:], "qkv") if grid and biased else None
        self.normed = normed_parts(config)
        for name, dim in self.normed:
            assert config.qk_norm != "none"
            setattr(self, f"q_{name}", make_norm(config.qk_norm, dim, config.norm_eps, "qkv", config.norm_scale_dtype))
            setattr(self, f"k_{name}", make_norm(config.qk_norm, dim, config.norm_eps, "qkv", config.norm_scale_dtype))
        self.value_eps = None if config.value_norm == "none" else config.norm_eps

    def __call__(self, x: Any, dense: Dense) -> tuple[Any, Any, Any]:
        """Maps [B, ., D] to q [B, ., H, C + G], k [B, ., K, C + G] and v [B, ., K, E]."""
        if self.v is None:
            q, k = dense(x, self.q, self.k)
            v = k
        elif self.q_grid is None or self.k_grid is None:
            q, k, v = dense(x, self.q, self.k, self.v)
        else:
            q, k, v, q_grid, k_grid = dense(x, self.q, self.k, self.v, self.q_grid, self.k_grid)
        q, k, v = add_bias(q, self.q_bias), add_bias(k, self.k_bias), add_bias(v, self.v_bias)
        if self.q_grid is not None:
            q = jax.tree.map(_joined, q, add_bias(q_grid, self.q_grid_bias))
            k = jax.tree.map(_joined, k, add_bias(k_grid, self.k_grid_bias))
        if self.value_eps is not None:
            v = rms_normalised(v, self.value_eps)
        return self._normed(q, "q"), self._normed(k, "k"), v

    def _normed(self, x: Any, of: str) -> Any:
        if not self.normed:
            return x
        norms = [getattr(self, f"{of}_{name}") for name, _ in self.normed]
        if len(norms) == 1:
            return norms[0](x)
        places = np.cumsum([dim for _, dim in self.normed])[:-1]

        def normed(array: jax.Array) -> jax.Array:
            parts = jnp.split(array, places, axis=-1)
            return jnp.concatenate([norm(part) for norm, part in zip(norms, parts, strict=True)], axis=-1)

        return jax.tree.map(normed, x)


def normed_parts(config: ModelConfig) -> tuple[tuple[str, int], ...]:
    """Returns the norms of queries and keys, in the order of a head's dimensions: the name of each, and its width.

    The time's norm is `norm`, like that of a head without parts; the others are named after their part (`norm_row`,
    `norm_column`, `norm_grid`).
    """
    if config.qk_norm == "none":
        return ()
    found: dict[str, int] = {}
    for part in config.head_parts or ():
        axis = "" if part.axis == "time" else f"_{part.axis}"
        name = "norm_grid" if part.norm == "grid" else f"norm{axis}"
        found[name] = found.get(name, 0) + part.width
    return tuple(found.items()) or (("norm", config.dim_per_head),)


def _joined(main: jax.Array, grid: jax.Array) -> jax.Array:
    return jnp.concatenate([main, grid], axis=-1)


class OutputProjection(nnx.Module):
    """Projects the heads' outputs back to the model's width."""

    def __init__(self, config: ModelConfig, std: float, rngs: nnx.Rngs):
        shape = (config.heads, config.dim_per_value, config.width)
        self.kernel = normal(rngs, shape, ("heads", "head_dim", "embed"), std, "out", "residual", inputs=2)
        self.bias = zeros((config.width,), ("norm",), "out") if config.bias == "all" else None

    def __call__(self, x: Any, dense: Dense) -> Any:
        """Maps [B, ., H, E] to [B, ., D]."""
        return add_bias(dense(x, self.kernel), self.bias)
