"""One entry of the table of chips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

GIB = 2**30
Platform = Literal["tpu", "cuda", "cpu"]
OptionValue = str | int | float | bool

# Pallas' attention kernel keeps the gradients of a row's keys in vector memory: 16 MiB do not hold those of 8,192 keys.
_KERNEL_VECTOR_MEMORY = 32 * 2**20
# The fields that a plan's figures need, and the figures.
_PLANNED_WITH = {
    "peak_flops": "MFU and the time of attention kernels",
    "memory": "whether a step fits",
    "clock": "step time",
    "attention_share": "the time of attention kernels",
    "link_bandwidth": "the time of collectives",
    "network_bandwidth": "the time of collectives between slices or hosts",
    "price": "cost",
}


@dataclass(frozen=True)
class Price:
    """US dollars for one chip and one hour. `as_of` and `source` say how reliable the figure is."""

    usd_per_chip_hour: float
    as_of: str
    source: str


@dataclass(frozen=True)
class Option:
    """An option of XLA that is not left at its default, and the reason."""

    name: str
    value: OptionValue
    reason: str


@dataclass(frozen=True)
class Trial:
    """Options of XLA whose effect depends on the model. `solo plan --search-options` tries them together.

    options  name -> value; None removes an option of the chip's entry
    source   who recommends them, and what for
    """

    options: Mapping[str, OptionValue | None]
    source: str


@dataclass(frozen=True)
class Chip:
    """One kind of accelerator. None stands for an unknown value; a plan lists the unknown values that it needs.

    name               as in the names of machines: v5p-128, h100-64
    platform           the XLA platform
    device_kinds       `device_kind` of its jax devices
    devices            jax devices per chip
    cores              units in machine names: TensorCores per chip, or 1 if the vendor counts chips
    peak_flops         dense bfloat16 matrix FLOPs per second of the chip
    memory             bytes of HBM; `usable_memory`: the bytes that a program may use
    vector_memory      bytes of a core's vector memory (TPU)
    memory_bandwidth   bytes per second
    link_bandwidth     bytes per second of one link to a neighbour, one direction
    links              links of a chip: 4 make a 2-D torus, 6 a 3-D torus; GPUs have 1, into the switch of their host
    network_bandwidth  bytes per second of a chip's share of the data-centre network, one direction
    clock              Hz at which compiled programs count cycles
    attention_tile     queries and keys per tile of the attention kernel
    attention_share    share of peak that the attention kernel reaches, forward and backward together (2 to 5); GPUs:
                       on whole tiles of a long row
    quantized_products kinds of `model.quantization` that are faster than bfloat16; on CPUs they only work, for tests
    assumed            field -> reason, for values that were neither published nor measured
    compiler_options   options of XLA that every program is compiled with
    trials             options that are worth trying, in this order
    price              list price
    chips_per_host     chips of each host in slices with more than one host
    sizes              chips of a slice -> its topology (TPU)
    single_hosts       chips -> chips of the host, for slices that have one host
    topology_prefix    prefix of `jax.experimental.topologies` names, as in `v5e:4x4`
    topology_options   further arguments of `get_topology_desc`
    gpu_target         `gpu_device_info` of XLA's GPU compiler, without memory size and bandwidth
    accelerator_type   Compute Engine's name of a slice, without the number; None: not offered as TPU VMs
    runtime_version    runtime version of a TPU VM
    gke_accelerator    value of GKE's node label
    gke_placement_policy  whether GKE's node pools of several hosts have a placement policy
    """

    name: str
    platform: Platform
    device_kinds: tuple[str, ...]
    devices: int = 1
    cores: int = 1
    peak_flops: float | None = None
    memory: int | None = None
    usable_memory: int | None = None
    vector_memory: int | None = None
    memory_bandwidth: float | None = None
    link_bandwidth: float | None = None
    links: int = 0
    network_bandwidth: float | None = None
    clock: float | None = None
    attention_tile: tuple[int, int] | None = None
    attention_share: float | None = None
    quantized_products: tuple[str, ...] = ()
    assumed: Mapping[str, str] = field(default_factory=dict)
    compiler_options: tuple[Option, ...] = ()
    trials: tuple[Trial, ...] = ()
    price: Price | None = None
    chips_per_host: int = 4
    sizes: Mapping[int, str] = field(default_factory=dict)
    single_hosts: Mapping[int, int] = field(default_factory=dict)
    topology_prefix: str | None = None
    topology_options: Mapping[str, object] = field(default_factory=dict)
    gpu_target: Mapping[str, Any] | None = None
    accelerator_type: str | None = None
    runtime_version: str | None = None
    gke_accelerator: str | None = None
    gke_placement_policy: bool = False

    @property
    def is_tpu(self) -> bool:
        """Whether it is a TPU: the chips of a slice form a torus."""
        return self.platform == "tpu"

    @property
    def device_peak_flops(self) -> float | None:
        """Peak bfloat16 FLOPs per second of one jax device."""
        return None if self.peak_flops is None else self.peak_flops / self.devices

    @property
    def runs_attention_kernel(self) -> bool:
        """Whether the Pallas attention kernel fits; true where the vector memory is unknown."""
        return self.platform != "cpu" and (self.vector_memory or _KERNEL_VECTOR_MEMORY) >= _KERNEL_VECTOR_MEMORY

    @property
    def unknown(self) -> dict[str, str]:
        """Unknown fields that a plan needs -> the figures that depend on them."""
        needed = {name: figure for name, figure in _PLANNED_WITH.items() if getattr(self, name) is None}
        if self.platform == "cuda":
            needed.pop("clock", None)  # the time of a GPU's step has a model of its own
        return needed
