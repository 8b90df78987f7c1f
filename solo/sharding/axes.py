"""The axes of a mesh and their sizes: what can be said of a mesh without jax."""

from __future__ import annotations

from math import prod

from solo.config import ConfigError, MeshConfig

AXES = ("replica", "data", "fsdp", "context", "tensor")


def mesh_sizes(config: MeshConfig, devices: int) -> dict[str, int]:
    """Devices along every axis, outermost first. Raises ConfigError where they do not multiply to so many."""
    sizes = {axis: int(getattr(config, axis)) for axis in AXES}
    fixed = prod(size for size in sizes.values() if size > 0)
    found = {axis: max(1, devices // fixed) if size == -1 else size for axis, size in sizes.items()}
    if prod(found.values()) != devices:
        wanted = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
        raise ConfigError(f"mesh: {wanted} does not make {devices} devices; set one axis to -1 to take the rest")
    return found
