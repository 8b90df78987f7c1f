"""`solo.model.dense` on a mesh: each device multiplies its own slots.

The products use `shard_map`, because the partitioner would reduce a weight's gradient once for every product with that
weight, which is twice if both regions share it. The partitioner also splits products into many small steps that pass
weights between devices.

    forward    all-gather the weight over fsdp; multiply; sum over tensor if the inputs are sharded over it
    backward   the same for the gradients of the inputs. A weight's gradient is summed over the arrays on the device,
               reduce-scattered over fsdp, and summed over the other axes that shard rows and slots

Collectives run in the dtype of the hidden states. Gathered weights are not saved; the backward pass gathers them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from solo.model.dense import named, one_or_all
from solo.model.quantized import Kind, inputs_gradient, product, weight_gradient
from solo.sharding.mesh import TABLE, partition

_BATCH = (*TABLE["rows"], *TABLE["slots"])
_SLOTS = (TABLE["rows"], TABLE["slots"])

# The arrays that one set of weights applies to, each [B, ., inputs].
Arrays = tuple[jax.Array, ...]


class Layout(NamedTuple):
    """The sharding of one weight, the number of its input axes, and the type of its products."""

    spec: PartitionSpec
    inputs: int
    kind: Kind

    def features(self, outputs: bool) -> PartitionSpec:
        """Returns the spec of an array [rows, slots, inputs or outputs], without the axes that shard rows."""
        kept = [None if _names(entry) & set(_BATCH) else entry for entry in self.spec]
        return PartitionSpec(*_SLOTS, *(kept[self.inputs :] if outputs else kept[: self.inputs]))

    def summed(self, mesh: Mesh, outputs: bool) -> tuple[str, ...]:
        """Returns the mesh axes that shard the inputs (or outputs), over which partial products must be summed."""
        found = set().union(*map(_names, self.features(outputs)[len(_SLOTS) :]))
        return _in_use(mesh, found)


def _specs(layouts: tuple[Layout, ...], arrays: int) -> tuple[tuple, tuple, tuple]:
    """Returns the specs of the arrays, of the weights, and of the products [weight][array]."""
    return (
        (layouts[0].features(outputs=False),) * arrays,
        tuple(layout.spec for layout in layouts),
        tuple((layout.features(outputs=True),) * arrays for layout in layouts),
    )


def dense_on(mesh: Mesh, x: Any, *weights: nnx.Param, kind: Kind = "none") -> Any:
    """`solo.model.dense.dense` for arrays whose rows and slots are sharded over the mesh.

    With a `kind` of `solo.model.quantized`, each device quantises its own arrays and the gathered weights.
    """
    arrays, structure = jax.tree.flatten(x)
    layouts = tuple(Layout(partition(each.axes, each.shape, mesh), each.inputs, kind) for each in weights)
    products = _multiply(mesh, layouts, tuple(arrays), tuple(each[...] for each in weights))
    # Rematerialisation policies cannot see names inside a shard_map, so its outputs are named here.
    return one_or_all(tuple(jax.tree.unflatten(structure, map(named, each)) for each in products))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _multiply(
    mesh: Mesh, layouts: tuple[Layout, ...], arrays: Arrays, values: tuple[jax.Array, ...]
) -> tuple[Arrays, ...]:
    array_specs, weight_specs, product_specs = _specs(layouts, len(arrays))

    def local(arrays: Arrays, values: tuple[jax.Array, ...]) -> tuple[Arrays, ...]:
        products = []
        for layout, value in zip(layouts, values, strict=True):
            whole, over = gathered(mesh, layout, value, arrays[0].dtype), layout.summed(mesh, outputs=False)
            products.append(tuple(_summed(product(layout.kind, array, whole, layout.inputs), over) for array in arrays))
        return tuple(products)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(array_specs, weight_specs),
        out_specs=product_specs,
        check_vma=False,
    )(arrays, values)


def _forward(
    mesh: Mesh, layouts: tuple[Layout, ...], arrays: Arrays, values: tuple[jax.Array, ...]
) -> tuple[tuple[Arrays, ...], tuple[Arrays, tuple[jax.Array, ...]]]:
    return _multiply(mesh, layouts, arrays, values), (arrays, values)


def _backward(
    mesh: Mesh,
    layouts: tuple[Layout, ...],
    kept: tuple[Arrays, tuple[jax.Array, ...]],
    gradients: tuple[Arrays, ...],
) -> tuple[Arrays, tuple[jax.Array, ...]]:
    arrays, values = kept
    array_specs, weight_specs, product_specs = _specs(layouts, len(arrays))

    def local(
        arrays: Arrays, values: tuple[jax.Array, ...], gradients: tuple[Arrays, ...]
    ) -> tuple[Arrays, tuple[jax.Array, ...]]:
        wholes = [gathered(mesh, *each, arrays[0].dtype) for each in zip(layouts, values, strict=True)]
        back = tuple(_inputs_gradient(mesh, layouts, wholes, own) for own in zip(*gradients, strict=True))
        return back, tuple(
            _reduced(mesh, layout, _weight_gradient(layout, arrays, own)).astype(value.dtype)
            for layout, value, own in zip(layouts, values, gradients, strict=True)
        )

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(array_specs, weight_specs, product_specs),
        out_specs=(array_specs, weight_specs),
        check_vma=False,
    )(arrays, values, gradients)


_multiply.defvjp(_forward, _backward)


def _inputs_gradient(
    mesh: Mesh, layouts: tuple[Layout, ...], wholes: Sequence[jax.Array], gradients: Arrays
) -> jax.Array:
    """Returns the gradient of an array, given the gradients of its products with all weights."""
    found = [
        inputs_gradient(layout.kind, gradient, whole, layout.inputs)
        for layout, whole, gradient in zip(layouts, wholes, gradients, strict=True)
    ]
    # All weights of a call have the same sharding.
    return _summed(reduce(jnp.add, found), layouts[0].summed(mesh, outputs=True))


def _weight_gradient(layout: Layout, arrays: Arrays, gradients: Arrays) -> jax.Array:
    """Returns the contribution of the device's slots to a weight's gradient, [inputs, outputs]."""
    pairs = zip(arrays, gradients, strict=True)
    return reduce(jnp.add, (weight_gradient(layout.kind, *each, layout.inputs) for each in pairs))


def gathered(mesh: Mesh, layout: Layout, value: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns the device's shard of a weight, gathered along the axes that shard rows."""
    value = value.astype(dtype)
    for dimension, entry in enumerate(layout.spec):
        if over := _in_use(mesh, _names(entry) & set(_BATCH)):
            value = jax.lax.all_gather(value, over, axis=dimension, tiled=True)
    return value


def _reduced(mesh: Mesh, layout: Layout, gradient: jax.Array) -> jax.Array:
    """Returns the device's shard of a weight's gradient, summed over all rows and slots."""
    rest = set(_BATCH)
    for dimension, entry in enumerate(layout.spec):
        if over := _in_use(mesh, _names(entry) & set(_BATCH)):
            gradient = jax.lax.psum_scatter(gradient, over, scatter_dimension=dimension, tiled=True)
            rest -= set(over)
    return _summed(gradient, _in_use(mesh, rest))


def _summed(x: jax.Array, over: tuple[str, ...]) -> jax.Array:
    return jax.lax.psum(x, over) if over else x


def _names(entry: str | tuple[str, ...] | None) -> set[str]:
    return set() if entry is None else {entry} if isinstance(entry, str) else set(entry)


def _in_use(mesh: Mesh, names: Iterable[str]) -> tuple[str, ...]:
    """Returns those of the named axes that have more than one device, in the order of the mesh."""
    wanted = set(names)
    return tuple(name for name in mesh.axis_names if name in wanted and mesh.shape[name] > 1)
