"""Assigns the rows of a batch to the processes of a mesh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from solo.config import ConfigError
from solo.sharding.axes import ROW_AXES, row_shards

_LIMB = 32


@dataclass(frozen=True)
class RowShare:
    """This process loads rows [index * B / count, (index + 1) * B / count) of every batch.

    The positions of its devices in the mesh determine which rows of the global array they become.

    first  whether this is the first process with these rows; the others have other slots or heads of the same rows
    """

    index: int
    count: int
    first: bool


def row_share(mesh: Mesh) -> RowShare:
    """Returns this process's share of the rows.

    Raises:
        ConfigError: the processes have different numbers of rows, or rows that overlap only partially.
    """
    if not mesh.is_multi_process:
        return RowShare(0, 1, True)
    held = process_rows(mesh.devices)
    shares = sorted(set(held.values()), key=min)
    rows = sum(len(share) for share in shares)
    if len({len(share) for share in shares}) > 1 or rows != row_shards(mesh.shape):
        shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
        raise ConfigError(
            f"mesh: with {shape} the rows of the processes overlap in part or differ in number; let the devices of a"
            " host hold whole rows, or share all of their rows with other hosts"
        )
    me = jax.process_index()
    first = min(process for process, other in held.items() if other == held[me])
    return RowShare(shares.index(held[me]), len(shares), first == me)


def process_rows(devices: np.ndarray) -> dict[int, frozenset[int]]:
    """Returns process -> the row shards of its devices. `devices` is the array of a mesh's devices."""
    rows = devices.reshape(prod(devices.shape[: len(ROW_AXES)]), -1)
    held: dict[int, set[int]] = {}
    for number, row in enumerate(rows):
        for device in row:
            held.setdefault(device.process_index, set()).add(number)
    return {process: frozenset(numbers) for process, numbers in held.items()}


def summed(counts: Sequence[int], share: RowShare, mesh: Mesh) -> Callable[[], list[int]]:
    """Sum non-negative integers over the processes, counting each row of the batch once.

    The sum is dispatched immediately, before the next step. Returns a function that waits for the result.
    """
    if not mesh.is_multi_process:
        return lambda: list(counts)
    places = len(mesh.local_devices)
    # By default, jax has no 64-bit integers, so each count is sent as two 32-bit halves.
    mine = np.zeros((places, len(counts), 2), np.uint32)
    if share.first:
        mine[0] = [divmod(int(count), 1 << _LIMB) for count in counts]
    spread = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    shape = (mesh.size, *mine.shape[1:])
    everywhere = replicated(jax.make_array_from_process_local_data(spread, mine, shape), mesh)

    def total() -> list[int]:
        halves = np.asarray(everywhere).astype(object)
        return [int((high << _LIMB) + low) for high, low in halves.sum(axis=0)]

    return total


def replicated(tree: Any, mesh: Mesh) -> Any:
    """Replicates arrays on every device, so that every process can read them. All processes must call it."""
    return _everywhere(mesh)(tree)


def on_host(tree: Any, mesh: Mesh) -> Any:
    """Returns a tree of arrays on a mesh as numpy arrays, in every process. Replicates one array at a time."""
    if not mesh.is_multi_process:
        return jax.device_get(tree)
    return jax.tree.map(lambda array: np.asarray(replicated(array, mesh)), tree)


@cache
def _everywhere(mesh: Mesh) -> Any:
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
