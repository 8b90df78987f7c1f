"""8-bit matmuls for training (`model.quantization`). Qwix quantizes the operands and multiplies them.

Each operand has one scale per channel, that is, per slot, input or output that is not summed over. A scale maps the
largest absolute value of its channel to the largest value of the type. Scales are computed from float32 in every matmul
(dynamic scaling), and applied to the float32 result.

    kind   forward          gradient of the inputs   gradient of the weights
    fp8    e4m3 x e4m3      e5m2 x e4m3              e4m3 x e5m2
    int8   int8 x int8      int8 x int8              in the dtype of the hidden states

Gradients use e5m2 for its wider range (arXiv 2209.05433). The gradient of a weight is a sum over slots whose gradients
differ by orders of magnitude; int8 would round most of them to zero.

Weights, reductions of their gradients over devices, and everything that is saved keep their dtypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from solo.config import ConfigError, QuantizationConfig
from solo.model.dense import Dense, named, one_or_all

Kind = Literal["none", "fp8", "int8"]
Axes = Sequence[int]


class _Types(NamedTuple):
    """The dtypes of hidden states and weights, and of gradients; and whether the weight gradient is quantized."""

    operands: Any
    gradients: Any
    of_weights: bool


_TYPES = {
    "fp8": _Types(jnp.float8_e4m3fn, jnp.float8_e5m2, of_weights=True),
    "int8": _Types(jnp.int8, jnp.int8, of_weights=False),
}
# Component of the config -> its components of parameters (`solo.model.declare.Component`).
_PARTS = {"ffn": ("ffn",), "attention": ("qkv", "out")}


def require_library() -> None:
    """Raises ConfigError if Qwix is not installed."""
    try:
        import qwix  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"model.quantization needs the library qwix ({error}): pip install 'solo-vlm[quantization]', or set"
            " model.quantization.kind: none"
        ) from None


def kind_of(config: QuantizationConfig, weight: nnx.Param) -> Kind:
    """Returns the kind of quantization for a weight."""
    parts = [part for component in config.components for part in _PARTS[component]]
    return config.kind if weight.component in parts else "none"


def product(kind: Kind, x: Array, weight: Array, inputs: int) -> Array:
    """Multiplies x [..., inputs] by a weight [inputs, outputs] of the same dtype. The result has that dtype."""
    axes = range(x.ndim - inputs, x.ndim), range(inputs)
    types = _TYPES.get(kind)
    return _multiply(x, weight, axes, types and (types.operands, types.operands))


def inputs_gradient(kind: Kind, gradient: Array, weight: Array, inputs: int) -> Array:
    """Returns the gradient [..., inputs] of x, given the gradient [..., outputs] of the product."""
    outputs = weight.ndim - inputs
    axes = range(gradient.ndim - outputs, gradient.ndim), range(inputs, weight.ndim)
    types = _TYPES.get(kind)
    return _multiply(gradient, weight, axes, types and (types.gradients, types.operands))


def weight_gradient(kind: Kind, x: Array, gradient: Array, inputs: int) -> Array:
    """Returns the gradient [inputs, outputs] of a weight, summed over all slots."""
    slots = range(x.ndim - inputs)
    types = _TYPES.get(kind)
    used = (types.operands, types.gradients) if types and types.of_weights else None
    return _multiply(x, gradient, (slots, slots), used)


def _multiply(left: Array, right: Array, axes: tuple[Axes, Axes], types: tuple[Any, Any] | None) -> Array:
    """Contracts pairs of axes. `types` are the dtypes to quantize the operands to; None: they are not quantized."""
    # Without patches, operands are empty.
    if types is None or not left.size or not right.size:
        return jnp.tensordot(left, right, (tuple(axes[0]), tuple(axes[1])))
    import qwix

    operands = [
        qwix.quantize(
            array.astype(jnp.float32), kind, channelwise_axes=[axis for axis in range(array.ndim) if axis not in summed]
        )
        for array, kind, summed in zip((left, right), types, axes, strict=True)
    ]
    found = qwix.dot_general(*operands, ((tuple(axes[0]), tuple(axes[1])), ((), ())))
    return found.astype(left.dtype)


def quantized_dense(config: QuantizationConfig, plain: Dense) -> Dense:
    """Returns the quantized `Dense` for one device. Components that are not quantized use `plain`."""

    def multiply(x: Any, *weights: nnx.Param) -> Any:
        kind = kind_of(config, weights[0])
        if kind == "none":
            return plain(x, *weights)
        inputs, values = weights[0].inputs, tuple(weight[...] for weight in weights)
        arrays, tree = jax.tree.flatten(x)
        found = [_products(kind, inputs, array, values) for array in arrays]
        return one_or_all(tuple(jax.tree.unflatten(tree, map(named, each)) for each in zip(*found, strict=True)))

    return multiply


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _products(kind: Kind, inputs: int, x: Array, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(product(kind, x, weight.astype(x.dtype), inputs) for weight in weights)


def _forward(kind: Kind, inputs: int, x: Array, weights: tuple[Array, ...]) -> tuple:
    return _products(kind, inputs, x, weights), (x, weights)


def _backward(kind: Kind, inputs: int, saved: tuple, gradients: tuple[Array, ...]) -> tuple:
    x, weights = saved
    pairs = list(zip(gradients, weights, strict=True))
    d_x = reduce(jnp.add, (inputs_gradient(kind, each, weight.astype(x.dtype), inputs) for each, weight in pairs))
    return d_x, tuple(weight_gradient(kind, x, each, inputs).astype(weight.dtype) for each, weight in pairs)


_products.defvjp(_forward, _backward)
