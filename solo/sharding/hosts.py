"""What of a batch belongs to which process, where a mesh spans several."""

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
from solo.sharding.mesh import TABLE

_LIMB = 32


@dataclass(frozen=True)
class RowShare:
    """Rows [index * B / count, (index + 1) * B / count) of every batch are this process's to load.

    first  whether it is the first process with these rows: the others hold other slots or heads of them
    """

    index: int
    count: int
    first: bool


def row_share(mesh: Mesh) -> RowShare:
    """This process's share of the rows.

    Raises:
        ConfigError: its devices do not hold neighbouring rows, or its rows overlap another process's.
    """
    if not mesh.is_multi_process:
        return RowShare(0, 1, True)
    rows = prod(mesh.shape[axis] for axis in TABLE["rows"])
    sharding = NamedSharding(mesh, PartitionSpec(TABLE["rows"]))
    held: dict[int, set[int]] = {}
    device: Any
    for device, (part,) in sharding.devices_indices_map((rows,)).items():
        held.setdefault(device.process_index, set()).update(range(*part.indices(rows)))
    mine = held[jax.process_index()]
    start, size = min(mine), len(mine)
    even = mine == set(range(start, start + size)) and start % size == 0 and rows % size == 0
    if not even or any(mine & other and mine != other for other in held.values()):
        shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
        raise ConfigError(
            f"mesh: with {shape} the rows of process {jax.process_index()} cannot be told apart from the others';"
            " let one host's devices lie along context, tensor or neighbouring rows"
        )
    first = min(process for process, other in held.items() if other == mine)
    return RowShare(start // size, rows // size, first == jax.process_index())


def summed(counts: Sequence[int], share: RowShare, mesh: Mesh) -> Callable[[], list[int]]:
    """Sums of non-negative integers over the processes, each batch row counted once.

    The devices start at once, ahead of the step that is handed to them next; calling the result waits for them.
    """
    if not mesh.is_multi_process:
        return lambda: list(counts)
    places = len(mesh.local_devices)
    # jax has no 64-bit integers by default: two halves each.
    mine = np.zeros((places, len(counts), 2), np.uint32)
    if share.first:
        mine[0] = [divmod(int(count), 1 << _LIMB) for count in counts]
    spread = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    shape = (mesh.size, *mine.shape[1:])
    everywhere = _everywhere(mesh)(jax.make_array_from_process_local_data(spread, mine, shape))

    def total() -> list[int]:
        halves = np.asarray(everywhere).astype(object)
        return [int((high << _LIMB) + low) for high, low in halves.sum(axis=0)]

    return total


@cache
def _everywhere(mesh: Mesh) -> Any:
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
