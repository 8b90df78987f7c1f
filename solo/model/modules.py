"""The parts of a decoder layer. Every parameter names its logical axes; the mesh is somebody else's business.

A hidden state is two arrays, `Regions(patches, text)`: what is per modality is then one static choice, with no
gather, no mask and no router.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx


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


class QKV(nnx.Module):
    """Query, key and value projections of grouped-query attention, without bias."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, std: float, rngs: nnx.Rngs):
        self.q = normal(rngs, (width, heads, head_dim), ("embed", "heads", "head_dim"), std)
        self.k = normal(rngs, (width, kv_heads, head_dim), ("embed", "kv_heads", "head_dim"), std)
        self.v = normal(rngs, (width, kv_heads, head_dim), ("embed", "kv_heads", "head_dim"), std)

    def __call__(self, x_BSD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return q [B, S, H, C], k and v [B, S, K, C]."""
        q, k, v = (
            jnp.einsum("bsd,dhc->bshc", x_BSD, weight[...].astype(x_BSD.dtype)) for weight in (self.q, self.k, self.v)
        )
        return q, k, v


class Out(nnx.Module):
    """The projection of the heads back to the width, without bias."""

    def __init__(self, width: int, heads: int, head_dim: int, std: float, rngs: nnx.Rngs):
        self.kernel = normal(rngs, (heads, head_dim, width), ("heads", "head_dim", "embed"), std)

    def __call__(self, x_BSHC: jax.Array) -> jax.Array:
        """Return [B, S, D]."""
        return jnp.einsum("bshc,hcd->bsd", x_BSHC, self.kernel[...].astype(x_BSHC.dtype))


class SwiGLU(nnx.Module):
    """down(silu(gate x) * up x), without bias."""

    def __init__(self, width: int, hidden: int, std: float, down_std: float, rngs: nnx.Rngs):
        self.gate = normal(rngs, (width, hidden), ("embed", "ffn"), std)
        self.up = normal(rngs, (width, hidden), ("embed", "ffn"), std)
        self.down = normal(rngs, (hidden, width), ("ffn", "embed"), down_std)

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        """Return [B, S, D]."""
        gate, up, down = (weight[...].astype(x_BSD.dtype) for weight in (self.gate, self.up, self.down))
        return (jax.nn.silu(x_BSD @ gate) * (x_BSD @ up)) @ down


class PerRegion(nnx.Module):
    """A component with one set of weights for both regions (`shared`), or one for each (`patches`, `text`)."""

    def __init__(self, sharing: str, make: Callable[[], nnx.Module]):
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


def rotary_angles(positions_BS: jax.Array, head_dim: int, theta: float) -> jax.Array:
    """Angles [B, S, C/2] in radians, float32: position / theta^(2i/C) (RoFormer, arXiv 2104.09864)."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    return positions_BS[..., None].astype(jnp.float32) * frequency


def rotate(x_BSHC: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotate the pairs (i, i + C/2), the half-split convention of Hugging Face weights; float32 inside."""
    first, second = jnp.split(x_BSHC.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BSHC.dtype)
