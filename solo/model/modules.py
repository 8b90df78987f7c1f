"""The parts of a decoder layer. Every parameter names its logical axes; the mesh is somebody else's business.

A hidden state is two arrays, `Regions(patches, text)`: what is per modality is then one static choice, with no
gather, no mask and no router.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from solo.config import ModelConfig, Sharing
from solo.model.declare import Component, normal, ones, set_region, zeros

# What rematerialisation may keep of a layer by name: outputs of products with weights.
PRODUCT = "product"


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


Parts = tuple[jax.Array, ...]
"""What one set of weights is applied to: the slots of one region or of both, each [B, ., ...]."""


class Weight(NamedTuple):
    """A matrix, in float32 and with its logical axes; the first `inputs` of them are summed over."""

    value: jax.Array
    axes: tuple[str, ...]
    inputs: int


# Products of every part with every weight: [weight][part]. Weights of one call have the same inputs.
# Policies of rematerialisation cannot see into those of a mesh: `products` names what comes out.
Project = Callable[[Parts, Sequence[Weight]], tuple[Parts, ...]]


def local_project(parts: Parts, weights: Sequence[Weight]) -> tuple[Parts, ...]:
    """The products on one device, in the parts' dtype."""
    return tuple(
        tuple(jnp.tensordot(part, weight.value.astype(part.dtype), weight.inputs) for part in parts)
        for weight in weights
    )


def products(project: Project, parts: Parts, weights: Sequence[Weight]) -> tuple[Parts, ...]:
    """The same, by name."""
    return jax.tree.map(lambda x: checkpoint_name(x, PRODUCT), project(parts, weights))


def as_weight(parameter: nnx.Param) -> Weight:
    """A parameter as a matrix."""
    return Weight(parameter[...], parameter.axes, parameter.inputs)


class RMSNorm(nnx.Module):
    """Root-mean-square norm with a learned scale; statistics in float32, result in the input's dtype."""

    def __init__(self, width: int, eps: float, component: Component = "norms"):
        self.scale = ones((width,), ("norm",), component)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise over the last axis."""
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return x32.astype(x.dtype) * self.scale[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Mean and variance norm with learned scale and bias; float32 inside, result in the input's dtype."""

    def __init__(self, width: int, eps: float, component: Component = "norms"):
        self.scale = ones((width,), ("norm",), component)
        self.bias = zeros((width,), ("norm",), component)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise over the last axis."""
        x32 = x.astype(jnp.float32)
        x32 = x32 - x32.mean(axis=-1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (x32 * self.scale[...] + self.bias[...]).astype(x.dtype)


def make_norm(
    kind: Literal["none", "rms", "layer"], width: int, eps: float, component: Component = "norms"
) -> RMSNorm | LayerNorm | None:
    """The norm of a config's name."""
    if kind == "none":
        return None
    return (RMSNorm if kind == "rms" else LayerNorm)(width, eps, component)


def add_bias(x: jax.Array, bias: nnx.Param | None) -> jax.Array:
    """x plus a bias over its last axes, where there is one."""
    return x if bias is None else x + bias[...].astype(x.dtype)


class QKV(nnx.Module):
    """Query, key and value projections of grouped-query attention, with a norm of every head's queries and keys."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        width, dim, std = config.width, config.dim_per_head, config.init_std
        q_axes, k_axes = ("embed", "heads", "head_dim"), ("embed", "kv_heads", "head_dim")
        self.q = normal(rngs, (width, config.heads, dim), q_axes, std, "qkv", "hidden")
        self.k = normal(rngs, (width, config.kv_heads, dim), k_axes, std, "qkv", "hidden")
        self.v = normal(rngs, (width, config.kv_heads, dim), k_axes, std, "qkv", "hidden")
        biased = config.bias != "none"
        self.q_bias = zeros((config.heads, dim), q_axes[1:], "qkv") if biased else None
        self.k_bias = zeros((config.kv_heads, dim), k_axes[1:], "qkv") if biased else None
        self.v_bias = zeros((config.kv_heads, dim), k_axes[1:], "qkv") if biased else None
        self.q_norm = make_norm(config.qk_norm, dim, config.norm_eps, "qkv")
        self.k_norm = make_norm(config.qk_norm, dim, config.norm_eps, "qkv")

    def __call__(self, parts: Parts, project: Project) -> tuple[tuple[jax.Array, jax.Array, jax.Array], ...]:
        """Of every part [B, ., D]: q [B, ., H, C], k and v [B, ., K, C]."""
        found = products(project, parts, [as_weight(weight) for weight in (self.q, self.k, self.v)])
        biases = self.q_bias, self.k_bias, self.v_bias
        return tuple(
            self._normed(*(add_bias(x, bias) for x, bias in zip(of_part, biases, strict=True)))
            for of_part in zip(*found, strict=True)
        )

    def _normed(self, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return q if self.q_norm is None else self.q_norm(q), k if self.k_norm is None else self.k_norm(k), v


class Out(nnx.Module):
    """The projection of the heads back to the width."""

    def __init__(self, config: ModelConfig, std: float, rngs: nnx.Rngs):
        shape = (config.heads, config.dim_per_head, config.width)
        self.kernel = normal(rngs, shape, ("heads", "head_dim", "embed"), std, "out", "residual", inputs=2)
        self.bias = zeros((config.width,), ("norm",), "out") if config.bias == "all" else None

    def __call__(self, parts: Parts, project: Project) -> Parts:
        """Of every part [B, ., H, C]: [B, ., D]."""
        (out,) = products(project, parts, [as_weight(self.kernel)])
        return tuple(add_bias(x, self.bias) for x in out)


class FFN(nnx.Module):
    """swiglu: down(silu(gate x) * up x). relu2: down(relu(up x)^2), as Persimmon has it."""

    def __init__(self, config: ModelConfig, down_std: float, rngs: nnx.Rngs):
        width, hidden, std, biased = config.width, config.ffn_width, config.init_std, config.bias == "all"
        gated = config.ffn == "swiglu"
        self.gate = normal(rngs, (width, hidden), ("embed", "ffn"), std, "ffn", "hidden") if gated else None
        self.up = normal(rngs, (width, hidden), ("embed", "ffn"), std, "ffn", "hidden")
        self.down = normal(rngs, (hidden, width), ("ffn", "embed"), down_std, "ffn", "residual")
        self.gate_bias = zeros((hidden,), ("ffn",), "ffn") if biased and gated else None
        self.up_bias = zeros((hidden,), ("ffn",), "ffn") if biased else None
        self.down_bias = zeros((width,), ("norm",), "ffn") if biased else None

    def __call__(self, parts: Parts, project: Project) -> Parts:
        """Of every part [B, ., D]: the same."""
        if self.gate is None:
            (up,) = products(project, parts, [as_weight(self.up)])
            inner = tuple(jnp.square(jax.nn.relu(add_bias(x, self.up_bias))) for x in up)
        else:
            gate, up = products(project, parts, [as_weight(self.gate), as_weight(self.up)])
            inner = tuple(
                jax.nn.silu(add_bias(g, self.gate_bias)) * add_bias(u, self.up_bias)
                for g, u in zip(gate, up, strict=True)
            )
        (down,) = products(project, inner, [as_weight(self.down)])
        return tuple(add_bias(x, self.down_bias) for x in down)


class PerRegion(nnx.Module):
    """A component with one set of weights for both regions (`shared`), or one for each (`patches`, `text`)."""

    def __init__(self, sharing: Sharing, make: Callable[[], nnx.Module]):
        if sharing == "shared":
            self.shared = make()
        else:
            self.patches = set_region(make(), "patches")
            self.text = set_region(make(), "text")
        self.sharing = sharing

    def __call__(self, x: Regions) -> Regions:
        """Apply the region's weights to each region; the static slices are the whole routing."""
        of_patches: Any = self.shared if self.sharing == "shared" else self.patches
        of_text: Any = self.shared if self.sharing == "shared" else self.text
        return Regions(of_patches(x.patches), of_text(x.text))

    def project(self, x: Regions, project: Project) -> Regions:
        """The same for products. Weights of both regions see both at once: their gradient is one sum."""
        if self.sharing == "shared":
            of_both: Any = self.shared
            return Regions(*of_both(tuple(x), project))
        of_patches: Any = self.patches
        of_text: Any = self.text
        return Regions(*of_patches((x.patches,), project), *of_text((x.text,), project))
