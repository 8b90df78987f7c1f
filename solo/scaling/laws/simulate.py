"""Simulates a sweep before any compute is spent: fits its design to losses of an assumed law, with noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from solo.config import Section, parse_section, read_config
from solo.scaling.laws.bootstrap import intervals
from solo.scaling.laws.catalogue import LAWS
from solo.scaling.laws.fit import FitRefusedError, check_design, fit
from solo.scaling.laws.law import Array, Law
from solo.scaling.laws.optimum import optimum
from solo.scaling.laws.problem import Problem
from solo.scaling.laws.runs import Runs, make_runs
from solo.scaling.laws.solver import solve

# The refit by Besiroglu et al. 2024 (arXiv 2404.10102) of the runs of Hoffmann et al.; the digits are from our fit.
ASSUMED = {"E": 1.8172, "A": 477.8, "B": 2143.0, "alpha": 0.3473, "beta": 0.3672}
JUDGED = 20  # data sets that are fitted in full, from many starts, to see whether the fit would be refused


class IsoFlop(Section):
    """Sizes around the optimum of each budget, spaced evenly in logarithms.

    center: centre of the grid over the true optimum; 1 means that the grid is centred on it.
    """

    budgets: list[float] = Field(min_length=1)
    points: int = Field(7, ge=2)
    half_width: float = Field(4.0, gt=1)
    center: float = Field(1.0, gt=0)


class Grid(Section):
    """Every size with every number of tokens, or every ratio of tokens per parameter."""

    n: list[float] = Field(min_length=1)
    d: list[float] = Field(default=[])
    tokens_per_parameter: list[float] = Field(default=[])

    @model_validator(mode="after")
    def _one_of_them(self) -> Grid:
        if bool(self.d) == bool(self.tokens_per_parameter):
            raise ValueError("give either d or tokens_per_parameter")
        return self


class Horizons(Section):
    """One stable run per size, with decay branches at fractions of its longest horizon (WSD)."""

    n: list[float] = Field(min_length=1)
    tokens_per_parameter: float = Field(gt=0)
    at: list[float] = Field(min_length=1)


class Design(Section):
    """The runs of a sweep, given in one of five ways.

    runs    pairs of parameters and tokens
    sweep   path of a sweep's file, relative to this file; the design has the runs of that sweep
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
    """A design, and the assumed law that it is tested on.

    law                the law to fit
    coefficients       coefficients of the assumed law
    noise              standard deviation of a run's log loss; 0.003 is typical of a good sweep
    stable_run_noise   standard deviation of the additional noise that all branches of a stable run share
    predict            compute at which to predict the optimum
    datasets           number of simulated sweeps
    """

    law: Literal["chinchilla", "shared", "power"] = "chinchilla"
    coefficients: dict[str, float] = Field(default=ASSUMED)
    noise: float = Field(0.003, ge=0)
    stable_run_noise: float = Field(0.0, ge=0)
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
    """The fits that a design leads to.

    clusters    number of independent training runs: stable runs, and runs without a stable run
    flops       total compute of all runs; a stable run counts once for each of its branches
    truth       true coefficients and exponents, and the optimal size, tokens and loss at the compute of `predict`
    intervals   80% and 95% intervals of the estimates over the data sets
    refused     reason -> number of data sets that gave no law, among the first `JUDGED`
    """

    runs: int
    clusters: int
    flops: float
    extrapolation: float
    truth: dict[str, float]
    intervals: dict[str, dict[str, tuple[float, float]]]
    datasets: int
    refused: dict[str, int]


def load_spec(path: str | Path) -> SimulateSpec:
    """Reads a YAML file. Raises ConfigError with one line per fault."""
    spec = parse_section(SimulateSpec, read_config(path), str(path), "design")
    if spec.design.sweep is None:
        return spec
    beside = str(Path(path).parent / spec.design.sweep)
    return spec.model_copy(update={"design": spec.design.model_copy(update={"sweep": beside})})


def design_runs(design: Design, law: Law, coefficients: dict[str, float]) -> Runs:
    """Returns the runs of a design, with the noiseless losses of the law."""
    if design.sweep is not None:
        runs = _sweep_runs(design.sweep)
    else:
        n, d, cluster = _points(design, law, coefficients)
        runs = make_runs(n, d, np.ones(len(n)), cluster=cluster)
    return runs.with_loss(law.loss(coefficients, runs.variables()))


def simulate(spec: SimulateSpec) -> Simulated:
    """Simulates a sweep many times: samples losses, fits the law, computes the optimum.

    Raises:
        FitRefusedError: the design cannot determine the law, or more than half of the data sets do not.
    """
    law = LAWS[spec.law]
    runs = design_runs(spec.design, law, spec.coefficients)
    check_design(law, runs)
    generator = np.random.default_rng(spec.seed)
    names, cluster = np.unique(np.array(runs.cluster), return_inverse=True)
    shape = (spec.datasets, len(runs))
    shared = generator.normal(0.0, spec.stable_run_noise, (spec.datasets, len(names)))[:, cluster]
    losses = runs.loss * np.exp(generator.normal(0.0, spec.noise, shape) + shared)
    kept, refused = _refusals(law, runs, losses)
    if sum(refused.values()) > 0.5 * min(JUDGED, spec.datasets):
        raise FitRefusedError(
            f"{sum(refused.values())} of {min(JUDGED, spec.datasets)} data sets do not determine the law:"
            f" {'; '.join(f'{count} x {reason}' for reason, count in refused.items())}. Choose another design"
        )
    problem = Problem(law, runs, loss=losses[kept])
    start = problem.vector(spec.coefficients)
    found = problem.coefficients(solve(problem, np.repeat(start[None], len(kept), axis=0)).vectors)
    truth = _quantities(law, spec.coefficients, spec.predict, runs.flops_factor)
    return Simulated(
        runs=len(runs),
        clusters=len(names),
        flops=float(runs.flops.sum()),
        extrapolation=spec.predict / float(runs.flops.max()),
        truth={name: float(value) for name, value in truth.items()},
        intervals=intervals(_quantities(law, found, spec.predict, runs.flops_factor)),
        datasets=spec.datasets,
        refused=refused,
    )


def _refusals(law: Law, runs: Runs, losses: Array) -> tuple[np.ndarray, dict[str, int]]:
    """Returns the usable data sets, and reason -> count of refusals. Only the first `JUDGED` are fitted."""
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
    """Returns parameters and tokens of each run, and the clusters if runs share a stable run."""
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
        return n, n * share * design.horizons.tokens_per_parameter, [f"{size:g} parameters" for size in n]
    pairs = np.array(design.runs or [], float).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1], None


def _sweep_runs(path: str) -> Runs:
    """Returns the runs of a sweep that are fitted, for all values of its axes. Prepares its data if necessary."""
    # Imported here because it imports JAX.
    from solo.scaling.sweep.points import expand
    from solo.scaling.sweep.spec import load_spec

    points = [point for point in expand(load_spec(path)) if not point.is_stable]
    found = [point.estimate for point in points]
    return make_runs(
        [each.n_active for each in found],
        [each.tokens for each in found],
        np.ones(len(found)),
        flops=[each.flops for each in found],
        cluster=[point.stable_run or point.id for point in points],
        id=[point.id for point in points],
    )
