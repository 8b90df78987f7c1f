"""The mesh, and the one table from logical axes to mesh axes.

The same table serves one device, eight virtual ones, and a pod. A mesh axis that does not divide a dimension
is left out for that array, so that small models run on any mesh.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from solo.batch import Batch
from solo.config import MeshConfig
from solo.model.declare import ParameterSpec
from solo.sharding.axes import AXES, ROW_AXES, mesh_sizes

# Logical axis -> mesh axes. Parameters above, activations below.
TABLE: Mapping[str, tuple[str, ...]] = {
    "layers": (),
    "embed": ("fsdp",),
    "ffn": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "vocab": ("tensor",),
    "pixels": (),
    "inner": (),
    "places": (),
    "experts": (),
    "norm": (),
    "rows": ROW_AXES,
    "whole_rows": ("replica", "data"),
    "slots": ("context",),
}


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Lay devices out on the five axes.

    Raises:
        ConfigError: the axis sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = tuple(mesh_sizes(config, len(devices)).values())
    return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def partition(axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """Where an array with these logical axes lies on the mesh."""
    entries: list[tuple[str, ...] | None] = []
    for axis, size in zip(axes, shape, strict=True):
        names = TABLE[axis] if axis else ()
        entries.append(names if names and size % _extent(mesh, names) == 0 else None)
    return PartitionSpec(*entries)


def parameter_shardings(specs: Mapping[str, ParameterSpec], mesh: Mesh) -> dict[str, NamedSharding]:
    """Path -> sharding of every parameter."""
    return {path: NamedSharding(mesh, partition(spec.axes, spec.shape, mesh)) for path, spec in specs.items()}


def shardings_like(tree: Any, by_path: Mapping[str, NamedSharding], mesh: Mesh) -> Any:
    """Shardings of an optimizer state: a leaf filed under a parameter's path lies where the parameter lies."""
    replicated = NamedSharding(mesh, PartitionSpec())

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [str(getattr(key, "key", "")) for key in path]
        return next((by_path[name] for name in reversed(names) if name in by_path and leaf.ndim), replicated)

    return jax.tree_util.tree_map_with_path(place, tree)


def batch_shardings(mesh: Mesh) -> Batch:
    """Rows over the data axes; the slots of patches and text over the context axis."""
    rows = NamedSharding(mesh, PartitionSpec(TABLE["rows"]))
    slots = NamedSharding(mesh, PartitionSpec(TABLE["rows"], TABLE["slots"]))
    return Batch(*[rows] * len(Batch._fields))._replace(patches=slots, patch_grid=slots, text=slots)


def device_batch(batch: Batch, mesh: Mesh, shares: int = 1) -> Batch:
    """Bring this process's rows of a batch (numpy) to the devices, as a global batch of `shares` times as many."""
    shardings = batch_shardings(mesh)
    if not mesh.is_multi_process:
        return jax.device_put(batch, shardings)

    def place(sharding: NamedSharding, x: np.ndarray) -> jax.Array:
        # With its whole shape said, every dimension but the first is taken as held in full by every process.
        return jax.make_array_from_process_local_data(sharding, x, (x.shape[0] * shares, *x.shape[1:]))

    return Batch(*map(place, shardings, batch))


def _extent(mesh: Mesh, names: Sequence[str]) -> int:
    return prod(mesh.shape[name] for name in names)
