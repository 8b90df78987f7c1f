"""What is known of machines: one table of chips, and of the slices that can be had of them.

A machine is named as its vendor names it: `v5p-128` counts TensorCores (v4, v5p, tpu7x: two a chip), `v5e-256` and
`v6e-16` count chips, `h100-64` counts GPUs, `cpu-8` virtual devices. Nothing here imports jax.

Sources: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x} and NVIDIA's data sheets of H100 SXM and H200 SXM, as of
November 2026. Topology names, bounds and usable memory as libtpu 0.0.42 accepts and reports them.
Prices are list prices on demand in US dollars for one chip and one hour, to be overridden by whoever pays others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from solo.config import ConfigError, nearest

GIB = 2**30


@dataclass(frozen=True)
class Price:
    """US dollars for one chip and one hour; `as_of` and `source` say how much to trust it."""

    usd_per_chip_hour: float
    as_of: str
    source: str


@dataclass(frozen=True)
class Chip:
    """One accelerator.

    device_kinds       what jax calls its devices
    devices            jax devices of one chip
    cores              what the vendor's names count: TensorCores of one chip, or 1 where they count chips
    peak_flops         dense bfloat16 matrix FLOPs per second of the chip; None: not known
    memory             bytes; `usable_memory`: what is left of them for a program, where that is known
    memory_bandwidth   bytes per second
    link_bandwidth     bytes per second of one link to a neighbour, one direction
    links              links of a chip: 4 make a 2-D torus, 6 a 3-D one; GPUs: 1, into the switch of their host
    network_bandwidth  bytes per second of a chip's share of the data-centre network, one direction
    clock              Hz at which cycles of compiled programs are counted; None: not known
    price              list price, or None
    chips_per_host     of slices with several hosts
    sizes              chips of a slice -> its topology; GPUs and CPUs: empty, any number
    single_hosts       chips -> chips of the one host, for the slices that have only one
    topology_prefix    of the names that jax's `get_topology_desc` takes, as in `v5e:4x4`
    topology_options   further arguments of it
    accelerator_type   what Compute Engine's API calls a slice of it, before the number; None: not to be had there
    runtime_version    of a TPU VM
    gke_accelerator    value of GKE's node label for it
    """

    name: str
    device_kinds: tuple[str, ...]
    devices: int = 1
    cores: int = 1
    peak_flops: float | None = None
    memory: int | None = None
    usable_memory: int | None = None
    memory_bandwidth: float | None = None
    link_bandwidth: float | None = None
    links: int = 0
    network_bandwidth: float | None = None
    clock: float | None = None
    price: Price | None = None
    chips_per_host: int = 4
    sizes: Mapping[int, str] = field(default_factory=dict)
    single_hosts: Mapping[int, int] = field(default_factory=dict)
    topology_prefix: str | None = None
    topology_options: Mapping[str, object] = field(default_factory=dict)
    accelerator_type: str | None = None
    runtime_version: str | None = None
    gke_accelerator: str | None = None

    @property
    def is_tpu(self) -> bool:
        """Whether it is a TPU: chips of a slice are joined in a torus."""
        return bool(self.sizes)


@dataclass(frozen=True)
class Machine:
    """So many slices of one kind, each of `chips` chips on `hosts` hosts.

    name      of one slice, as the vendor has it: v5p-128
    topology  of one slice, in chips: 4x4x4; None for GPUs and CPUs
    """

    name: str
    chip: Chip
    chips: int
    topology: str | None
    hosts: int
    slices: int = 1

    @property
    def chips_per_host(self) -> int:
        """Chips of each host."""
        return self.chips // self.hosts

    @property
    def devices_per_host(self) -> int:
        """Devices that jax sees on each host."""
        return self.chips_per_host * self.chip.devices

    @property
    def devices(self) -> int:
        """Devices that jax sees in all."""
        return self.chips * self.chip.devices * self.slices

    @property
    def all_hosts(self) -> int:
        """Hosts of all slices."""
        return self.hosts * self.slices

    @property
    def accelerator_type(self) -> str | None:
        """What Google Cloud's API calls one slice: v5litepod-16; None where it is not to be had as TPU VMs."""
        number = self.name.rpartition("-")[2]
        return f"{self.chip.accelerator_type}-{number}" if self.chip.accelerator_type else None

    @property
    def topology_name(self) -> str | None:
        """What `jax.experimental.topologies.get_topology_desc` calls one slice; None where it is no TPU."""
        return f"{self.chip.topology_prefix}:{self.topology}" if self.topology else None

    @property
    def chips_per_host_bounds(self) -> tuple[int, int, int] | None:
        """How the chips of a host lie, another argument of `get_topology_desc`."""
        if self.topology is None:
            return None
        return {1: (1, 1, 1), 4: (2, 2, 1), 8: (2, 4, 1)}[self.chips_per_host]

    def usd_per_hour(self, usd_per_chip_hour: float | None = None) -> float | None:
        """What an hour costs at a price of one's own, or at the list price; None where that is not known."""
        if usd_per_chip_hour is None and self.chip.price is not None:
            usd_per_chip_hour = self.chip.price.usd_per_chip_hour
        return None if usd_per_chip_hour is None else usd_per_chip_hour * self.chips * self.slices


_SQUARES = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
    1024: "8x8x16",
    2048: "8x16x16",
}
_LIST = "Google Cloud, list price on demand in the US; from memory, not looked up"
_RENTED = "middle of what clouds asked on demand, distributed-training-book, foundations/05"

CHIPS: Mapping[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(
            "v4",
            ("TPU v4",),
            cores=2,
            peak_flops=275e12,
            memory=32 * GIB,
            memory_bandwidth=1228e9,
            link_bandwidth=50e9,
            links=6,
            clock=1.05e9,
            price=Price(3.22, "2025-06", _LIST),
            sizes=_CUBES,
            topology_prefix="v4",
            # Two cores as one device; without it jax sees two devices a chip.
            topology_options={"chip_config_name": "megacore"},
            accelerator_type="v4",
            runtime_version="tpu-ubuntu2204-base",
            gke_accelerator="tpu-v4-podslice",
        ),
        Chip(
            "v5e",
            ("TPU v5 lite", "TPU v5e"),
            peak_flops=197e12,
            memory=16 * GIB,
            usable_memory=int(15.75 * GIB),
            memory_bandwidth=819e9,
            link_bandwidth=50e9,
            links=4,
            network_bandwidth=6.4e12 / 8 / 256,
            clock=1.5e9,
            price=Price(1.20, "2025-06", _LIST),
            sizes=_SQUARES,
            single_hosts={1: 1, 4: 4, 8: 8},
            topology_prefix="v5e",
            topology_options={"chip_config_name": "default"},
            accelerator_type="v5litepod",
            runtime_version="v2-alpha-tpuv5-lite",
            gke_accelerator="tpu-v5-lite-podslice",
        ),
        Chip(
            "v5p",
            ("TPU v5", "TPU v5p"),
            cores=2,
            peak_flops=459e12,
            memory=95 * GIB,
            memory_bandwidth=2765e9,
            link_bandwidth=100e9,
            links=6,
            network_bandwidth=50e9 / 8,
            clock=1.75e9,
            price=Price(4.20, "2025-06", _LIST),
            sizes={**_CUBES, 192: "4x4x12", 384: "4x8x12", 768: "8x8x12", 3072: "12x16x16", 6144: "16x16x24"},
            topology_prefix="v5p",
            topology_options={"chip_config_name": "default"},
            accelerator_type="v5p",
            runtime_version="v2-alpha-tpuv5",
            gke_accelerator="tpu-v5p-slice",
        ),
        Chip(
            "v6e",
            ("TPU v6 lite", "TPU v6e"),
            peak_flops=918e12,
            memory=32 * GIB,
            memory_bandwidth=1638e9,
            link_bandwidth=100e9,
            links=4,
            network_bandwidth=100e9 / 8,
            clock=1.75e9,
            price=Price(2.70, "2025-06", _LIST),
            sizes=_SQUARES,
            single_hosts={1: 1, 4: 4, 8: 8},
            topology_prefix="v6e",
            topology_options={"chip_config_name": "default"},
            accelerator_type="v6e",
            runtime_version="v2-alpha-tpuv6e",
            gke_accelerator="tpu-v6e-slice",
        ),
        Chip(
            "tpu7x",
            ("TPU7x",),
            devices=2,
            cores=2,
            peak_flops=2307e12,
            memory=192 * GIB,
            memory_bandwidth=7380e9,
            link_bandwidth=100e9,
            links=6,
            network_bandwidth=100e9 / 8,
            sizes=_CUBES,
            topology_prefix="tpu7x",
            topology_options={"chip_config_name": "default"},
            gke_accelerator="tpu7x",
        ),
        Chip(
            "h100",
            ("NVIDIA H100 80GB HBM3",),
            peak_flops=989e12,
            memory=80 * 10**9,
            memory_bandwidth=3350e9,
            link_bandwidth=450e9,
            links=1,
            network_bandwidth=50e9,
            price=Price(4.50, "2026-02", _RENTED),
            chips_per_host=8,
            gke_accelerator="nvidia-h100-80gb",
        ),
        Chip(
            "h200",
            ("NVIDIA H200",),
            peak_flops=989e12,
            memory=141 * 10**9,
            memory_bandwidth=4800e9,
            link_bandwidth=450e9,
            links=1,
            network_bandwidth=50e9,
            price=Price(6.00, "2026-02", _RENTED),
            chips_per_host=8,
            gke_accelerator="nvidia-h200-141gb",
        ),
        Chip(
            "a100",
            ("NVIDIA A100-SXM4-80GB",),
            peak_flops=312e12,
            memory=80 * 10**9,
            memory_bandwidth=2039e9,
            link_bandwidth=300e9,
            links=1,
            network_bandwidth=25e9,
            chips_per_host=8,
            gke_accelerator="nvidia-a100-80gb",
        ),
        Chip(
            "a100-40gb",
            ("NVIDIA A100-SXM4-40GB",),
            peak_flops=312e12,
            memory=40 * 10**9,
            memory_bandwidth=1555e9,
            link_bandwidth=300e9,
            links=1,
            network_bandwidth=25e9,
            chips_per_host=8,
            gke_accelerator="nvidia-tesla-a100",
        ),
        Chip("cpu", ("cpu",)),
    )
}


def machine(name: str, slices: int = 1, hosts: int | None = None) -> Machine:
    """A machine by its name.

    Args:
        name: kind and size, as in v5p-128, v5e-256, h100-64, cpu-8.
        slices: so many of them.
        hosts: of a slice; given by the kind but for CPUs, whose devices are virtual.

    Raises:
        ConfigError: there is no such kind or size; the message names those there are.
    """
    kind, dash, number = name.lower().rpartition("-")
    kind = "v5e" if kind in ("v5litepod", "v5lite") else kind
    if kind not in CHIPS or not dash or not number.isdigit() or slices < 1 or int(number) < 1:
        known = ", ".join(f"{kind}-N" for kind in CHIPS)
        raise ConfigError(f"no machine {name!r}{nearest(kind, list(CHIPS))}; known: {known}")
    chip = CHIPS[kind]
    chips, left = divmod(int(number), chip.cores)
    if chip.sizes and (left or chips not in chip.sizes):
        sizes = ", ".join(f"{kind}-{size * chip.cores}" for size in sorted(chip.sizes))
        raise ConfigError(f"no machine {name!r} is sold; there are {sizes}")
    found = _hosts(chip, chips, hosts)
    if hosts not in (None, found) or chips % found:
        raise ConfigError(f"{name} has {found} hosts" if chip.name != "cpu" else f"{name} is not {hosts} equal hosts")
    return Machine(f"{kind}-{number}", chip, chips, chip.sizes.get(chips), found, slices)


def _hosts(chip: Chip, chips: int, asked: int | None) -> int:
    if chip.name == "cpu":
        return asked or 1
    per_host = chip.single_hosts.get(chips, min(chip.chips_per_host, chips))
    if chips % per_host:
        raise ConfigError(f"{chip.name}: {chips} are not whole hosts of {per_host}")
    return chips // per_host


def chip_of(device_kind: str) -> Chip | None:
    """The chip that jax's devices of this kind belong to, or None where it is not known."""
    return next((chip for chip in CHIPS.values() if device_kind in chip.device_kinds), None)


def peak_flops(device_kind: str) -> float | None:
    """Peak bfloat16 FLOPs per second of one jax device, or None where it is not known (as for every CPU)."""
    chip = chip_of(device_kind)
    return chip.peak_flops / chip.devices if chip and chip.peak_flops else None


def with_price(chip: Chip, usd_per_chip_hour: float, as_of: str) -> Chip:
    """The same chip at a price of one's own."""
    return dataclasses.replace(chip, price=Price(usd_per_chip_hour, as_of, "given"))


def chips_in(topology: str) -> int:
    """Chips of a topology such as 4x4x8."""
    return prod(int(side) for side in topology.split("x"))
