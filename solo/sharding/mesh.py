"""The device mesh, and the table that maps logical axes to mesh axes.

The same table is used for any number of devices. A dimension that a mesh axis does not divide is replicated over that
axis, so that small models run on any mesh. `solo plan` and `solo train` report such dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from solo.batch import Batch
from solo.config import MeshConfig
from solo.model.declare import ParameterSpec
from solo.sharding.axes import AXES, ROW_AXES, mesh_sizes, slices_spanned

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
    """Arrange devices on the five axes.

    On TPUs, the axes follow the torus, and the outermost axes span the slices if there are several. Other devices keep
    jax's order. `solo plan` also uses this function.

    Args:
        config: sizes of the axes.
        devices: default: all devices.

    Raises:
        ConfigError: the axis sizes do not multiply to the number of devices, or the axes cannot span the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(config, len(devices))
    return Mesh(_arranged(devices, sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(devices: Sequence[Any], sizes: Mapping[str, int]) -> np.ndarray:
    shape = tuple(sizes.values())
    if devices[0].platform != "tpu" or len(devices) == 1:
        return np.asarray(devices).reshape(shape)
    slices = len({getattr(device, "slice_index", None) for device in devices})
    if slices == 1:
        return create_device_mesh(shape, devices, allow_split_physical_axes=True)
    across = tuple(slices_spanned(sizes, slices).values())
    within = [size // spanned for size, spanned in zip(shape, across, strict=True)]
    return create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def partition(axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """Returns the partition of an array with these logical axes."""
    entries: list[tuple[str, ...] | None] = []
    for axis, size in zip(axes, shape, strict=True):
        names = TABLE[axis] if axis else ()
        entries.append(names if names and size % _extent(mesh, names) == 0 else None)
    return PartitionSpec(*entries)


def parameter_shardings(specs: Mapping[str, ParameterSpec], mesh: Mesh) -> dict[str, NamedSharding]:
    """Returns path -> sharding of every parameter."""
    return {path: NamedSharding(mesh, partition(spec.axes, spec.shape, mesh)) for path, spec in specs.items()}


def shardings_like(tree: Any, specs: Mapping[str, ParameterSpec], mesh: Mesh) -> Any:
    """Returns the shardings of an optimizer state. A leaf under a parameter's path is sharded like the parameter.

    A leaf may also have the shape of the parameter's stacked matrices (`ParameterSpec.matrix_axes`), or of their rows
    or columns (`optax.FactoredState`). It is then sharded over its remaining axes. All other leaves are replicated.
    """
    by_path, replicated = parameter_shardings(specs, mesh), NamedSharding(mesh, PartitionSpec())

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
        name = next((name for name in reversed(names) if name in specs), None)
        if name is None:
            return replicated
        if leaf.shape == specs[name].shape:
            return by_path[name]
        sizes, entries = _as_matrices(specs[name], by_path[name].spec)
        removed = {"v_row": -1, "v_col": -2}.get(names[-2] if len(names) > 1 else "")
        if removed and specs[name].matrix_axes[1]:
            # optax sums rows over the larger side, and columns over the smaller one.
            side = len(sizes) - 2 + int(np.argsort(sizes[-2:])[removed])
            sizes, entries = [*sizes[:side], *sizes[side + 1 :]], [*entries[:side], *entries[side + 1 :]]
        return NamedSharding(mesh, PartitionSpec(*entries)) if leaf.shape == tuple(sizes) else replicated

    return jax.tree_util.tree_map_with_path(place, tree)


def _as_matrices(spec: ParameterSpec, partition: PartitionSpec) -> tuple[list[int], list[Any]]:
    """Returns the shape of a parameter as stacked matrices, and the mesh axes of each dimension."""
    stack, *sides = spec.matrix_axes
    merged = [*((axis,) for axis in stack), *(axes for axes in sides if axes)]
    return [prod(spec.shape[axis] for axis in axes) for axes in merged], [partition[axes[0]] for axes in merged]


def batch_shardings(mesh: Mesh) -> Batch:
    """Returns the shardings of a batch: rows over the row axes, slots of patches and text over the context axis."""
    rows = NamedSharding(mesh, PartitionSpec(TABLE["rows"]))
    slots = NamedSharding(mesh, PartitionSpec(TABLE["rows"], TABLE["slots"]))
    return Batch(*[rows] * len(Batch._fields))._replace(patches=slots, patch_grid=slots, text=slots)


def device_batch(batch: Batch, mesh: Mesh, shares: int = 1) -> Batch:
    """Move this process's rows of a batch (numpy) to its devices, as a part of a global batch.

    Args:
        batch: the rows of this process, as given by `row_share`.
        mesh: the mesh of the global batch.
        shares: rows of the global batch divided by the rows of this process.
    """
    shardings = batch_shardings(mesh)
    if not mesh.is_multi_process:
        return jax.device_put(batch, shardings)

    def place(sharding: NamedSharding, x: np.ndarray) -> jax.Array:
        # With a global shape, every process provides all other dimensions in full.
        return jax.make_array_from_process_local_data(sharding, x, (x.shape[0] * shares, *x.shape[1:]))

    return Batch(*map(place, shardings, batch))


def place_rows(x: np.ndarray, mesh: Mesh, shares: int = 1) -> jax.Array:
    """Move this process's rows of an array (numpy) to its devices; see `device_batch`."""
    rows = NamedSharding(mesh, PartitionSpec(TABLE["rows"]))
    return jax.make_array_from_process_local_data(rows, x, (x.shape[0] * shares, *x.shape[1:]))


def _extent(mesh: Mesh, names: Sequence[str]) -> int:
    return prod(mesh.shape[name] for name in names)
