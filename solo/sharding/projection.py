"""Products with weights over a mesh, each device for its own slots.

Written out, because the partitioner, left alone, sums the gradient of a weight over the devices once for every product
that the weight is in: twice where both regions share it. It also cuts products into steps between which it passes
weights on, and, with small matrices, many of them.

    forward    gather the weight over fsdp; product; sum over tensor where the inputs are shared out there
    backward   the same for the inputs' gradients. The weight's gradient is summed over the parts on the device, then
               scattered over fsdp, and summed over the other axes that share out rows and slots

What travels is in the dtype of the parts. Weights are gathered again for the backward pass, never kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from solo.model.modules import Parts, Weight
from solo.sharding.mesh import TABLE, partition

_BATCH = (*TABLE["rows"], *TABLE["slots"])
_SLOTS = (TABLE["rows"], TABLE["slots"])


class _Layout(NamedTuple):
    """Where one weight lies: its partition, and how many of its axes are inputs."""

    spec: PartitionSpec
    inputs: int

    def features(self, outputs: bool) -> PartitionSpec:
        """Of an array [rows, slots, inputs or outputs]: as the weight, but whole where that is shared out by rows."""
        kept = [None if _names(entry) & set(_BATCH) else entry for entry in self.spec]
        return PartitionSpec(*_SLOTS, *(kept[self.inputs :] if outputs else kept[: self.inputs]))

    def summed(self, mesh: Mesh, outputs: bool) -> tuple[str, ...]:
        """Mesh axes over which a product that sums over the inputs (or outputs) is yet to be summed."""
        found = set().union(*map(_names, self.features(outputs)[len(_SLOTS) :]))
        return _in_use(mesh, found)


def _specs(layouts: tuple[_Layout, ...], parts: int) -> tuple[tuple, tuple, tuple]:
    """Partitions of the parts, of the weights, and of the products as in `Project`."""
    return (
        (layouts[0].features(outputs=False),) * parts,
        tuple(layout.spec for layout in layouts),
        tuple((layout.features(outputs=True),) * parts for layout in layouts),
    )


def project_on(mesh: Mesh, parts: Parts, weights: Sequence[Weight]) -> tuple[Parts, ...]:
    """`local_project` for parts whose rows and slots are shared out over the mesh."""
    layouts = tuple(_Layout(partition(each.axes, each.value.shape, mesh), each.inputs) for each in weights)
    return _project(mesh, layouts, parts, tuple(each.value for each in weights))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _project(
    mesh: Mesh, layouts: tuple[_Layout, ...], parts: Parts, values: tuple[jax.Array, ...]
) -> tuple[Parts, ...]:
    of_inputs, of_weights, of_outputs = _specs(layouts, len(parts))

    def local(parts: Parts, values: tuple[jax.Array, ...]) -> tuple[Parts, ...]:
        products = []
        for layout, value in zip(layouts, values, strict=True):
            whole, over = _gathered(mesh, layout, value, parts[0].dtype), layout.summed(mesh, outputs=False)
            products.append(tuple(_summed(jnp.tensordot(part, whole, layout.inputs), over) for part in parts))
        return tuple(products)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(of_inputs, of_weights),
        out_specs=of_outputs,
        check_vma=False,
    )(parts, values)


def _forward(
    mesh: Mesh, layouts: tuple[_Layout, ...], parts: Parts, values: tuple[jax.Array, ...]
) -> tuple[tuple[Parts, ...], tuple[Parts, tuple[jax.Array, ...]]]:
    return _project(mesh, layouts, parts, values), (parts, values)


def _backward(
    mesh: Mesh,
    layouts: tuple[_Layout, ...],
    kept: tuple[Parts, tuple[jax.Array, ...]],
    gradients: tuple[Parts, ...],
) -> tuple[Parts, tuple[jax.Array, ...]]:
    parts, values = kept
    of_inputs, of_weights, of_outputs = _specs(layouts, len(parts))

    def local(
        parts: Parts, values: tuple[jax.Array, ...], gradients: tuple[Parts, ...]
    ) -> tuple[Parts, tuple[jax.Array, ...]]:
        wholes = [_gathered(mesh, *each, parts[0].dtype) for each in zip(layouts, values, strict=True)]
        back = tuple(_inputs_gradient(mesh, layouts, wholes, of_part) for of_part in zip(*gradients, strict=True))
        return back, tuple(
            _reduced(mesh, layout, _weight_gradient(parts, of_weight)).astype(value.dtype)
            for layout, value, of_weight in zip(layouts, values, gradients, strict=True)
        )

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(of_inputs, of_weights, of_outputs),
        out_specs=(of_inputs, of_weights),
        check_vma=False,
    )(parts, values, gradients)


_project.defvjp(_forward, _backward)


def _inputs_gradient(
    mesh: Mesh, layouts: tuple[_Layout, ...], wholes: Sequence[jax.Array], gradients: Parts
) -> jax.Array:
    """Of one part, from the gradients of its products with every weight."""
    found = []
    for layout, whole, gradient in zip(layouts, wholes, gradients, strict=True):
        outputs = whole.ndim - layout.inputs
        of_gradient, of_weight = range(gradient.ndim - outputs, gradient.ndim), range(layout.inputs, whole.ndim)
        found.append(jnp.tensordot(gradient, whole, (tuple(of_gradient), tuple(of_weight))))
    # Weights of one call are shared out alike.
    return _summed(reduce(jnp.add, found), layouts[0].summed(mesh, outputs=True))


def _weight_gradient(parts: Parts, gradients: Parts) -> jax.Array:
    """[inputs, outputs], of the device's slots."""
    products = [
        jnp.tensordot(part, gradient, ((0, 1), (0, 1))) for part, gradient in zip(parts, gradients, strict=True)
    ]
    return reduce(jnp.add, products)


def _gathered(mesh: Mesh, layout: _Layout, value: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The device's share of a weight, whole along the axes that share out rows."""
    value = value.astype(dtype)
    for dimension, entry in enumerate(layout.spec):
        if over := _in_use(mesh, _names(entry) & set(_BATCH)):
            value = jax.lax.all_gather(value, over, axis=dimension, tiled=True)
    return value


def _reduced(mesh: Mesh, layout: _Layout, gradient: jax.Array) -> jax.Array:
    """A weight's gradient summed over all rows and slots, of which the device keeps its share."""
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
    """Those along which there is more than one device, in the mesh's order."""
    wanted = set(names)
    return tuple(name for name in mesh.axis_names if name in wanted and mesh.shape[name] > 1)
