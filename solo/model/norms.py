"""Normalisation over the last axis. Statistics are computed in float32; the output has the dtype of the input."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from solo.model.declare import Component, ones, zeros


class RMSNorm(nnx.Module):
    """Divide by the root mean square, with a learned scale (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float, component: Component = "norms"):
        self.scale = ones((width,), ("norm",), component)
        self.eps = eps

    def __call__(self, x: Any) -> Any:
        """Normalise an array or a pytree of arrays."""
        return jax.tree.map(self._normalise, x)

    def _normalise(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return x32.astype(x.dtype) * self.scale[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Subtract the mean and divide by the standard deviation, with learned scale and bias (arXiv 1607.06450)."""

    def __init__(self, width: int, eps: float, component: Component = "norms"):
        self.scale = ones((width,), ("norm",), component)
        self.bias = zeros((width,), ("norm",), component)
        self.eps = eps

    def __call__(self, x: Any) -> Any:
        """Normalise an array or a pytree of arrays."""
        return jax.tree.map(self._normalise, x)

    def _normalise(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        x32 = x32 - x32.mean(axis=-1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (x32 * self.scale[...] + self.bias[...]).astype(x.dtype)


def make_norm(
    kind: Literal["rms", "layer"], width: int, eps: float, component: Component = "norms"
) -> RMSNorm | LayerNorm:
    """Returns the norm of this kind (`ModelConfig.norm`)."""
    return (RMSNorm if kind == "rms" else LayerNorm)(width, eps, component)
