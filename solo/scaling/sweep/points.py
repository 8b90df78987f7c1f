"""Expands a sweep's file to its runs, axes x sizes x lengths. Each is a complete config with an id."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from solo.config import Config, ConfigError, parse_config, read_config, set_value
from solo.machines import parse_machine
from solo.model.parameters import ModelDefinition, define
from solo.scaling.sweep.batch_statistics import StageStatistics, StatisticsCache
from solo.scaling.sweep.estimate import Estimate, active, estimate, run_flops
from solo.scaling.sweep.identity import run_id
from solo.scaling.sweep.ladder import sizes
from solo.scaling.sweep.spec import HorizonsDesign, IsoFlop, SweepSpec


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    config       its config, whose name is the id
    labels       axis -> value
    stable_run   id of the run that it branches from, at `branch_step`
    is_stable    whether it is a stable run, from which branches start. Its learning rate does not decay, so the fit
                 leaves it out
    budget       FLOPs of its budget in an isoFLOP design
    """

    id: str
    config: Config
    labels: dict[str, Any]
    estimate: Estimate
    stable_run: str | None = None
    branch_step: int = 0
    is_stable: bool = False
    budget: float | None = None

    @property
    def decayed(self) -> float | None:
        """Share of its steps in which the learning rate decays: 0 if it is constant, None for other schedules."""
        optimizer = self.config.stages[0].optimizer
        if optimizer.schedule == "constant":
            return 0.0
        return (optimizer.decay_steps or 0) / self.steps if optimizer.schedule == "wsd" else None

    @property
    def steps(self) -> int:
        """Number of steps, including those of the stable run."""
        steps = self.config.stages[0].steps
        assert steps is not None
        return steps


@dataclass(frozen=True)
class _Size:
    """One size with one combination of the axes, before the length is known."""

    raw: dict[str, Any]
    labels: dict[str, Any]
    config: Config
    definition: ModelDefinition
    statistics: StageStatistics
    n: int


def expand(spec: SweepSpec, note: Any = None, sized: Callable[[], None] = lambda: None) -> list[Point]:
    """Returns all runs of a sweep, stable runs before their branches. Prepares missing data.

    Args:
        spec: the sweep.
        note: called with a line for every part of the data that is prepared.
        sized: called after each size of each combination of axes.

    Raises:
        ConfigError: a config is invalid, the design needs sizes that the ladder lacks, or two runs are the same.
    """
    cache = StatisticsCache(spec.row_statistics, note)
    found: list[Point] = []
    base = with_values(read_config(spec.base), spec.set)
    for labels, changes in spec.combinations():
        chosen = []
        for model in _models(spec, base, changes):
            chosen.append(_size(spec, base, labels, {**changes, **model}, cache))
            sized()
        found += _lengths(spec, chosen)
    _refuse_duplicates(found)
    return found


def first_sizes(spec: SweepSpec, by: str | None = None) -> dict[str, list[Config]]:
    """Returns the configs of all sizes, with the first value of every axis and the base's length.

    Args:
        spec: the sweep.
        by: an axis, all values of which are used.

    Returns:
        For each value of the axis, or for "" without one, a config for each size.

    Raises:
        ConfigError: the sweep has no such axis.
    """
    if by is not None and by not in spec.axes:
        raise ConfigError(f"--by {by}: the sweep has the axes {', '.join(spec.axes) or '(none)'}")
    base = with_values(read_config(spec.base), spec.set)
    found: dict[str, list[Config]] = {}
    for labels, changes in spec.combinations():
        group = str(labels[by]) if by is not None else ""
        if group not in found:
            models = _models(spec, base, changes)
            found[group] = [_config(spec, with_values(base, {**changes, **model})) for model in models]
    return found


def with_values(raw: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an unvalidated copy of a config with the values at dotted keys replaced."""
    raw = copy.deepcopy(raw)
    for key, value in values.items():
        set_value(raw, key, value)
    return raw


def _models(spec: SweepSpec, base: dict[str, Any], changes: dict[str, Any]) -> list[dict[str, Any]]:
    return sizes(spec.ladder, _config(spec, with_values(base, changes)))


def _config(spec: SweepSpec, raw: dict[str, Any]) -> Config:
    config = parse_config(raw, origin=f"sweep {spec.name!r}, a run of {spec.base}")
    if len(config.stages) != 1 or config.stages[0].steps is None:
        raise ConfigError(
            f"{spec.base}: a sweep's base must have one stage with `steps`; found {len(config.stages)} stages"
        )
    if not config.evaluation.losses:
        raise ConfigError(f"{spec.base} has no evaluation.losses, so there is nothing to fit")
    return config


def _size(
    spec: SweepSpec, base: dict[str, Any], labels: dict[str, Any], changes: dict[str, Any], cache: StatisticsCache
) -> _Size:
    raw = with_values(base, changes)
    config = _config(spec, raw)
    statistics = cache.of(config)
    definition = define(config, statistics.vocab_size)
    return _Size(raw, labels, config, definition, statistics, active(definition, statistics.over(1)))


def _lengths(spec: SweepSpec, chosen: list[_Size]) -> Iterator[Point]:
    design = spec.design
    if design is None:
        for size in chosen:
            steps = size.config.stages[0].steps
            assert steps is not None
            yield _point(spec, size, steps)
    elif design.isoflop is not None:
        for budget in design.isoflop.budgets:
            yield from _equal_compute(spec, design.isoflop, budget, chosen)
    elif design.grid is not None:
        for size in chosen:
            for amount in design.grid.tokens or design.grid.tokens_per_parameter or design.grid.steps or ():
                unit = "tokens" if design.grid.tokens else "steps" if design.grid.steps else "tokens_per_parameter"
                yield _point(spec, size, _steps(size, unit, amount))
    elif design.horizons is not None:
        for size in chosen:
            yield from _branches(spec, design.horizons, size)


def _steps(size: _Size, unit: str, amount: float) -> int:
    if unit == "steps":
        return int(amount)
    tokens = amount * (size.n if unit == "tokens_per_parameter" else 1)
    # Averaged over many steps, because single steps vary.
    stats = size.statistics.over(64)
    return max(2, round(tokens * 64 / (stats.patches + stats.text)))


def _equal_compute(spec: SweepSpec, design: IsoFlop, budget: float, chosen: list[_Size]) -> Iterator[Point]:
    centre = design.centre.at(budget)
    wanted = centre * design.half_width ** np.linspace(-1, 1, design.points)
    logs = np.log([size.n for size in chosen])
    places = sorted({int(np.argmin(np.abs(logs - np.log(target)))) for target in wanted})
    lowest, highest = (chosen[int(np.argmin(logs))].n, chosen[int(np.argmax(logs))].n)
    if wanted[0] < lowest / 1.3 or wanted[-1] > highest * 1.3 or len(places) < 3:
        raise ConfigError(
            f"design.isoflop: at {budget:.3g} FLOPs the design needs {wanted[0]:.3g} to {wanted[-1]:.3g} active"
            f" parameters; the ladder has {lowest:.3g} to {highest:.3g}, of which {len(places)} sizes are near. Add"
            " widths, or change centre, half_width or budgets"
        )
    for place in places:
        size = chosen[place]
        step = run_flops(size.config, size.definition, size.statistics.over(64)) / 64
        steps = round(budget / step)
        if steps < 10:
            raise ConfigError(
                f"design.isoflop: {budget:.3g} FLOPs are {steps} steps of width {size.config.model.width}, too few to"
                " train; lower stages.0.batch_rows, or omit the budget"
            )
        yield _point(spec, size, steps, budget=budget)


def _branches(spec: SweepSpec, design: HorizonsDesign, size: _Size) -> Iterator[Point]:
    unit = next(name for name in ("tokens", "tokens_per_parameter", "steps") if getattr(design, name) is not None)
    longest = _steps(size, unit, getattr(design, unit))
    horizons = sorted(max(2, round(share * longest)) for share in design.at)
    decays = [max(1, round(design.decay * steps)) for steps in horizons]
    at = [steps - decay for steps, decay in zip(horizons, decays, strict=True)]
    optimizer = size.config.stages[0].optimizer
    warmup = optimizer.warmup_steps if spec.warmup is None else max(1, round(spec.warmup * horizons[0]))
    if warmup >= at[0]:
        raise ConfigError(
            f"design.horizons: the warm-up of {warmup} steps extends beyond the first branch point, step {at[0]} of"
            f" width {size.config.model.width}; set warmup to a share of the shortest horizon"
        )
    own: dict[str, Any] = {
        "stages.0.optimizer.schedule": "constant",
        "stages.0.optimizer.decay_steps": None,
        "stages.0.optimizer.warmup_steps": warmup,
        "evaluation": {},
        "checkpoint.at_steps": at,
    }
    stable = _point(spec, size, at[-1], changes=own, is_stable=True)
    yield stable
    for steps, decay, start in zip(horizons, decays, at, strict=True):
        own = {
            "stages.0.optimizer.schedule": "wsd",
            "stages.0.optimizer.decay_steps": decay,
            "stages.0.optimizer.warmup_steps": warmup,
        }
        yield _point(spec, size, steps, changes=own, stable_run=stable.id, branch_step=start)


def _point(
    spec: SweepSpec, size: _Size, steps: int, changes: dict[str, Any] | None = None, branch_step: int = 0, **fields: Any
) -> Point:
    changes = changes if changes is not None else _warmup(spec, steps)
    raw = with_values(size.raw, {**changes, "stages.0.steps": steps})
    config = parse_config(raw, origin=f"sweep {spec.name!r}, a run of {spec.base}")
    name = run_id(config)
    config = config.model_copy(update={"name": name, "folder": str(spec.path / "runs")})
    on = parse_machine(spec.machine.name)
    # JAX sees all CPUs of a host as one device.
    devices = 1 if on.chip.name == "cpu" else on.devices
    found = estimate(config, size.definition, size.statistics, devices, branch_step)
    return Point(name, config, size.labels, found, branch_step=branch_step, **fields)


def _warmup(spec: SweepSpec, steps: int) -> dict[str, Any]:
    return {} if spec.warmup is None else {"stages.0.optimizer.warmup_steps": max(1, round(spec.warmup * steps))}


def _refuse_duplicates(points: list[Point]) -> None:
    seen: dict[str, Point] = {}
    for point in points:
        other = seen.setdefault(point.id, point)
        if other is not point:
            raise ConfigError(
                f"two runs of the sweep are the same: {other.labels} and {point.labels}, width"
                f" {point.config.model.width}, {point.steps} steps; an axis changes nothing, or two lengths round to"
                " the same number of steps"
            )
