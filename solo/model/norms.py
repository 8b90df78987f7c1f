"""Normalisation over the last axis. Statistics are computed in float32; the output has the dtype of the input."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from solo.model.declare import Component, ones, zeros

ScaleDtype = Literal["compute", "float32"]


class RMSNorm(nnx.Module):
    """Divide by the root mean square, with a learned scale (Zhang and Sennrich 2019, arXiv 1910.07467).

    With `scale_dtype` float32, the scale multiplies before the cast to the dtype of the input (Gemma).
    """

    def __init__(self, width: int, eps: float, component: Component = "norms", scale_dtype: ScaleDtype = "compute"):
        self.scale = ones((width,), ("norm",), component)
        self.eps, self.scale_dtype = eps, scale_dtype

    def __call__(self, x: Any) -> Any:
        """Normalise an array or a pytree of arrays."""
        return jax.tree.map(self._normalise, x)

    def _normalise(self, x: jax.Array) -> jax.Array:
        x32 = _over_rms(x, self.eps)
        if self.scale_dtype == "float32":
            return (x32 * self.scale[...]).astype(x.dtype)
        return x32.astype(x.dtype) * self.scale[...].astype(x.dtype)


def rms_normalised(x: Any, eps: float) -> Any:
    """Divides arrays by their root mean square over the last axis, without a scale; an array or a pytree of arrays."""
    return jax.tree.map(lambda part: _over_rms(part, eps).astype(part.dtype), x)


def _over_rms(x: jax.Array, eps: float) -> jax.Array:
    """Returns x divided by its root mean square, float32."""
    x32 = x.astype(jnp.float32)
    return x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)


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
    kind: Literal["rms", "layer"],
    width: int,
    eps: float,
    component: Component = "norms",
    scale_dtype: ScaleDtype = "compute",
) -> RMSNorm | LayerNorm:
    """Returns the norm of this kind (`ModelConfig.norm`)."""
    if kind == "layer":
        return LayerNorm(width, eps, component)
    return RMSNorm(width, eps, component, scale_dtype)
