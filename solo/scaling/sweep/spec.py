"""What a sweep's file may say: frozen, validated, unknown keys refused with a suggestion."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from solo.config import ConfigError, Section, parse_section, read_config

# Columns of the results that an axis must not be called.
RESERVED = ("id", "name", "status", "trunk", "tokens", "flops", "losses", "scores", "width", "layers", "seed", "steps")


class Ladder(Section):
    """Sizes: widths, and what follows from one. Ratios F / D and H / K are the base's.

    layers   one number for all widths, or one for each; the base's unless given
    aspect   instead: width / layers, rounded to whole layers
    """

    width: tuple[int, ...] = Field(min_length=1)
    layers: int | tuple[int, ...] | None = None
    aspect: float | None = Field(None, gt=0)
    head_dim: int | None = Field(None, ge=2, description="C of every size; the base's unless given")
    ffn_multiple: int = Field(8, ge=1, description="F is rounded to a multiple of this")

    @model_validator(mode="after")
    def _check(self) -> Ladder:
        if len(set(self.width)) != len(self.width) or min(self.width) < 1:
            raise ValueError(f"widths are positive and differ: {list(self.width)}")
        if self.layers is not None and self.aspect is not None:
            raise ValueError("give layers or aspect, not both")
        if isinstance(self.layers, tuple) and len(self.layers) != len(self.width):
            raise ValueError(f"{len(self.layers)} numbers of layers for {len(self.width)} widths")
        return self


class Centre(Section):
    """The optimal size that is expected: size x (C / flops)^exponent active parameters at C FLOPs.

    The exponent is that of early fusion (Shukor et al. 2025, arXiv 2504.07951, average of their mixtures); the size at
    1e21 FLOPs that of the refitted law of Chinchilla (arXiv 2404.10102), as theirs is not published.
    """

    size: float = Field(2.8e9, gt=0)
    flops: float = Field(1e21, gt=0)
    exponent: float = Field(0.526, gt=0, lt=1)

    def at(self, flops: float) -> float:
        """Active parameters."""
        return self.size * (flops / self.flops) ** self.exponent


class IsoFlop(Section):
    """For each budget, sizes of the ladder around the expected optimum, evenly in logarithms."""

    budgets: tuple[float, ...] = Field(min_length=1)
    points: int = Field(7, ge=3)
    half_width: float = Field(4.0, gt=1, description="the largest size is this times the centre, the smallest 1 / it")
    centre: Centre = Centre()

    @model_validator(mode="after")
    def _check(self) -> IsoFlop:
        if min(self.budgets) <= 0:
            raise ValueError("budgets are positive FLOPs")
        return self


class _Length(Section):
    @model_validator(mode="after")
    def _one_unit(self) -> _Length:
        units = ("tokens", "tokens_per_parameter", "steps")
        if sum(getattr(self, name) is not None for name in units) != 1:
            raise ValueError(f"give exactly one of {', '.join(units)}")
        return self


class GridDesign(_Length):
    """Every size with every length."""

    tokens: tuple[float, ...] | None = None
    tokens_per_parameter: tuple[float, ...] | None = None
    steps: tuple[int, ...] | None = None


class HorizonsDesign(_Length):
    """Every size trained once at a constant rate, its trunk; branches that decay end at shares of the longest horizon.

    A branch is, step for step, the run of its length with the schedule wsd; it only costs its decay.
    """

    tokens: float | None = Field(None, gt=0, description="of the longest horizon; or one of the next two")
    tokens_per_parameter: float | None = Field(None, gt=0)
    steps: int | None = Field(None, ge=2)
    at: tuple[float, ...] = Field((0.25, 0.5, 1.0), min_length=1)
    decay: float = Field(0.2, gt=0, lt=1, description="share of a horizon in which the rate falls")

    @model_validator(mode="after")
    def _check(self) -> HorizonsDesign:
        if any(not 0 < share <= 1 for share in self.at) or len(set(self.at)) != len(self.at):
            raise ValueError("at: different shares of the longest horizon, above 0 and up to 1")
        return self


class Design(Section):
    """Lengths, in one of three ways; without a design every run is as long as the base's."""

    isoflop: IsoFlop | None = None
    grid: GridDesign | None = None
    horizons: HorizonsDesign | None = None

    @model_validator(mode="after")
    def _check(self) -> Design:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of isoflop, grid, horizons; found {given or 'none'}")
        return self


class MachineSpec(Section):
    """What a run is trained on, to estimate time and cost.

    name               as of `solo.machines`: v5e-256, h100-8, cpu-2
    flops_per_second   measured, of a run; else the machine's peak times `mfu`
    """

    name: str = "cpu-1"
    flops_per_second: float | None = Field(None, gt=0)
    mfu: float = Field(0.4, gt=0, le=1, description="assumed share of the peak")
    startup_seconds: float = Field(30.0, ge=0, description="of a run: start, compilation, evaluation")
    usd_per_chip_hour: float | None = Field(None, ge=0, description="instead of the list price")


class Traffic(Section):
    """What a row holds, where there is no data yet to count it in; per row."""

    patches: float = Field(ge=0)
    text: float = Field(gt=0)
    targets: float = Field(gt=0)
    pairs: float = Field(gt=0, description="query-key pairs that attention computes in one layer")


class Limits(Section):
    """What the sweep may come to; more is refused before anything starts."""

    runs: int | None = Field(None, ge=1)
    flops: float | None = Field(None, gt=0)
    usd: float | None = Field(None, ge=0)
    hours: float | None = Field(None, gt=0, description="of machine time, all runs one after another")


AxisValues = tuple[Any, ...] | dict[str, dict[str, Any]]


class SweepSpec(Section):
    """A sweep.

    base     a config with one stage, relative to the sweep's file
    set      dotted keys of the config: what all runs have in place of the base's
    axes     a dotted key: its values; or a name of one's own: label -> dotted keys and values. Crossed with each other
    warmup   share of a run that is warm-up; of the shortest horizon, where they share a trunk
    """

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    base: str
    folder: str = Field("sweeps", description="the sweep lives in <folder>/<name>")
    set: dict[str, Any] = Field(default_factory=dict)
    axes: dict[str, AxisValues] = Field(default_factory=dict)
    ladder: Ladder | None = None
    design: Design | None = None
    warmup: float | None = Field(None, ge=0, lt=1)
    machine: MachineSpec = MachineSpec()
    traffic: Traffic | None = Field(None, description="plan without data")
    jobs: int = Field(1, ge=1, description="runs at a time, on this machine")
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _check(self) -> SweepSpec:
        for name, values in self.axes.items():
            if not values:
                raise ValueError(f"axis {name!r} has no values")
            if name in RESERVED:
                raise ValueError(f"axis {name!r}: a column of the results has this name; choose another, or a key")
        if self.design and self.design.isoflop and self.ladder is None:
            raise ValueError("design.isoflop chooses among the sizes of a ladder; give one")
        return self

    @property
    def path(self) -> Path:
        """Where the sweep lives."""
        return Path(self.folder) / self.name

    def combinations(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Of all axes: (axis -> label or value, dotted key -> value)."""
        found = []
        options = [
            [({name: label}, changes) for label, changes in values.items()]
            if isinstance(values, dict)
            else [({name: value}, {name: value}) for value in values]
            for name, values in self.axes.items()
        ]
        for chosen in product(*options):
            labels: dict[str, Any] = {}
            changes: dict[str, Any] = {}
            for label, change in chosen:
                labels |= label
                changes |= change
            found.append((labels, changes))
        return found


def load_spec(path: str | Path) -> SweepSpec:
    """Read a sweep's file; its `base` is found beside it. Raises ConfigError with one line per fault."""
    data = read_config(path)
    spec = parse_section(SweepSpec, data, str(path), "sweep")
    base = Path(path).parent / spec.base
    if not base.is_file():
        raise ConfigError(f"{path}: base: there is no config {base}")
    return spec.model_copy(update={"base": str(base)})
