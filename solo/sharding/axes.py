"""The sizes of the mesh axes, and the sharding of rows over them. This module does not import jax."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd, prod

from solo.config import ConfigError, MeshConfig, StageConfig

AXES = ("replica", "data", "fsdp", "context", "tensor")
# The axes that the rows of a batch are sharded over.
ROW_AXES = ("replica", "data", "fsdp")


def mesh_sizes(config: MeshConfig, devices: int) -> dict[str, int]:
    """Returns the size of every axis, outermost first. Raises ConfigError if they do not multiply to `devices`."""
    sizes = {axis: int(getattr(config, axis)) for axis in AXES}
    fixed = prod(size for size in sizes.values() if size > 0)
    found = {axis: max(1, devices // fixed) if size == -1 else size for axis, size in sizes.items()}
    if prod(found.values()) != devices:
        wanted = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
        raise ConfigError(f"mesh: {wanted} does not make {devices} devices; set one axis to -1 to take the rest")
    return found


def slices_spanned(sizes: Mapping[str, int], slices: int) -> dict[str, int]:
    """Returns how many slices each axis spans. Outer axes span as many as their sizes allow.

    Args:
        sizes: sizes of the mesh axes, outermost first.
        slices: number of slices of the machine. Devices within a slice are linked directly.

    Raises:
        ConfigError: the axes cannot span the slices.
    """
    spanned, left = {}, slices
    for axis, size in sizes.items():
        spanned[axis] = gcd(size, left)
        left //= spanned[axis]
    if left > 1:
        raise ConfigError(f"mesh: the axes cannot span the {slices} slices; set mesh.replica={slices}")
    return spanned


def row_shards(sizes: Mapping[str, int]) -> int:
    """Returns the number of shards of a batch's rows. `sizes` are those of the mesh axes."""
    return prod(sizes[axis] for axis in ROW_AXES)


def rows_per_shard(stage: StageConfig, sizes: Mapping[str, int]) -> int:
    """Returns the number of rows of a micro-batch on each device.

    Raises:
        ConfigError: the rows cannot be sharded evenly.
    """
    rows, shards = stage.batch_rows // stage.accumulate, row_shards(sizes)
    if rows % shards:
        raise ConfigError(
            f"stage {stage.name!r}: the {rows} rows of a micro-batch cannot be sharded evenly over {shards} devices"
            f" (mesh axes {', '.join(ROW_AXES)}); set batch_rows to a multiple of {shards * stage.accumulate}, or"
            " change accumulate or mesh"
        )
    return rows // shards


def check_slots(stage: StageConfig, patch_slots: int, text_slots: int, sizes: Mapping[str, int]) -> None:
    """Checks that the slots of a row can be sharded evenly. `sizes` are those of the mesh axes.

    Raises:
        ConfigError: the slots cannot be sharded evenly.
    """
    parts = sizes["context"]
    if patch_slots % parts or text_slots % parts:
        multiple = parts * stage.slot_multiple // gcd(parts, stage.slot_multiple)
        how = (
            f"slot_multiple={multiple}"
            if stage.patch_slots is None
            else f"patch_slots and text_slots to multiples of {parts}"
        )
        raise ConfigError(
            f"stage {stage.name!r}: the {patch_slots:,} patches and {text_slots:,} text tokens of a row cannot be"
            f" sharded evenly over mesh.context={parts}; set the stage's {how}, or change mesh.context"
        )
