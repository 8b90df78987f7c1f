"""The cost of a sweep on machines that need not be present, from compiled steps instead of an assumed MFU.

A few sizes of every combination of the axes are compiled, as `solo plan --on` does. The FLOP/s of the other sizes are
interpolated in the logarithm of the active parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from math import log
from pathlib import Path
from typing import Any

import numpy as np

from solo.config import Config, ConfigError
from solo.files import append_json_line, read_json_lines
from solo.machines import Machine
from solo.planning.command import settle
from solo.planning.forecast import Forecast, chosen_stages, forecast
from solo.scaling.sweep.identity import digest
from solo.scaling.sweep.ladder import SIZE_KEYS
from solo.scaling.sweep.points import Point
from solo.scaling.sweep.spec import SweepSpec

# The sections of a config that a step is compiled from, beside those of its stage.
_STEP_SECTIONS = {"model", "mesh", "image", "sequence", "compiler_options"}


@dataclass(frozen=True)
class CompiledStep:
    """The step of one size, compiled for a machine.

    labels     values of the axes that change the step, as words; "" without axes
    seconds    estimated time of a step; None if it does not fit
    rate       FLOP/s of all devices, counted as the sweep counts them
    needed     bytes of a device's memory
    limit      bytes of a device's memory that a program may use
    """

    machine: str
    labels: str
    width: int
    n_active: int
    seconds: float | None
    rate: float | None
    mfu: float | None
    needed: int
    limit: int | None


@dataclass(frozen=True)
class MachineCost:
    """The cost of all runs of a sweep on one machine, one after another.

    steps   the compiled steps
    hours   None if a compiled step does not fit
    usd     None if it does not fit, or the machine has no price
    """

    machine: Machine
    steps: tuple[CompiledStep, ...]
    hours: float | None
    usd: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        steps = [asdict(step) for step in self.steps]
        return {"machine": self.machine.name, "steps": steps, "hours": self.hours, "usd": self.usd}


def machine_cost(
    spec: SweepSpec, points: Sequence[Point], machine: Machine, sizes: int, note: Callable[[str], None]
) -> MachineCost:
    """Compiles `sizes` sizes of each combination of the axes for a machine, and costs all runs.

    Compiled steps are kept in the sweep's folder, so that the next call does not compile them again.

    Args:
        spec: the sweep.
        points: its runs.
        machine: the machine of every run.
        sizes: number of sizes to compile; the smallest and the largest are among them if it is at least 2, and 1 is
            the largest.
        note: called with a line before a step is compiled.

    Raises:
        ConfigError: a size gets no time, or does not divide among the machine's devices.
    """
    kept = spec.path / "compiled_steps.jsonl"
    groups = _groups(points)
    steps: dict[str, list[CompiledStep]] = {}
    for labels, group in groups.items():
        steps[labels] = [_compiled(spec, point, labels, machine, kept, note) for point in _chosen(group, sizes)]
    found = tuple(step for group in steps.values() for step in group)
    if any(step.rate is None for step in found):
        return MachineCost(machine, found, None, None)
    seconds = 0.0
    for labels, group in groups.items():
        for point in group:
            seconds += spec.machine.startup_seconds + point.estimate.paid_flops / _rate(steps[labels], point)
    per_hour = machine.usd_per_hour(spec.machine.usd_per_chip_hour)
    hours = seconds / 3600
    return MachineCost(machine, found, hours, None if per_hour is None else hours * per_hour)


def _groups(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Returns the runs by their designs: those of a group differ in size, length, seed and learning rate only."""
    found: dict[str, list[Point]] = {}
    names: dict[str, str] = {}
    for point in points:
        name = names.setdefault(_design(point.config), ", ".join(str(value) for value in point.labels.values()))
        found.setdefault(name, []).append(point)
    return found


def _design(config: Config) -> str:
    """Returns a digest of what changes a step, except the size."""
    sections = config.model_dump(mode="json", include=_STEP_SECTIONS)
    model = {key: value for key, value in sections.pop("model").items() if key not in SIZE_KEYS}
    model["moe"] = {key: value for key, value in model["moe"].items() if key not in SIZE_KEYS}
    stage = config.stages[0]
    optimizer = stage.optimizer.name, stage.optimizer.groups != ()
    lengths = {"steps", "name", "optimizer", "mixture"}
    return digest([model, sections, optimizer, stage.model_dump(mode="json", exclude=lengths)])


def _chosen(points: Sequence[Point], count: int) -> list[Point]:
    """Returns one run for each of `count` sizes, evenly spaced in the logarithm of the active parameters."""
    by_size = {tuple(getattr(point.config.model, key) for key in SIZE_KEYS): point for point in points}
    sizes = sorted(by_size.values(), key=lambda point: point.estimate.n_active)
    logs = np.log([point.estimate.n_active for point in sizes])
    wanted = np.linspace(logs[0], logs[-1], count) if count > 1 else logs[-1:]
    places = sorted({int(np.argmin(np.abs(logs - target))) for target in wanted})
    return [sizes[place] for place in places]


def _rate(steps: Sequence[CompiledStep], point: Point) -> float:
    """Returns FLOP/s, interpolated in log size; sizes beyond the compiled ones get the nearest one's."""
    logs = [log(step.n_active) for step in steps]
    return float(np.interp(log(point.estimate.n_active), logs, [step.rate or 0.0 for step in steps]))


def _compiled(
    spec: SweepSpec, point: Point, labels: str, machine: Machine, kept: Path, note: Callable[[str], None]
) -> CompiledStep:
    config, _ = settle(point.config, machine)
    slots = _document_slots(spec)
    stage = config.stages[0]
    step_config = config.model_dump(mode="json", include=_STEP_SECTIONS)
    stage_config = stage.model_dump(mode="json", exclude={"steps", "name"})
    key = digest([step_config, stage_config, machine.name, machine.slices, slots, _versions()])
    lines, _ = read_json_lines(kept) if kept.exists() else ([], 0)
    for line in lines:
        if line["key"] == key:
            return CompiledStep(**line["step"])
    width = config.model.width
    note(f"compiling {labels or 'the step'}, width {width}, for {machine.name}")
    found = forecast(config, chosen_stages(config, None)[0], machine, document_slots=slots)
    step = _step(point, labels, machine, found)
    kept.parent.mkdir(parents=True, exist_ok=True)
    append_json_line(kept, {"key": key, "step": asdict(step)})
    return step


def _step(point: Point, labels: str, machine: Machine, found: Forecast) -> CompiledStep:
    if found.fits and found.time is None:
        raise ConfigError(f"{machine.name}: no time for width {point.config.model.width}: {found.no_time}")
    seconds = found.time.total if found.fits and found.time else None
    per_step = point.estimate.flops / point.steps
    return CompiledStep(
        machine=machine.name,
        labels=labels,
        width=point.config.model.width,
        n_active=point.estimate.n_active,
        seconds=seconds,
        rate=None if seconds is None else per_step / seconds,
        mfu=found.mfu if found.fits else None,
        needed=found.needed,
        limit=found.limit,
    )


def _document_slots(spec: SweepSpec) -> int | None:
    """Returns the length of equal causal documents with the stated number of query-key pairs."""
    row = spec.row_statistics
    if row is None:
        return None
    # Documents of n slots have (n + 1) / 2 pairs per slot.
    return max(1, round(2 * row.attended_pairs / (row.patches + row.text) - 1))


def _versions() -> list[str]:
    found = []
    for name in ("jax", "libtpu"):
        try:
            found.append(version(name))
        except PackageNotFoundError:
            found.append("")
    return found
