"""The collectives of a step by kind and mesh axis: bytes, seconds, and whether they overlap with computation.

The bytes are exact, since they are read from the compiled program. The seconds are estimated with a model: rings over
the torus links that a group of devices spans (an open ring has half the bandwidth), or a GPU's links into the switch of
its host and its share of the network between hosts. What crosses hosts is divided among the network links of the
group's GPUs in a host, as NCCL does; only an all-to-all and a permute send different data from every GPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

import numpy as np

from solo.machines import Machine
from solo.planning.groups import axes_of, replica_groups
from solo.planning.hlo import Module, Run, shape_bytes
from solo.planning.topology import wraps
from solo.sharding.axes import slices_spanned

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_ACROSS_SLICES = re.compile(r'_xla_megascale_transfer_type="?(\w+)')


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind along the same axes.

    kind        one of KINDS
    axes        mesh axes of the groups
    members     number of devices of a group
    overlapped  whether they overlap with computation
    count       number per step
    bytes       bytes per step of the whole arrays that a device receives, or contributes to a reduce-scatter
    seconds     estimated seconds per step; None: the bandwidth is unknown
    network     whether they cross slices or hosts over the data-centre network
    """

    kind: str
    axes: tuple[str, ...]
    members: int
    overlapped: bool
    count: int
    bytes: int
    seconds: float | None
    network: bool = False

    @property
    def name(self) -> str:
        """Kind and axes, as in `all-gather over fsdp`."""
        return f"{self.kind} over {' x '.join(self.axes) or 'one device'}"


def find_collectives(
    module: Module, mesh: Mapping[str, int], machine: Machine, devices: Iterable[Any]
) -> list[Collective]:
    """Returns the collectives of a compiled step, the largest first.

    Args:
        module: the program.
        mesh: axis -> size.
        machine: the machine that the program is compiled for.
        devices: devices of the mesh, in its order.
    """
    links = _Links(machine, list(devices))
    found: dict[tuple[str, tuple[str, ...], int, bool, bool], list[float]] = {}
    channels = set()
    for run in module.runs():
        kind = _kind(run)
        if kind is None:
            continue
        # A fused collective appears in every fusion that carries a part of it. Other collectives may share channels.
        channel = re.search(r"channel_id=(\d+)", run.instruction.rest)
        if channel and any(place.startswith("fusion ") for place in run.inside):
            if channel[1] in channels:
                continue
            channels.add(channel[1])
        groups = replica_groups(run.instruction.rest, machine.devices)
        members = groups.shape[1]
        size = _bytes(run, kind, members)
        seconds, network = links.seconds(kind, size, groups)
        key = (kind, axes_of(groups, mesh), members, _overlapped(run), network)
        sums = found.setdefault(key, [0, 0, 0.0])
        for place, part in enumerate((1, size, seconds)):
            sums[place] += part * run.times
    for run in module.runs():
        across = _across_slices(run, mesh, machine) if run.instruction.opcode == "send" else None
        if across:
            key = (across.kind, across.axes, across.members, True, True)
            seconds = nan if across.seconds is None else across.seconds
            sums = found.setdefault(key, [0, 0, 0.0])
            for place, part in enumerate((across.count, across.bytes, seconds)):
                sums[place] += part
    listed = [
        Collective(kind, axes, members, overlapped, int(count), int(size), None if isnan(seconds) else seconds, network)
        for (kind, axes, members, overlapped, network), (count, size, seconds) in found.items()
    ]
    return sorted(listed, key=lambda each: (-each.bytes, each.name))


def _kind(run: Run) -> str | None:
    opcode = run.instruction.opcode.removesuffix("-start")
    return opcode if opcode in KINDS else None


def _overlapped(run: Run) -> bool:
    # XLA's GPU compiler starts and awaits every collective, and marks those that nothing runs beside.
    if '"is_sync":true' in run.instruction.rest:
        return False
    around = (*run.inside, f"{run.instruction.opcode} {run.instruction.name}")
    return any(re.search(r"async.collective|^[a-z\-]*-start ", place) for place in around)


def _bytes(run: Run, kind: str, members: int) -> int:
    shape, size = run.instruction.shape, run.instruction.bytes
    if not run.instruction.opcode.endswith("-start") or not shape.startswith("(") or kind == "all-reduce":
        return size * members if kind == "reduce-scatter" else size
    # The shape of a start lists the operands, the results, and integers of the runtime.
    both = size - 4 * shape.count("u32[]")
    return both * members // (members + 1) if kind in ("all-gather", "reduce-scatter") else both // 2


def _across_slices(run: Run, mesh: Mapping[str, int], machine: Machine) -> Collective | None:
    found = _ACROSS_SLICES.search(run.instruction.rest)
    if not found:
        return None
    kind = found[1].lower().replace("_", "-")
    size = shape_bytes(run.instruction.shape.split("u32[]")[0]) * run.times
    bandwidth = machine.chip.network_bandwidth or nan
    slices = machine.slices
    rounds = (2 if kind == "all-reduce" else 1) * (slices - 1) / slices
    seconds = rounds * size / bandwidth
    axes = tuple(axis for axis, spanned in slices_spanned(mesh, slices).items() if spanned > 1)
    return Collective(kind, axes, slices, True, run.times, size, None if isnan(seconds) else seconds, True)


class _Links:
    """The bandwidth between groups of devices."""

    def __init__(self, machine: Machine, devices: list[Any]) -> None:
        self._machine = machine
        self._closed = wraps(machine)
        self._coords = None
        if machine.chip.is_tpu:
            self._coords = np.asarray([device.coords for device in devices])

    def seconds(self, kind: str, size: int, groups: np.ndarray) -> tuple[float, bool]:
        """Returns the seconds of one collective, nan if unknown, and whether it crosses the data-centre network."""
        chip, group = self._machine.chip, groups[0]
        if len(group) < 2:
            return 0.0, False
        if self._coords is not None:
            return _rounds(kind, len(group)) * size / self._torus_bandwidth(self._coords[group]), False
        within = _rounds(kind, len(group)) * size / ((chip.link_bandwidth or nan) * (chip.links or nan))
        hosts, members = np.unique(group // self._machine.devices_per_host, return_counts=True)
        if len(hosts) < 2:
            return within, False
        shared = 1 if kind in ("all-to-all", "collective-permute") else int(members.min())
        across = _rounds(kind, len(hosts)) * size / ((chip.network_bandwidth or nan) * shared)
        return (nan if isnan(within + across) else max(within, across)), True

    def _torus_bandwidth(self, places: np.ndarray) -> float:
        sides = [int(side) for side in (self._machine.topology or "").split("x")]
        lines = 0
        for dimension, side in enumerate(sides):
            used = len(np.unique(places[:, dimension]))
            closed = self._closed[dimension] and used == side
            lines += 0 if used < 2 else 2 if closed else 1
        return (self._machine.chip.link_bandwidth or nan) * (lines or 2)


def _rounds(kind: str, members: int) -> float:
    """Returns how often a collective's bytes pass through the busiest link of a ring of members."""
    share = (members - 1) / members
    return {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)
