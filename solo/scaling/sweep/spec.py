"""The schema of a sweep's file. It is frozen and validated; unknown keys are refused with a suggestion."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from solo.config import ConfigError, Section, parse_section, read_config

# Columns of the results and of `--json`. An axis must not have one of these names.
RESERVED = (
    *("id", "name", "status", "error", "losses", "scores", "tokenizer", "evaluation_set", "version", "commit"),
    *("tokens", "visual_tokens", "text_tokens", "unique_tokens", "text", "visual", "targets"),
    *("flops", "paid_flops", "flops_per_second", "step_seconds", "seconds", "usd", "memory"),
    *("width", "layers", "steps", "seed", "n_active", "n_total", "planned", "budget"),
    *("stable_run", "is_stable", "branch_step"),
)


class Ladder(Section):
    """Model sizes by width. The ratios F / D and H / K are those of the base.

    layers   one number for all widths, or one for each; default: the base's
    aspect   width / layers, instead of `layers`; the number of layers is rounded
    """

    width: tuple[int, ...] = Field(min_length=1)
    layers: int | tuple[int, ...] | None = None
    aspect: float | None = Field(None, gt=0)
    head_dim: int | None = Field(None, ge=2, description="C of every size; default: the base's")
    ffn_multiple: int = Field(8, ge=1, description="F is rounded to a multiple of this")

    @model_validator(mode="after")
    def _check(self) -> Ladder:
        if len(set(self.width)) != len(self.width) or min(self.width) < 1:
            raise ValueError(f"widths must be positive and differ: {list(self.width)}")
        if self.layers is not None and self.aspect is not None:
            raise ValueError("give layers or aspect, not both")
        if isinstance(self.layers, tuple) and len(self.layers) != len(self.width):
            raise ValueError(f"{len(self.layers)} numbers of layers for {len(self.width)} widths")
        return self


class Centre(Section):
    """The expected optimal size: size x (C / flops)^exponent active parameters at C FLOPs.

    The default exponent is that of early fusion (Shukor et al. 2025, arXiv 2504.07951, average of their mixtures).
    The default size at 1e21 FLOPs is that of the refitted Chinchilla law (arXiv 2404.10102), because Shukor et al.
    do not publish theirs.
    """

    size: float = Field(2.8e9, gt=0)
    flops: float = Field(1e21, gt=0)
    exponent: float = Field(0.526, gt=0, lt=1)

    def at(self, flops: float) -> float:
        """Returns the optimal number of active parameters."""
        return self.size * (flops / self.flops) ** self.exponent


class IsoFlop(Section):
    """For each budget, sizes of the ladder around the expected optimum, spaced evenly in logarithms."""

    budgets: tuple[float, ...] = Field(min_length=1)
    points: int = Field(7, ge=3)
    half_width: float = Field(4.0, gt=1, description="largest size over the centre, and centre over the smallest")
    centre: Centre = Centre()

    @model_validator(mode="after")
    def _check(self) -> IsoFlop:
        if min(self.budgets) <= 0:
            raise ValueError("budgets must be positive FLOPs")
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
    """One stable run per size at a constant learning rate, with decay branches at fractions of the longest horizon.

    A branch equals, step for step, a run of its length with the schedule `wsd`, but it costs only its decay.
    """

    tokens: float | None = Field(None, gt=0, description="of the longest horizon; or give one of the next two")
    tokens_per_parameter: float | None = Field(None, gt=0)
    steps: int | None = Field(None, ge=2)
    at: tuple[float, ...] = Field((0.25, 0.5, 1.0), min_length=1)
    decay: float = Field(0.2, gt=0, lt=1, description="share of a horizon in which the learning rate decays")

    @model_validator(mode="after")
    def _check(self) -> HorizonsDesign:
        if any(not 0 < share <= 1 for share in self.at) or len(set(self.at)) != len(self.at):
            raise ValueError("at: expected different shares of the longest horizon, above 0 and at most 1")
        return self


class Design(Section):
    """Lengths of the runs, given in one of three ways; without a design every run is as long as the base."""

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
    """The machine of a run, to estimate time and cost.

    name               as in `solo.machines`: v5e-256, h100-8, cpu-2
    flops_per_second   measured speed of a run; default: the machine's peak times `mfu`
    """

    name: str = "cpu-1"
    flops_per_second: float | None = Field(None, gt=0)
    mfu: float = Field(0.4, gt=0, le=1, description="assumed share of the peak")
    startup_seconds: float = Field(30.0, ge=0, description="start, compilation and evaluation of a run")
    usd_per_chip_hour: float | None = Field(None, ge=0, description="replaces the list price")


class RowStatistics(Section):
    """Mean contents of a row, for planning before there is data."""

    patches: float = Field(ge=0)
    text: float = Field(gt=0)
    targets: float = Field(gt=0)
    attended_pairs: float = Field(gt=0, description="query-key pairs that the attention of one layer computes")


class Limits(Section):
    """Limits of the whole sweep; a sweep that exceeds one is refused before anything starts."""

    runs: int | None = Field(None, ge=1)
    flops: float | None = Field(None, gt=0)
    usd: float | None = Field(None, ge=0)
    hours: float | None = Field(None, gt=0, description="machine time, with one run after another")


AxisValues = tuple[Any, ...] | dict[str, dict[str, Any]]


class SweepSpec(Section):
    """A sweep.

    base             path of a config with one stage, relative to the sweep's file
    set              dotted keys of the config -> values that replace the base's in all runs
    axes             a dotted key -> its values, or any name -> labels -> dotted keys and values; axes are crossed
    warmup           share of a run spent in warm-up; with horizons, share of the shortest one
    row_statistics   mean contents of a row, for planning without data
    """

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    base: str
    folder: str = Field("sweeps", description="the sweep's files are in <folder>/<name>")
    set: dict[str, Any] = Field(default_factory=dict)
    axes: dict[str, AxisValues] = Field(default_factory=dict)
    ladder: Ladder | None = None
    design: Design | None = None
    warmup: float | None = Field(None, ge=0, lt=1)
    machine: MachineSpec = MachineSpec()
    row_statistics: RowStatistics | None = None
    jobs: int = Field(1, ge=1, description="concurrent runs on this machine")
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _check(self) -> SweepSpec:
        for name, values in self.axes.items():
            if not values:
                raise ValueError(f"axis {name!r} has no values")
            if name.partition(".")[0] in RESERVED:
                raise ValueError(f"axis {name!r}: a column of the results has this name; choose another, or a key")
        if self.design and self.design.isoflop and self.ladder is None:
            raise ValueError("design.isoflop chooses among the sizes of a ladder, which is missing")
        return self

    @property
    def path(self) -> Path:
        """The sweep's folder."""
        return Path(self.folder) / self.name

    def combinations(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Returns all combinations of the axes: (axis -> label or value, dotted key -> value)."""
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
    """Reads a sweep's file and resolves its `base`. Raises ConfigError with one line per fault."""
    data = read_config(path)
    spec = parse_section(SweepSpec, data, str(path), "sweep")
    base = Path(path).parent / spec.base
    if not base.is_file():
        raise ConfigError(f"{path}: base: there is no config {base}")
    return spec.model_copy(update={"base": str(base)})
