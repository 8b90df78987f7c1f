"""Device descriptions of absent machines, for the TPU and NVIDIA GPU compilers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from solo.chips import CHIPS
from solo.config import ConfigError, MeshConfig
from solo.libtpu import quiet_libtpu
from solo.machines import Machine
from solo.sharding.axes import mesh_sizes, slices_spanned

# Versions of CUDA and cuDNN that XLA compiles for.
_GPU_TARGET = """
gpu_device_info {{
{info}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{description}"
"""


def wraps(machine: Machine) -> tuple[bool, ...]:
    """Returns for each dimension whether the torus is closed.

    2-D slices wrap around along sides of 16 chips; 3-D slices do if all sides are multiples of four.
    """
    if machine.topology is None:
        return ()
    sides = [int(side) for side in machine.topology.split("x")]
    if len(sides) == 2:
        return tuple(side == 16 for side in sides)
    return (all(side % 4 == 0 for side in sides),) * 3


def machine_devices(machine: Machine) -> list[Any]:
    """Returns descriptions of the devices of all slices, in jax's order.

    Raises:
        ConfigError: the compiler for this kind of machine is not installed, or it does not know the machine.
    """
    import jax

    if machine.chip.platform == "cpu":
        return _virtual(machine.devices, jax.devices("cpu"))
    from jax.experimental.topologies import get_topology_desc

    # These raise errors that name the missing fact.
    options = _tpu(machine) if machine.chip.is_tpu else _gpu(machine)
    try:
        return list(get_topology_desc(**options).devices)
    except (RuntimeError, NotImplementedError, ImportError, ValueError) as error:
        extra = "tpu" if machine.chip.is_tpu else "cuda"
        raise ConfigError(
            f"cannot compile for {machine.name}: {str(error).splitlines()[0]}\n"
            f"its compiler comes with: pip install 'solo-vlm[{extra}]'"
        ) from None


def slice_mesh(config: MeshConfig, machine: Machine) -> MeshConfig:
    """Returns the mesh for a machine's slices: itself if `replica` and `data` span them, else with `replica` set.

    Raises:
        ConfigError: another axis would cross the data-centre network.
    """
    slices = machine.slices
    try:
        spanned = slices_spanned(mesh_sizes(config, machine.devices), slices)
        if spanned["replica"] * spanned["data"] == slices:
            return config
    except ConfigError:
        pass  # with another `replica`, the axes may fit
    if config.replica != 1:
        raise ConfigError(
            f"mesh.replica {config.replica} x mesh.data {config.data} is not a multiple of {slices} slices, so another"
            f" axis would cross the network between them; set mesh.replica={slices}"
        )
    return config.model_copy(update={"replica": slices})


def _virtual(count: int, devices: Sequence[Any]) -> list[Any]:
    if len(devices) < count:
        raise ConfigError(
            f"this process has {len(devices)} CPU devices, not {count}; start it with"
            f" XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return list(devices[:count])


def _tpu(machine: Machine) -> dict[str, Any]:
    if machine.topology_name is None or machine.chips_per_host_bounds is None:
        missing = "topology_prefix" if machine.topology_name is None else f"bounds of {machine.chips_per_host} chips"
        raise ConfigError(f"cannot compile for {machine.name}: {missing} unknown (solo/chips/tpu.py, solo/machines.py)")
    quiet_libtpu()
    # Several processes may load libtpu at the same time if they only compile.
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


def _gpu(machine: Machine) -> dict[str, Any]:
    chip = machine.chip
    if chip.gpu_target is None or chip.memory is None or chip.memory_bandwidth is None:
        known = ", ".join(each.name for each in CHIPS.values() if each.gpu_target)
        raise ConfigError(
            f"cannot compile for {machine.name}: XLA's GPU compiler needs a description of {chip.name} (gpu_target,"
            f" memory and memory_bandwidth in solo/chips/gpu.py); described are {known}"
        )
    info = {**chip.gpu_target, "memory_bandwidth": int(chip.memory_bandwidth), "device_memory_size": chip.memory}
    target = _GPU_TARGET.format(info="\n".join(_textproto(info)), description=chip.device_kinds[0])
    shape = f"{machine.slices}x{machine.hosts}x{machine.devices_per_host}"
    return {"platform": "cuda", "target_config": target, "topology": shape}


def _textproto(fields: Mapping[str, Any]) -> Iterator[str]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield f"{name} {{ {' '.join(_textproto(value))} }}"
        else:
            yield f"{name}: {value}"
