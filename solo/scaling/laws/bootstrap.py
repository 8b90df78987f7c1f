"""Uncertainty of a fit: a case bootstrap, clustered by stable run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from solo.scaling.laws.fit import Fit, FitRefusedError, check_design, no_note
from solo.scaling.laws.law import Array
from solo.scaling.laws.problem import Problem
from solo.scaling.laws.solver import solve

LEVELS = (80, 95)
DRAWS = 1000
FEWEST_CLUSTERS, FEW_CLUSTERS = 4, 10
# With more trainings than this, a draw takes one Newton step from the fit instead of a refit (Schucany and Wang 1991):
# its error is of the order of 1/R, the width of an interval of 1/sqrt(R). A step only needs sums over trainings, so
# they are joined at random into this many bags, which are resampled instead.
_ONE_STEP = 5000

_FEWEST_SIZES = 15  # runs of a group whose residuals are exchanged

Interval = tuple[float, float]


@dataclass(frozen=True)
class Bootstrap:
    """The coefficients of a law, refitted to J bootstrap samples.

    coefficients    each [J]
    clusters        number of clusters to sample from; a cluster is a stable run with its branches, or a single run
    redrawn         number of samples that were rejected, and drawn again, because they could not determine the law
    notes           caveats about the intervals
    """

    coefficients: dict[str, Array]
    clusters: int
    redrawn: int
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(next(iter(self.coefficients.values())))

    def columns(self) -> dict[str, Array]:
        """Returns the coefficients as columns [J,1], which broadcast against runs."""
        return {name: values[:, None] for name, values in self.coefficients.items()}


def bootstrap(fitted: Fit, draws: int = DRAWS, seed: int = 0, note: Callable[[str], None] = no_note) -> Bootstrap:
    """Refits a law to bootstrap samples of its runs. Every refit starts from the original fit.

    The branches of a stable run share its noise, so whole clusters are resampled.

    Args:
        fitted: the law.
        draws: number of bootstrap samples, J.
        seed: seed of the resampling.
        note: called with progress messages.

    Raises:
        FitRefusedError: there are too few clusters, or most samples do not determine the law.
    """
    runs = fitted.runs
    names, cluster = np.unique(np.array(runs.cluster), return_inverse=True)
    if len(names) < FEWEST_CLUSTERS:
        raise FitRefusedError(
            f"no intervals: {len(runs)} runs branched from {len(names)} stable runs are {len(names)} independent"
            f" trainings; at least {FEWEST_CLUSTERS} are needed, better {FEW_CLUSTERS}"
        )
    generator = np.random.default_rng(seed)
    if len(names) > _ONE_STEP:
        note(f"resampling {draws:,} times")
        vectors = _newton_steps(fitted, cluster, len(names), draws, generator)
        return Bootstrap(fitted.problem.coefficients(vectors), len(names), 0, ())
    strata = _strata(fitted, cluster)
    tried = 0

    def weights() -> Array:
        nonlocal tried
        while tried < 20 * draws:
            drawn = np.zeros(len(names), int)
            for stratum in strata:
                drawn[stratum] = generator.multinomial(len(stratum), np.full(len(stratum), 1 / len(stratum)))
            tried += 1
            found = drawn[cluster].astype(float)
            if _determined(fitted, found):
                return found
        raise FitRefusedError(
            f"no intervals: of {tried} resamplings of {len(names)} independent trainings most do not determine the"
            " law; more trainings are needed"
        )

    note(f"resampling {draws:,} times")
    drawn = np.array([weights() for _ in range(draws)])
    found = solve(fitted.problem, np.repeat(fitted.vector[None], draws, axis=0), drawn)
    notes = _notes(len(names), tried - draws, draws, int(np.count_nonzero(~found.converged)))
    return Bootstrap(fitted.problem.coefficients(found.vectors), len(names), tried - draws, notes)


def simulated(law: Fit, source: Fit, draws: int, seed: int) -> Array:
    """Returns losses [J,R] of a law with noise like that of the runs, for tests and where runs cannot be resampled.

    A fit shrinks residuals, and a Huber fit passes through about as many runs as it has coefficients. With these zeros,
    refits would vary too little. So each run gets a size that is drawn from its group, without as many of the smallest
    as there are coefficients, and a random sign. Clusters, and groups that are small, keep their sizes and get one sign
    per cluster (the wild bootstrap of Wu 1986); normal noise then restores the variance. Residuals of an asymmetric
    objective do not scatter about zero; they are drawn from the group as they are.

    Args:
        law: the law from which losses are simulated.
        source: the fit whose residuals are used; both are of the same runs.
        draws: number of data sets, J.
        seed: seed of the noise.
    """
    runs, residuals, generator = source.runs, source.residuals(), np.random.default_rng(seed)
    parameters, shape = len(source.law.coefficients), (draws, len(runs))
    symmetric = source.problem.objective.overestimates == 1
    groups = [np.flatnonzero(runs.group == place) for place in np.unique(runs.group)]
    signs = generator.choice([-1.0, 1.0], shape)
    noise = np.empty(shape)
    if symmetric and (runs.clusters < len(runs) or min(map(len, groups)) < _FEWEST_SIZES):
        cluster = np.unique(np.array(runs.cluster), return_inverse=True)[1]
        lost = source.scatter * np.sqrt(len(runs) / max(len(runs) - parameters, 1) - 1.0)
        noise = signs[:, cluster] * residuals + generator.normal(0.0, lost, shape)
        return np.asarray(law.predict(runs) * np.exp(noise))
    for rows in groups:
        sizes = np.sort(np.abs(residuals[rows]))[parameters // len(groups) :] if symmetric else residuals[rows]
        noise[:, rows] = generator.choice(sizes, (draws, len(rows)))
    return np.asarray(law.predict(runs) * np.exp(noise * signs if symmetric else noise))


def refit(fitted: Fit, losses: Array) -> Problem:
    """Returns the problem of a law with other losses [J,R]; every refit starts from the original fit."""
    return Problem(fitted.law, fitted.runs, fitted.problem.objective, losses)


def _strata(fitted: Fit, cluster: np.ndarray) -> list[np.ndarray]:
    """Returns the clusters of each group; they are resampled within their group, so that none becomes empty."""
    first = np.unique(cluster, return_index=True)[1]
    group = fitted.runs.group[first]
    return [np.flatnonzero(group == place) for place in range(max(len(fitted.law.groups), 1))]


def _newton_steps(fitted: Fit, cluster: np.ndarray, count: int, draws: int, generator: np.random.Generator) -> Array:
    """Returns the vectors [J,P] after one step from the fit. All draws share residuals and derivatives at the fit."""
    problem, vector = fitted.problem, fitted.vector
    jacobian = problem.jacobian(vector)
    slope, curvature, _ = problem.huber(problem.residuals(vector))
    size = len(vector)
    upper = np.triu_indices(size)
    columns = np.concatenate(
        [slope[:, None] * jacobian, curvature[:, None] * jacobian[:, upper[0]] * jacobian[:, upper[1]]], axis=1
    )
    bag = (generator.permutation(count) % _ONE_STEP)[cluster]
    sums = np.array([np.bincount(bag, column, _ONE_STEP) for column in columns.T]).T
    weights = generator.multinomial(_ONE_STEP, np.full(_ONE_STEP, 1 / _ONE_STEP), draws)
    totals = weights @ sums
    hessian = np.zeros((draws, size, size))
    hessian[:, upper[0], upper[1]] = hessian[:, upper[1], upper[0]] = totals[:, size:]
    # The gradient of the whole is zero, up to the tolerance of the fit.
    gradient = totals[:, :size] - sums[:, :size].sum(axis=0)
    found = vector - np.linalg.solve(hessian, gradient[..., None])[..., 0]
    return np.clip(found, problem.lower, problem.upper)


def interval(values: Array, level: int) -> Interval:
    """Returns the two percentiles that enclose the central `level` percent of the draws. NaN counts as infinite."""
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        found = np.percentile(np.where(np.isnan(values), np.inf, values), [50 - level / 2, 50 + level / 2])
    low, high = np.where(np.isnan(found), np.inf, found)
    return float(low), float(high)


def intervals(draws: Mapping[str, Array]) -> dict[str, dict[str, Interval]]:
    """Returns the intervals of each quantity: {name: {"80": (low, high), "95": ...}}."""
    return {name: {str(level): interval(values, level) for level in LEVELS} for name, values in draws.items()}


def _determined(fitted: Fit, weights: Array) -> bool:
    rows = weights > 0
    # A sample repeats some runs. It needs only as many distinct ones as there are coefficients, not `fewest_runs`.
    if np.count_nonzero(rows) < len(fitted.law.coefficients):
        return False
    try:
        check_design(fitted.law, fitted.runs.nameless(rows), fewest_runs=0)
    except FitRefusedError:
        return False
    return True


def _notes(clusters: int, redrawn: int, draws: int, unfinished: int) -> tuple[str, ...]:
    notes = []
    if clusters < FEW_CLUSTERS:
        notes.append(
            f"{clusters} independent trainings are few to resample: the intervals are rough, and probably too narrow"
        )
    if redrawn > 0.05 * draws:
        notes.append(
            f"{redrawn} resamplings, {redrawn / (redrawn + draws):.0%}, could not determine the law and were redrawn"
        )
    if unfinished > 0.02 * draws:
        notes.append(f"{unfinished} of {draws} resamplings did not converge; their last point was taken")
    return tuple(notes)
