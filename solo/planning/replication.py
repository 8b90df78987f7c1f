"""Finds parameters that a mesh replicates because it does not divide one of their dimensions, and their cost."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod

from solo.config import Config, ConfigError
from solo.model.parameters import ModelDefinition
from solo.planning.memory import format_bytes
from solo.sharding.axes import mesh_sizes
from solo.sharding.mesh import TABLE

# Replication that costs more than this share of a device's memory is refused.
MAX_REPLICATED_SHARE = 0.1
# A float32 parameter and Adam's two moments.
_BYTES_PER_PARAMETER = 12


@dataclass(frozen=True)
class Replication:
    """A dimension that is replicated over mesh axes instead of sharded.

    dimension   logical axis and its size, such as ("embed", 4096)
    mesh_axis   mesh axis and its size, such as ("fsdp", 192)
    parameters  number of arrays with that dimension
    cost        bytes per device in excess of an even shard, including the optimizer's moments
    """

    dimension: tuple[str, int]
    mesh_axis: tuple[str, int]
    parameters: int
    cost: int

    def __str__(self) -> str:
        (name, size), (axis, extent) = self.dimension, self.mesh_axis
        return (
            f"mesh.{axis} {extent} does not divide {name} {size:,}: {self.parameters} parameters are replicated over"
            f" {axis}, which costs {format_bytes(self.cost)} per device"
        )


def replications(definition: ModelDefinition, sizes: dict[str, int]) -> list[Replication]:
    """Returns the dimensions that a mesh of these axis sizes does not divide, the most expensive first."""
    found: dict[tuple[tuple[str, int], tuple[str, int]], list[int]] = {}
    for spec in definition.specs.values():
        extents = [prod(sizes[axis] for axis in TABLE[name]) for name in spec.axes]
        shards = prod(extent for size, extent in zip(spec.shape, extents, strict=True) if size % extent == 0)
        held = prod(spec.shape) // shards * _BYTES_PER_PARAMETER
        for name, size, extent in zip(spec.axes, spec.shape, extents, strict=True):
            if size % extent:
                place = ((name, size), (" x ".join(TABLE[name]), extent))
                found.setdefault(place, []).append(held - held // extent)
    listed = [Replication(*place, len(costs), sum(costs)) for place, costs in found.items()]
    return sorted(listed, key=lambda each: -each.cost)


def check_replication(config: Config, definition: ModelDefinition, devices: int, memory: int | None) -> list[str]:
    """Returns a line for every dimension that is replicated instead of sharded.

    Args:
        config: the run.
        definition: its model.
        devices: number of devices of the mesh.
        memory: bytes of a device's memory; None: unknown, nothing is refused.

    Raises:
        ConfigError: replication costs more than `MAX_REPLICATED_SHARE` of a device's memory.
    """
    found = replications(definition, mesh_sizes(config.mesh, devices))
    cost = sum(each.cost for each in found)
    if memory is None or cost <= MAX_REPLICATED_SHARE * memory:
        return [str(each) for each in found]
    (name, size), (axis, extent) = found[0].dimension, found[0].mesh_axis
    even = gcd(size, extent)
    raise ConfigError(
        f"mesh: {'; '.join(map(str, found))}\nthat is more than {MAX_REPLICATED_SHARE:.0%} of the"
        f" {format_bytes(memory)} of a device; set mesh.{axis}={even}, which divides {name} {size:,}"
        f"{f', and mesh.data={extent // even} for the remaining devices' if axis == 'fsdp' else ''}"
    )
