"""Machines: one or more slices of one kind of chip, by the names that vendors give them.

`v5p-128` counts TensorCores (v4, v5p, tpu7x: two per chip), `v5e-256` and `v6e-16` count chips, `h100-64` counts GPUs,
`cpu-8` counts virtual devices. Nothing here imports jax.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from solo.chips import CHIPS, Chip
from solo.config import ConfigError, nearest

_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e"}
# Chips of a TPU host -> how they are arranged.
_HOST_BOUNDS = {1: (1, 1, 1), 2: (2, 1, 1), 4: (2, 2, 1), 8: (2, 4, 1)}


@dataclass(frozen=True)
class Machine:
    """`slices` slices of one kind, each with `chips` chips on `hosts` hosts.

    name      the vendor's name of one slice: v5p-128
    topology  shape of one slice, in chips: 4x4x4; None for GPUs and CPUs
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
        """jax devices of each host."""
        return self.chips_per_host * self.chip.devices

    @property
    def devices(self) -> int:
        """jax devices of all slices."""
        return self.chips * self.chip.devices * self.slices

    @property
    def all_chips(self) -> int:
        """Chips of all slices."""
        return self.chips * self.slices

    @property
    def all_hosts(self) -> int:
        """Hosts of all slices."""
        return self.hosts * self.slices

    @property
    def accelerator_type(self) -> str | None:
        """Google Cloud's API name of one slice, as in v5litepod-16; None if it is not offered as TPU VMs."""
        number = self.name.rpartition("-")[2]
        return f"{self.chip.accelerator_type}-{number}" if self.chip.accelerator_type else None

    @property
    def topology_name(self) -> str | None:
        """The name of one slice for `jax.experimental.topologies.get_topology_desc`, or None."""
        return f"{self.chip.topology_prefix}:{self.topology}" if self.topology and self.chip.topology_prefix else None

    @property
    def chips_per_host_bounds(self) -> tuple[int, int, int] | None:
        """The arrangement of a host's chips, an argument of `get_topology_desc`; None if unknown."""
        return None if self.topology is None else _HOST_BOUNDS.get(self.chips_per_host)

    def usd_per_hour(self, usd_per_chip_hour: float | None = None) -> float | None:
        """Returns the price of an hour, at the given price or the list price; None if there is none."""
        if usd_per_chip_hour is None and self.chip.price is not None:
            usd_per_chip_hour = self.chip.price.usd_per_chip_hour
        return None if usd_per_chip_hour is None else usd_per_chip_hour * self.all_chips


def parse_machine(name: str, slices: int = 1, hosts: int | None = None) -> Machine:
    """Returns the machine of a name.

    Args:
        name: kind and size, as in v5p-128, v5e-256, h100-64, cpu-8.
        slices: number of slices.
        hosts: hosts of a slice. CPUs, whose devices are virtual, allow a choice, and so do TPU slices that exist both
            as one host and as several.

    Raises:
        ConfigError: no such kind or size exists; the message lists those that do.
    """
    if slices < 1:
        raise ConfigError(f"{slices} slices of {name}: expected at least 1")
    kind, dash, number = name.lower().rpartition("-")
    kind = _ALIASES.get(kind, kind)
    if kind not in CHIPS or not dash or not number.isdigit() or int(number) < 1:
        known = ", ".join(f"{kind}-N" for kind, chip in CHIPS.items() if chip.sizes or not chip.is_tpu)
        raise ConfigError(f"no machine {name!r}{nearest(kind, list(CHIPS))}; known: {known}")
    chip = CHIPS[kind]
    if chip.is_tpu and not chip.sizes:
        raise ConfigError(f"{name}: the slices of {kind} are unknown; add its `sizes` to solo/chips/tpu.py")
    chips, left = divmod(int(number), chip.cores)
    if chip.sizes and (left or chips not in chip.sizes):
        sizes = ", ".join(f"{kind}-{size * chip.cores}" for size in sorted(chip.sizes))
        raise ConfigError(f"no machine {name!r} is offered; there are {sizes}")
    if hosts is not None and hosts < 1:
        raise ConfigError(f"{hosts} hosts of {name}: expected at least 1")
    found = _hosts(chip, chips, hosts)
    if hosts not in (None, found) or chips % found:
        raise ConfigError(f"{name} has {found} hosts" if chip.name != "cpu" else f"{name} is not {hosts} equal hosts")
    return Machine(f"{kind}-{number}", chip, chips, chip.sizes.get(chips), found, slices)


def _hosts(chip: Chip, chips: int, asked: int | None) -> int:
    if chip.name == "cpu":
        return asked or 1
    if chip.is_tpu and asked == chips // chip.chips_per_host > 1:
        return asked
    per_host = chip.single_hosts.get(chips, min(chip.chips_per_host, chips))
    if chips % per_host:
        raise ConfigError(f"{chip.name}: {chips} chips are not a whole number of hosts with {per_host} each")
    return chips // per_host


def chips_in(topology: str) -> int:
    """Returns the chips of a topology such as 4x4x8."""
    return prod(int(side) for side in topology.split("x"))
