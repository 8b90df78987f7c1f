"""Declares parameters with their role, their component, and the slots that use them.

Parameter and FLOP counts, initial scales, weight decay and the native export are computed from this metadata
(`ParameterSpec`). Only the Hugging Face layouts depend on a parameter's path.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

Component = Literal["patch_embed", "text_embed", "norms", "qkv", "out", "ffn", "head"]
"""The part of the network that a parameter belongs to."""

Region = Literal["shared", "patches", "text", "targets", "moe"]
"""The slots that use a parameter: all slots, the slots of one region, the slots whose logits are computed, or the slots
that a learned router sends to an expert."""

Role = Literal["input", "hidden", "residual", "router", "head", "embedding", "norm", "bias", "vector", "constant"]
"""The role of a parameter.

input      matrix whose inputs do not grow with the width, such as pixels
hidden     matrix whose inputs grow with the width
residual   hidden matrix whose outputs are added to the residual stream
router     matrix from hidden states to the scores of the experts
head       matrix from hidden states to logits
embedding  lookup table with a row per token or position
norm       scale of a norm, initialised to one
bias       initialised to zero
vector     learned vector that replaces the embedding of a slot
constant   not trained, and initialised to one
"""

_MATRICES = ("input", "hidden", "residual", "router", "head")


@dataclass(frozen=True)
class ParameterSpec:
    """The shape and metadata of a float32 parameter.

    shape      shape, including the axis over layers if there is one
    axes       the logical axis of every dimension
    component  the part of the network that it belongs to
    role       see `Role`
    region     the slots that use it
    inputs     number of axes of a matrix that a product sums over
    uses       how often a slot of the region multiplies by the matrix
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    component: Component
    role: Role
    region: Region = "shared"
    inputs: int = 1
    uses: Fraction = Fraction(1)

    @property
    def is_matrix(self) -> bool:
        """Whether slots are multiplied by the parameter. False for a table that is only used for lookups."""
        return self.role in _MATRICES

    @property
    def in_layers(self) -> bool:
        """Whether the parameter belongs to the decoder layers, which are stacked along the first axis."""
        return self.axes[:1] == ("layers",)

    @property
    def matrix_axes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The axes that matrices are stacked along (layers, experts), the input axes, and the output axes.

        The input axis of an embedding is its first axis. Other parameters that are no matrices have only output axes.
        """
        start = int(self.in_layers)
        if self.is_matrix and self.axes[start] == "experts":
            start += 1
        rest = tuple(range(start, len(self.shape)))
        inputs = self.inputs if self.is_matrix else int(self.role == "embedding")
        return tuple(range(start)), rest[:inputs], rest[inputs:]

    def abstract(self) -> jax.ShapeDtypeStruct:
        """Returns the shape and dtype."""
        return jax.ShapeDtypeStruct(self.shape, jnp.float32)


def normal(
    rngs: nnx.Rngs,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    std: float,
    component: Component,
    role: Role,
    *,
    region: Region = "shared",
    inputs: int = 1,
    uses: Fraction = Fraction(1),
) -> nnx.Param:
    """Returns a float32 parameter drawn from N(0, std^2).

    Args:
        rngs: the stream `params` is used.
        shape: without the axis over layers.
        axes: logical axis of every dimension; `solo.sharding.mesh.TABLE` maps them to the mesh.
        std: standard deviation.
        component: see `Component`.
        role: see `Role`.
        region: see `Region`; `PerRegion` sets it for the modules it holds.
        inputs: number of axes that a product sums over; they come first, after an axis over experts.
        uses: how often a slot of the region multiplies by the matrix: the number of inner patches of a patch, or the
            share of the experts that a slot is sent to.
    """
    value = std * jax.random.normal(rngs.params(), shape, jnp.float32)
    return _declare(value, axes, component, role, region=region, inputs=inputs, uses=uses)


def ones(shape: tuple[int, ...], axes: tuple[str, ...], component: Component) -> nnx.Param:
    """Returns the float32 scale of a norm."""
    return _declare(jnp.ones(shape, jnp.float32), axes, component, "norm")


def constant(shape: tuple[int, ...], axes: tuple[str, ...], component: Component) -> nnx.Param:
    """Returns float32 ones that get no gradient and no weight decay; the caller stops the gradient."""
    return _declare(jnp.ones(shape, jnp.float32), axes, component, "constant")


def zeros(shape: tuple[int, ...], axes: tuple[str, ...], component: Component) -> nnx.Param:
    """Returns a float32 bias."""
    return _declare(jnp.zeros(shape, jnp.float32), axes, component, "bias")


def _declare(
    value: jax.Array,
    axes: tuple[str, ...],
    component: Component,
    role: Role,
    *,
    region: Region = "shared",
    inputs: int = 1,
    uses: Fraction = Fraction(1),
) -> nnx.Param:
    return nnx.Param(value, axes=axes, component=component, role=role, region=region, inputs=inputs, uses=uses)


def set_region(module: Any, region: Region) -> Any:
    """Sets the region of every parameter of a module. Returns the module."""
    for _, variable in nnx.iter_graph(module):
        if isinstance(variable, nnx.Param):
            variable.set_metadata(region=region)
    return module
