"""Products for decoding single tokens on a mesh: the weights stay in place, and hidden states are communicated.

A decoding step multiplies every weight by one slot of each row. Gathering the weights over fsdp, as in
`solo.sharding.dense`, would communicate the whole model for every token. Here, each device multiplies its shard of a
weight by the rows of all devices of its fsdp group, and only hidden states are communicated:

    weight [fsdp, outputs]   all-to-all: all rows of the device's inputs; multiply; reduce-scatter the rows over fsdp
    weight [inputs, fsdp]    all-gather the rows; multiply; all-to-all: all outputs of the device's rows
    inputs over tensor       the product is also summed over tensor

Partial products are summed in float32, so that the result is rounded once, as on one device. A device never holds more
of a weight than its shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from solo.model.dense import one_or_all
from solo.sharding.mesh import TABLE, partition

_FSDP, _TENSOR = "fsdp", "tensor"
_ROWS = TABLE["rows"]
# Axes of the arrays [rows, slots, ...] before those of the features.
_LEADING = 2


def stationary_dense_on(mesh: Mesh, x: Any, *weights: nnx.Param) -> Any:
    """`solo.model.dense.dense` for arrays [B, ., inputs] whose rows are sharded over the mesh, forward only."""

    def product(weight: nnx.Param) -> Any:
        value, multiply = weight[...], partial(_multiply, mesh, weight.axes, weight.inputs)
        return jax.tree.map(lambda array: multiply(array, value).astype(array.dtype), x)

    return one_or_all(tuple(product(weight) for weight in weights))


def stationary_head_on(mesh: Mesh, x_BD: jax.Array, kernel_DV: jax.Array) -> jax.Array:
    """Multiplies the final hidden states of one slot per row by the output projection. Returns float32 [B, V]."""
    return _multiply(mesh, ("embed", "vocab"), 1, x_BD[:, None], kernel_DV)[:, 0]


def _multiply(mesh: Mesh, axes: Sequence[str | None], inputs: int, array: jax.Array, value: jax.Array) -> jax.Array:
    """Returns the float32 product [B, ., outputs] of [B, ., inputs] and a weight with these logical axes."""
    spec = partition(axes, value.shape, mesh)
    features_in, features_out = _features(spec[:inputs]), _features(spec[inputs:])
    if not array.size:
        return jnp.zeros((*array.shape[:_LEADING], *value.shape[inputs:]), jnp.float32)
    local = partial(_local, inputs, _axis_of(mesh, spec, _FSDP), _axis_of(mesh, spec[:inputs], _TENSOR) is not None)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec(_ROWS, None, *features_in), spec),
        out_specs=PartitionSpec(_ROWS, None, *features_out),
        check_vma=False,
    )(array, value)


def _local(inputs: int, fsdp: int | None, partial_over_tensor: bool, array: jax.Array, shard: jax.Array) -> jax.Array:
    """Multiplies on one device. `fsdp`: the weight's dimension that is sharded over fsdp."""
    if fsdp is None:
        rows = array
    elif fsdp < inputs:
        rows = jax.lax.all_to_all(array, _FSDP, split_axis=_LEADING + fsdp, concat_axis=0, tiled=True)
    else:
        rows = jax.lax.all_gather(array, _FSDP, axis=0, tiled=True)
    product = jax.lax.dot_general(
        rows,
        shard.astype(rows.dtype),
        ((tuple(range(_LEADING, rows.ndim)), tuple(range(inputs))), ((), ())),
        preferred_element_type=jnp.float32,
    )
    if fsdp is not None and fsdp < inputs:
        product = jax.lax.psum_scatter(product, _FSDP, scatter_dimension=0, tiled=True)
    product = jax.lax.psum(product, _TENSOR) if partial_over_tensor else product
    if fsdp is not None and fsdp >= inputs:
        place = _LEADING + fsdp - inputs
        product = jax.lax.all_to_all(product, _FSDP, split_axis=0, concat_axis=place, tiled=True)
    return product


def _features(entries: Iterable[Any]) -> list[Any]:
    """Returns the partition of an array's features: that of the weight without fsdp, since fsdp shards the rows."""
    return [None if _FSDP in (entry or ()) else entry for entry in entries]


def _axis_of(mesh: Mesh, entries: Iterable[Any], name: str) -> int | None:
    """Returns the dimension that a mesh axis shards, or None if there is none or the axis has one device."""
    found = [place for place, entry in enumerate(entries) if name in (entry or ()) and mesh.shape[name] > 1]
    return found[0] if found else None
