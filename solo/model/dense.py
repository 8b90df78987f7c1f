"""Products of hidden states with weights.

`dense(x, weight)` reads like the formula wherever it runs. On a mesh `solo.sharding.dense` takes its place: it gathers
the weights and reduces their gradients.
"""

from __future__ import annotations

from typing import Any, Protocol, overload

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

# The name of every product's output, so that a rematerialisation policy can save it.
PRODUCT = "product"


class Dense(Protocol):
    """Multiply by weights whose first `inputs` axes are summed over.

    x is an array [B, ., inputs], or a pytree of such arrays that the same weights apply to. It is multiplied by one
    weight, or by several that read the same inputs. With several, the result is a tuple with one product for each.
    Weights are cast to the dtype of x.
    """

    @overload
    def __call__(self, x: Any, weight: nnx.Param, /) -> Any: ...

    @overload
    def __call__(self, x: Any, weight: nnx.Param, /, *weights: nnx.Param) -> tuple[Any, ...]: ...


def dense(x: Any, *weights: nnx.Param) -> Any:
    """`Dense` on one device."""

    def product(weight: nnx.Param) -> Any:
        value, inputs = weight[...], weight.inputs
        return jax.tree.map(lambda part: named(jnp.tensordot(part, value.astype(part.dtype), inputs)), x)

    return one_or_all(tuple(product(weight) for weight in weights))


def named(product: jax.Array) -> jax.Array:
    """Returns the same values, named `PRODUCT`."""
    return checkpoint_name(product, PRODUCT)


def one_or_all(products: tuple[Any, ...]) -> Any:
    """Returns the single product, or the tuple of all products if there are several."""
    return products[0] if len(products) == 1 else products


def add_bias(x: Any, bias: nnx.Param | None) -> Any:
    """Add a bias, unless it is None, over the last axes of x, an array or a pytree of arrays."""
    return x if bias is None else jax.tree.map(lambda part: part + bias[...].astype(part.dtype), x)
