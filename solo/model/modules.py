"""The parts of a decoder layer. Every parameter names its logical axes; the mesh is somebody else's business.

A hidden state is two arrays, `Regions(patches, text)`: what is per modality is then one static choice, with no
gather, no mask and no router.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from solo.config import ModelConfig, Sharing


class Regions(NamedTuple):
    """The two regions of a row: patches [B, P, ...] and text [B, T, ...]."""

    patches: Any
    text: Any

    @classmethod
    def split(cls, x_BS: jax.Array, num_patches: int) -> Regions:
        """Cut [B, S, ...] into its regions."""
        return cls(x_BS[:, :num_patches], x_BS[:, num_patches:])

    def join(self) -> jax.Array:
        """Back to [B, S, ...], S = P + T."""
        return jnp.concatenate([self.patches, self.text], axis=1)

    def map(self, function: Callable[..., Any], *others: Regions) -> Regions:
        """Apply a function to each region."""
        return Regions(*(function(*parts) for parts in zip(self, *others, strict=True)))


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str, ...], std: float) -> nnx.Param:
    """A float32 parameter drawn from N(0, std^2), with its logical axes as metadata."""
    return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32), axes=axes)


class RMSNorm(nnx.Module):
    """Root-mean-square norm with a learned scale; statistics in float32, result in the input's dtype."""

    def __init__(self, width: int, eps: float):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32), axes=("norm",))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise over the last axis."""
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return x32.astype(x.dtype) * self.scale[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Mean and variance norm with learned scale and bias; float32 inside, result in the input's dtype."""

    def __init__(self, width: int, eps: float):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32), axes=("norm",))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32), axes=("norm",))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise over the last axis."""
        x32 = x.astype(jnp.float32)
        x32 = x32 - x32.mean(axis=-1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (x32 * self.scale[...] + self.bias[...]).astype(x.dtype)


def make_norm(kind: Literal["none", "rms", "layer"], width: int, eps: float) -> RMSNorm | LayerNorm | None:
    """The norm of a config's name."""
    if kind == "none":
        return None
    return RMSNorm(width, eps) if kind == "rms" else LayerNorm(width, eps)


def add_bias(x: jax.Array, bias: nnx.Param | None) -> jax.Array:
    """x plus a bias over its last axes, where there is one."""
    return x if bias is None else x + bias[...].astype(x.dtype)


def zeros(present: bool, shape: tuple[int, ...], axes: tuple[str, ...]) -> nnx.Param | None:
    """A float32 bias that starts at zero, or none."""
    return nnx.Param(jnp.zeros(shape, jnp.float32), axes=axes) if present else None


class QKV(nnx.Module):
    """Query, key and value projections of grouped-query attention, with a norm of every head's queries and keys."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        width, dim, std = config.width, config.dim_per_head, config.init_std
        q_axes, k_axes = ("embed", "heads", "head_dim"), ("embed", "kv_heads", "head_dim")
        self.q = normal(rngs, (width, config.heads, dim), q_axes, std)
        self.k = normal(rngs, (width, config.kv_heads, dim), k_axes, std)
        self.v = normal(rngs, (width, config.kv_heads, dim), k_axes, std)
        biased = config.bias != "none"
        self.q_bias = zeros(biased, (config.heads, dim), q_axes[1:])
        self.k_bias = zeros(biased, (config.kv_heads, dim), k_axes[1:])
        self.v_bias = zeros(biased, (config.kv_heads, dim), k_axes[1:])
        self.q_norm = make_norm(config.qk_norm, dim, config.norm_eps)
        self.k_norm = make_norm(config.qk_norm, dim, config.norm_eps)

    def __call__(self, x_BSD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return q [B, S, H, C], k and v [B, S, K, C]."""
        weights = (self.q, self.q_bias), (self.k, self.k_bias), (self.v, self.v_bias)
        q, k, v = (
            add_bias(jnp.einsum("bsd,dhc->bshc", x_BSD, weight[...].astype(x_BSD.dtype)), bias)
            for weight, bias in weights
        )
        return q if self.q_norm is None else self.q_norm(q), k if self.k_norm is None else self.k_norm(k), v


class Out(nnx.Module):
    """The projection of the heads back to the width."""

    def __init__(self, config: ModelConfig, std: float, rngs: nnx.Rngs):
        shape = (config.heads, config.dim_per_head, config.width)
        self.kernel = normal(rngs, shape, ("heads", "head_dim", "embed"), std)
        self.bias = zeros(config.bias == "all", (config.width,), ("norm",))

    def __call__(self, x_BSHC: jax.Array) -> jax.Array:
        """Return [B, S, D]."""
        return add_bias(jnp.einsum("bshc,hcd->bsd", x_BSHC, self.kernel[...].astype(x_BSHC.dtype)), self.bias)


class FFN(nnx.Module):
    """swiglu: down(silu(gate x) * up x). relu2: down(relu(up x)^2), as Persimmon has it."""

    def __init__(self, config: ModelConfig, down_std: float, rngs: nnx.Rngs):
        width, hidden, std, biased = config.width, config.ffn_width, config.init_std, config.bias == "all"
        gated = config.ffn == "swiglu"
        self.gate = normal(rngs, (width, hidden), ("embed", "ffn"), std) if gated else None
        self.up = normal(rngs, (width, hidden), ("embed", "ffn"), std)
        self.down = normal(rngs, (hidden, width), ("ffn", "embed"), down_std)
        self.gate_bias = zeros(biased and gated, (hidden,), ("ffn",))
        self.up_bias = zeros(biased, (hidden,), ("ffn",))
        self.down_bias = zeros(biased, (width,), ("norm",))

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        """Return [B, S, D]."""
        dtype = x_BSD.dtype
        up = add_bias(x_BSD @ self.up[...].astype(dtype), self.up_bias)
        if self.gate is None:
            inner = jnp.square(jax.nn.relu(up))
        else:
            inner = jax.nn.silu(add_bias(x_BSD @ self.gate[...].astype(dtype), self.gate_bias)) * up
        return add_bias(inner @ self.down[...].astype(dtype), self.down_bias)


class PerRegion(nnx.Module):
    """A component with one set of weights for both regions (`shared`), or one for each (`patches`, `text`)."""

    def __init__(self, sharing: Sharing, make: Callable[[], nnx.Module]):
        if sharing == "shared":
            self.shared = make()
        else:
            self.patches = make()
            self.text = make()
        self.sharing = sharing

    def __call__(self, x: Regions) -> Regions:
        """Apply the region's weights to each region; the static slices are the whole routing."""
        of_patches: Any = self.shared if self.sharing == "shared" else self.patches
        of_text: Any = self.shared if self.sharing == "shared" else self.text
        return Regions(of_patches(x.patches), of_text(x.text))
