"""The total cost of a sweep, and its limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from solo.config import ConfigError
from solo.machines import parse_machine
from solo.planning.memory import memory_limit
from solo.scaling.sweep.estimate import Speed, speed
from solo.scaling.sweep.folder import SweepFolder
from solo.scaling.sweep.points import Point
from solo.scaling.sweep.spec import SweepSpec


@dataclass(frozen=True)
class Costs:
    """Costs of some runs. `seconds` and `usd` map run ids to values, which are None if unknown.

    flops   FLOPs to compute; a stable run counts once
    hours   machine time if the runs are trained one after another
    """

    speed: Speed
    seconds: dict[str, float | None]
    usd: dict[str, float | None]
    flops: int
    hours: float | None
    total_usd: float | None


def costs(spec: SweepSpec, points: Sequence[Point], measured: Sequence[tuple[float, float]]) -> Costs:
    """Returns the costs of runs.

    Args:
        spec: the sweep.
        points: the runs.
        measured: speeds of the sweep's finished runs (see `finished`); used if there are any.
    """
    found = speed(spec.machine, measured)
    seconds = {point.id: found.seconds(point.estimate, spec.machine) for point in points}
    per_hour = parse_machine(spec.machine.name).usd_per_hour(spec.machine.usd_per_chip_hour)
    usd = {id: None if per_hour is None or took is None else took / 3600 * per_hour for id, took in seconds.items()}
    total = _sum(seconds)
    return Costs(
        speed=found,
        seconds=seconds,
        usd=usd,
        flops=sum(point.estimate.paid_flops for point in points),
        hours=None if total is None else total / 3600,
        total_usd=_sum(usd),
    )


def finished(points: Sequence[Point], folder: SweepFolder) -> list[tuple[float, float]]:
    """Returns (active parameters, FLOPs per second) for each finished run."""
    results = [(point, folder.result(point.id)) for point in points]
    return [
        (float(point.estimate.n_active), result["flops_per_second"])
        for point, result in results
        if result and result.get("flops_per_second")
    ]


def check_limits(spec: SweepSpec, points: Sequence[Point], found: Costs) -> None:
    """Raises ConfigError if the missing runs exceed limits; the message lists them all."""
    limits = spec.limits
    faults: list[str] = []
    if not points:
        return

    def check(name: str, limit: float | None, value: float | None, shown: Any) -> None:
        if limit is None:
            return
        if value is None:
            faults.append(f"limits.{name} is {limit:g}, but the sweep's {name} are unknown: {found.speed.source}")
        elif value > limit:
            faults.append(f"limits.{name} is {limit:g}; the sweep needs {shown}")

    check("runs", limits.runs, len(points), len(points))
    check("flops", limits.flops, found.flops, f"{found.flops:.4g}")
    check("hours", limits.hours, found.hours, f"{found.hours or 0:.2f}")
    check("usd", limits.usd, found.total_usd, f"{found.total_usd or 0:,.2f}")
    memory = memory_limit(parse_machine(spec.machine.name))
    largest = max(points, key=lambda point: point.estimate.memory)
    if memory is not None and largest.estimate.memory > memory:
        faults.append(
            f"run {largest.id}, width {largest.config.model.width}, needs about {largest.estimate.memory / 2**30:.1f}"
            f" GiB on each device of {spec.machine.name}, which has {memory / 2**30:.1f}; see solo plan --on"
        )
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise ConfigError(f"sweep {spec.name!r} is refused:\n{lines}")


def _sum(values: dict[str, float | None]) -> float | None:
    known = [value for value in values.values() if value is not None]
    return sum(known) if len(known) == len(values) else None
