"""A sweep before it is paid for: its design on a made-up law with noise, and the interval that it would buy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import Field, ValidationError, model_validator

from solo.config import ConfigError
from solo.config.base import Section
from solo.scaling.laws.bootstrap import interval
from solo.scaling.laws.fit import FitRefusedError, check_design, fit
from solo.scaling.laws.law import LAWS, Array, Law
from solo.scaling.laws.predict import optimum
from solo.scaling.laws.problem import Problem
from solo.scaling.laws.runs import Runs, make_runs
from solo.scaling.laws.solver import solve

# Refitted by Besiroglu et al. 2024 (arXiv 2404.10102) to the runs of Hoffmann et al.; digits of our own fit.
ASSUMED = {"E": 1.8172, "A": 477.8, "B": 2143.0, "alpha": 0.3473, "beta": 0.3672}


JUDGED = 20  # data sets that are fitted from many starts, to see whether a fit would be refused


class IsoFlop(Section):
    """Sizes around the best of each budget, evenly in logarithms.

    center: factor by which the grid misses the true optimum; 1 is on it.
    """

    budgets: list[float] = Field(min_length=1)
    points: int = Field(7, ge=2)
    half_width: float = Field(4.0, gt=1)
    center: float = Field(1.0, gt=0)


class Grid(Section):
    """Every size with every number of tokens, or of tokens per parameter."""

    n: list[float] = Field(min_length=1)
    d: list[float] = Field(default=[])
    tokens_per_parameter: list[float] = Field(default=[])

    @model_validator(mode="after")
    def _one_of_them(self) -> Grid:
        if bool(self.d) == bool(self.tokens_per_parameter):
            raise ValueError("give either d or tokens_per_parameter")
        return self


class Horizons(Section):
    """One trunk for each size, branched off at shares of its longest horizon: a decay from one trunk (WSD)."""

    n: list[float] = Field(min_length=1)
    tokens_per_parameter: float = Field(gt=0)
    at: list[float] = Field(min_length=1)


class Design(Section):
    """The runs of a sweep, in one of five ways.

    runs    pairs of parameters and tokens
    sweep   the file of a sweep, whose own runs they are; relative to this one
    """

    isoflop: IsoFlop | None = None
    grid: Grid | None = None
    horizons: Horizons | None = None
    runs: list[list[float]] | None = None
    sweep: str | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Design:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of isoflop, grid, horizons, runs, sweep; found {given or 'none'}")
        if self.runs is not None and any(len(pair) != 2 for pair in self.runs):
            raise ValueError("runs: each is a pair, [parameters, tokens]")
        return self


class SimulateSpec(Section):
    """A design, and the world it is tried in.

    law             the law to fit
    coefficients    of the made-up truth
    noise           standard deviation of a run's log loss; 0.003 is that of a good sweep
    trunk_noise     of what the runs of one trunk share, besides
    predict         the compute whose optimum is to be known
    datasets        how many times the sweep is played through
    """

    law: Literal["chinchilla", "shared", "power"] = "chinchilla"
    coefficients: dict[str, float] = Field(default=ASSUMED)
    noise: float = Field(0.003, ge=0)
    trunk_noise: float = Field(0.0, ge=0)
    design: Design
    predict: float = Field(gt=0)
    datasets: int = Field(200, ge=10)
    seed: int = 0

    @model_validator(mode="after")
    def _coefficients_of_the_law(self) -> SimulateSpec:
        needed = LAWS[self.law].coefficients
        if set(needed) != set(self.coefficients):
            raise ValueError(f"coefficients: the law {self.law!r} has {', '.join(needed)}")
        return self


@dataclass(frozen=True)
class Simulated:
    """What a design would buy.

    truth       of each quantity: coefficients, exponents, and size, tokens and loss at the compute asked for
    intervals   80% and 95% of the estimates, over the data sets
    refused     how many of the first `JUDGED` data sets gave no law, by reason
    flops       of all runs together, the trunk of each paid once per horizon
    """

    runs: int
    trunks: int
    flops: float
    extrapolation: float
    truth: dict[str, float]
    intervals: dict[str, dict[str, tuple[float, float]]]
    datasets: int
    refused: dict[str, int]


def load_spec(path: str | Path) -> SimulateSpec:
    """Read a YAML file. Raises ConfigError with one line per fault."""
    try:
        data = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    try:
        spec = SimulateSpec.model_validate(_numbers(data), strict=False)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, fault['loc'])) or '(top)'}: {fault['msg']}" for fault in error.errors()]
        raise ConfigError(f"{path} is no design:\n" + "\n".join(lines)) from None
    if spec.design.sweep is None:
        return spec
    beside = str(Path(path).parent / spec.design.sweep)
    return spec.model_copy(update={"design": spec.design.model_copy(update={"sweep": beside})})


def design_runs(design: Design, law: Law, coefficients: dict[str, float]) -> Runs:
    """The runs of a design, with the law's losses and no noise."""
    if design.sweep is not None:
        runs = _of_sweep(design.sweep)
    else:
        n, d, trunk = _points(design, law, coefficients)
        runs = make_runs(n, d, np.ones(len(n)), trunk=trunk)
    return runs.with_loss(law.loss(coefficients, runs.variables()))


def simulate(spec: SimulateSpec) -> Simulated:
    """Play a sweep through: draw losses, fit, look up the optimum, over and over.

    Raises:
        FitRefusedError: no losses could make up for the design, or hardly any data set determines the law.
    """
    law = LAWS[spec.law]
    runs = design_runs(spec.design, law, spec.coefficients)
    check_design(law, runs)
    generator = np.random.default_rng(spec.seed)
    names, cluster = np.unique(np.array(runs.trunk), return_inverse=True)
    shape = (spec.datasets, len(runs))
    shared = generator.normal(0.0, spec.trunk_noise, (spec.datasets, len(names)))[:, cluster]
    losses = runs.loss * np.exp(generator.normal(0.0, spec.noise, shape) + shared)
    kept, refused = _refusals(law, runs, losses)
    if sum(refused.values()) > 0.5 * min(JUDGED, spec.datasets):
        raise FitRefusedError(
            f"of {min(JUDGED, spec.datasets)} data sets {sum(refused.values())} do not determine the law:"
            f" {'; '.join(f'{count} x {reason}' for reason, count in refused.items())}. Buy another design"
        )
    problem = Problem(law, runs, loss=losses[kept])
    start = problem.vector(spec.coefficients)
    found = problem.coefficients(solve(problem, np.repeat(start[None], len(kept), axis=0)).vectors)
    truth = _quantities(law, spec.coefficients, spec.predict, runs.flops_factor)
    estimates = _quantities(law, found, spec.predict, runs.flops_factor)
    return Simulated(
        runs=len(runs),
        trunks=len(names),
        flops=float(runs.flops.sum()),
        extrapolation=spec.predict / float(runs.flops.max()),
        truth={name: float(value) for name, value in truth.items()},
        intervals={
            name: {str(level): interval(np.asarray(values), level) for level in (80, 95)}
            for name, values in estimates.items()
        },
        datasets=spec.datasets,
        refused=refused,
    )


def _refusals(law: Law, runs: Runs, losses: Array) -> tuple[np.ndarray, dict[str, int]]:
    """Data sets that a fit accepts, and how many were refused for what; judged on the first few."""
    kept, refused = [], dict[str, int]()
    for place, loss in enumerate(losses):
        try:
            if place < JUDGED:
                fit(law, runs.with_loss(loss))
            kept.append(place)
        except FitRefusedError as refusal:
            reason = str(refusal).partition(":")[0]
            refused[reason] = refused.get(reason, 0) + 1
    return np.array(kept, int), refused


def _quantities(law: Law, coefficients: dict[str, Any], flops: float, factor: float) -> dict[str, Any]:
    return {
        **{name: coefficients[name] for name in law.coefficients},
        **law.optimum_exponents(coefficients),
        **optimum(law, coefficients, flops, factor),
    }


def _points(design: Design, law: Law, coefficients: dict[str, float]) -> tuple[Array, Array, list[str] | None]:
    if design.isoflop:
        spec = design.isoflop
        steps = np.geomspace(1 / spec.half_width, spec.half_width, spec.points) * spec.center
        best = np.array([law.optimum(coefficients, budget)[0] for budget in spec.budgets])
        n = (best[:, None] * steps).ravel()
        return n, np.repeat(spec.budgets, spec.points) / 6.0 / n, None
    if design.grid:
        n, second = (
            part.ravel() for part in np.meshgrid(design.grid.n, design.grid.d or design.grid.tokens_per_parameter)
        )
        return n, second if design.grid.d else n * second, None
    if design.horizons:
        n, share = (part.ravel() for part in np.meshgrid(design.horizons.n, design.horizons.at))
        return n, n * share * design.horizons.tokens_per_parameter, [f"trunk of {size:g}" for size in n]
    pairs = np.array(design.runs or [], float).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1], None


def _of_sweep(path: str) -> Runs:
    """The runs that a sweep would fit, all axes together; its data are counted, and prepared where they are missing."""
    # Imported here: it takes jax.
    from solo.scaling.sweep.points import expand
    from solo.scaling.sweep.spec import load_spec

    points = [point for point in expand(load_spec(path)) if not point.is_trunk]
    found = [point.estimate for point in points]
    return make_runs(
        [each.n_active for each in found],
        [each.tokens for each in found],
        np.ones(len(found)),
        flops=[each.flops for each in found],
        trunk=[point.trunk or point.id for point in points],
        id=[point.id for point in points],
    )


def _numbers(node: Any) -> Any:
    """YAML 1.1 reads 1e18 as text; what looks like a number becomes one."""
    if isinstance(node, dict):
        return {key: _numbers(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_numbers(value) for value in node]
    if isinstance(node, str):
        try:
            return float(node)
        except ValueError:
            return node
    return node
