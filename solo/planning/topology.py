"""Devices of machines that are not there: what the compilers for TPUs and NVIDIA GPUs need to know of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from solo.config import ConfigError, MeshConfig
from solo.sharding.hardware import Machine

# A chip's own cores, memory and registers as XLA's GPU compiler reads them; the numbers are those of the data sheets
# (H100 SXM, H200 SXM) and of CUDA's table of compute capabilities (9.0).
_GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: {memory}
  shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 minor: 0 }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{description}"
"""


def wraps(machine: Machine) -> tuple[bool, ...]:
    """Whether the torus closes, by dimension: 2-D slices at 16 chips a side, 3-D ones where all sides are fours."""
    if machine.topology is None:
        return ()
    sides = [int(side) for side in machine.topology.split("x")]
    if len(sides) == 2:
        return tuple(side == 16 for side in sides)
    return (all(side % 4 == 0 for side in sides),) * 3


def machine_devices(machine: Machine) -> list[Any]:
    """The devices of all slices, in jax's order, as far as compilers want to know them.

    Raises:
        ConfigError: the compiler for this kind of machine is not installed, or it does not know the machine.
    """
    import jax

    kind = machine.chip.name
    if kind == "cpu":
        return _virtual(machine.devices, jax.devices("cpu"))
    from jax.experimental.topologies import get_topology_desc

    try:
        if machine.chip.is_tpu:
            return list(get_topology_desc(**_tpu(machine)).devices)
        shape = f"{machine.slices}x{machine.hosts}x{machine.devices_per_host}"
        return list(get_topology_desc(platform="cuda", target_config=_gpu_target(machine), topology=shape).devices)
    except (RuntimeError, NotImplementedError, ImportError, ValueError) as error:
        extra = "tpu" if machine.chip.is_tpu else "cuda"
        raise ConfigError(
            f"cannot compile for {machine.name}: {str(error).splitlines()[0]}\n"
            f"its compiler comes with: pip install 'solo-vlm[{extra}]'"
        ) from None


def slice_mesh(config: MeshConfig, slices: int) -> MeshConfig:
    """The mesh on so many slices: where `replica` is left at 1 it becomes their number.

    Raises:
        ConfigError: another axis would cross the data-centre network.
    """
    replica = slices if config.replica == 1 else config.replica
    if replica % slices and replica != -1:
        raise ConfigError(
            f"mesh.replica {replica} is no multiple of {slices} slices: another axis would have to cross the network"
            f" between them; set mesh.replica={slices}"
        )
    return config.model_copy(update={"replica": replica})


def _virtual(count: int, devices: Sequence[Any]) -> list[Any]:
    if len(devices) < count:
        raise ConfigError(
            f"this process has {len(devices)} CPU devices, not {count}; start it with"
            f" XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return list(devices[:count])


def _tpu(machine: Machine) -> dict[str, Any]:
    # These only keep libtpu from looking for, and complaining about, hardware.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    # It is a compiler here: that another process compiles too does no harm.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    closed = wraps(machine)
    options: dict[str, Any] = {
        "platform": "tpu",
        "topology_name": machine.topology_name,
        "chips_per_host_bounds": machine.chips_per_host_bounds,
        "wrap": (*closed, *[False] * (3 - len(closed))),
        **machine.chip.topology_options,
    }
    if machine.slices > 1:
        options["num_slices"] = machine.slices
    return options


def _gpu_target(machine: Machine) -> str:
    chip = machine.chip
    if chip.name not in ("h100", "h200"):
        raise ConfigError(f"no description of {chip.name} for the compiler; there are h100 and h200")
    return _GPU.format(bandwidth=int(chip.memory_bandwidth or 0), memory=chip.memory, description=chip.device_kinds[0])
