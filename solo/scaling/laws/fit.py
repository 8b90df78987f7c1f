"""Fits a law to runs: a search from many starts, finished by SciPy. Refuses runs that do not determine the law."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from solo.scaling.laws.law import Array, Law
from solo.scaling.laws.problem import HIGHEST_EXPONENT, HUBER_DELTA, LOWEST_EXPONENT, Problem
from solo.scaling.laws.runs import SAME_SIZE, Runs
from solo.scaling.laws.solver import Solutions, solve
from solo.scaling.laws.start import starting_points

FEWEST_VALUES = 3  # distinct values of a variable; a power law with a floor has three unknowns
LEAST_RATIO_SPREAD = 4.0  # largest tokens per parameter over the smallest
_EDGE = 1e-6
_NO_FLOOR = 1e-3  # share of the lowest loss
_SEARCHED = 2000
_STEPS = 150  # of each start; a start that has not converged by then does not count as agreeing
_SAME_OBJECTIVE, _SAME_COEFFICIENT = 1e-6, 1e-2
_WORST_CONDITION = 1e7  # about 30 for a good design, above 1e7 if all runs have the same tokens per parameter
_WORST_ERROR = 0.5  # standard error of an exponent, relative
_MEDIAN_TO_SD = 1.4826  # median absolute deviation to standard deviation, for normal errors
_ROBUST_ERROR = 1.25  # ratio of the standard errors of an L1 fit and of least squares, for normal errors


class FitRefusedError(ValueError):
    """The runs do not determine the law. The message says why, and which runs would."""


@dataclass(frozen=True)
class Fit:
    """A fitted law.

    coefficients    in natural units: L = E + A/N^alpha + ... with N in parameters and D in tokens
    objective       value of the objective at the minimum (see `problem.OBJECTIVES`)
    starts          number of starting points
    agreeing        number of starting points that led to this minimum
    condition       condition number of the Jacobian with normalised columns; large if coefficients trade off
    notes           caveats for the reader
    """

    problem: Problem
    vector: Array
    coefficients: dict[str, float]
    objective: float
    starts: int
    agreeing: int
    condition: float
    notes: tuple[str, ...]

    @property
    def law(self) -> Law:
        """The law that was fitted."""
        return self.problem.law

    @property
    def runs(self) -> Runs:
        """The runs it was fitted to."""
        return self.problem.runs

    def predict(self, runs: Runs) -> Array:
        """Returns the losses that the law predicts for other runs: [R]."""
        return self.law.loss(self.coefficients, runs.variables())

    def residuals(self) -> Array:
        """Returns log(actual loss / predicted loss) of each run: [R]."""
        return np.log(self.runs.loss / self.predict(self.runs))

    @property
    def scatter(self) -> float:
        """Relative standard deviation of the runs about the law, estimated robustly from a median."""
        return _scatter(self.residuals(), len(self.law.coefficients))


def no_note(text: str) -> None:
    """Ignores a progress message: the default of `note` arguments."""


def fit(law: Law, runs: Runs, objective: str = "huber", starts: Sequence[dict[str, float]] | None = None) -> Fit:
    """Fits a law to runs.

    The search from many starts uses at most 2,000 runs, drawn at random. Its best minimum is then refined on all runs.

    Args:
        law: one of `law.LAWS`.
        runs: finished runs.
        objective: `huber` for log losses, or `squares` for losses.
        starts: coefficients to start from; default: variable projection.

    Raises:
        FitRefusedError: there are too few runs or too little spread, the minimum is at the edge of the search range, or
            several minima fit equally well.
    """
    check_design(law, runs)
    some = runs
    if len(runs) > _SEARCHED:
        some = runs[np.sort(np.random.default_rng(0).choice(len(runs), _SEARCHED, replace=False))]
    search = Problem(law, some, objective)
    vectors = starting_points(search) if starts is None else np.array([search.vector(start) for start in starts])
    found = solve(search, vectors, steps=_STEPS)
    best = finish(search, found.vectors[np.argmin(found.objective)])
    agreeing = _agreeing(search, found, best, _value(search, best))
    problem = search
    if some is not runs:
        problem = Problem(law, runs, objective)
        best = finish(problem, problem.vector(search.coefficients(best)))
    condition, notes = _check_minimum(problem, best)
    if agreeing < 0.3 * len(vectors) and starts is None:
        notes = (*notes, f"only {agreeing} of {len(vectors)} starting points led to the best minimum")
    coefficients = {name: float(array) for name, array in problem.coefficients(best).items()}
    return Fit(problem, best, coefficients, _value(problem, best), len(vectors), agreeing, condition, notes)


def _value(problem: Problem, vector: Array) -> float:
    return float(problem.value(vector[None], np.ones((1, len(problem.runs))))[0])


def finish(problem: Problem, start: Array) -> Array:
    """Returns the local minimum near a start [P]: the lower of those that SciPy's `least_squares` and `solve` find.

    Tolerances are relative to the objective. With absolute tolerances, and even more with a mean instead of a sum, the
    search stops near its start (Besiroglu et al. 2024, arXiv 2404.10102, on the published fit of Hoffmann et al.).
    """
    done = least_squares(
        problem.residuals,
        start,
        problem.jacobian,
        bounds=(problem.lower, problem.upper),
        loss="huber" if problem.objective == "huber" else "linear",
        f_scale=HUBER_DELTA,
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-15,
        max_nfev=2000,
    )
    candidates = np.array([start, done.x, solve(problem, np.array([done.x])).vectors[0]])
    return candidates[np.argmin(problem.value(candidates, np.ones((3, len(problem.runs)))))]


def check_design(law: Law, runs: Runs, fewest_runs: int | None = None) -> None:
    """Raises FitRefusedError if the runs cannot determine the law, regardless of their losses."""
    fewest = law.fewest_runs if fewest_runs is None else fewest_runs
    if len(runs) < fewest:
        raise FitRefusedError(f"{len(runs)} runs are too few for the law {law.name!r}; it needs {fewest}")
    names = {"n": "parameters", "d": "tokens", "flops": "compute"}
    for variable in law.variables:
        values = _distinct(runs.variables()[variable])
        if values < FEWEST_VALUES and (law.name != "shared" or values < 2):
            raise FitRefusedError(
                f"the runs have {values} different numbers of {names[variable]}; the law {law.name!r} needs"
                f" {FEWEST_VALUES} to tell an exponent from the floor E"
            )
    if law.allocates:
        ratio = runs.d / runs.n
        spread = float(ratio.max() / ratio.min())
        if spread < LEAST_RATIO_SPREAD:
            raise FitRefusedError(
                f"tokens per parameter differ only by a factor of {spread:.3g}, {ratio.min():.3g} to"
                f" {ratio.max():.3g}: the effects of parameters and tokens cannot be separated. Vary them by"
                f" {LEAST_RATIO_SPREAD:g} or more, or fit compute alone (--law power)"
            )
    if law.repeats and not (np.count_nonzero(runs.d > 1.5 * runs.unique) >= 3):
        raise FitRefusedError(
            f"the law {law.name!r} needs at least 3 runs that read their tokens more than 1.5 times;"
            f" {np.count_nonzero(runs.d > 1.5 * runs.unique)} do. Without repeats fit --law chinchilla"
        )


def _distinct(values: Array) -> int:
    """Counts the values that differ by more than a factor of `SAME_SIZE`, up to `FEWEST_VALUES`."""
    count, left = 0, values
    while count < FEWEST_VALUES and len(left):
        count += 1
        left = left[left > SAME_SIZE * left.min()]
    return count


def _agreeing(problem: Problem, found: Solutions, best: Array, value: float) -> int:
    """Counts the starts that led to the best minimum. Raises FitRefusedError if another minimum is equally good."""
    near = found.converged & (found.objective <= value * (1 + _SAME_OBJECTIVE) + 1e-20)
    here, there = problem.coefficients(best), problem.coefficients(found.vectors[near])
    apart = np.zeros(int(near.sum()), bool)
    for name in problem.law.exponents:
        apart |= np.abs(there[name] / here[name] - 1) > _SAME_COEFFICIENT
    # A floor near 0 can be any small number, so amplitudes are compared relative to the loss.
    count = len(problem.law.amplitudes)
    shares = np.abs(np.exp(found.vectors[near, :count]) - np.exp(best[:count])) / problem.loss.min()
    apart |= (shares > _SAME_COEFFICIENT).any(axis=1)
    if apart.any():
        other = {name: float(array[np.argmax(apart)]) for name, array in there.items()}
        raise FitRefusedError(
            "not identified: two sets of coefficients fit equally well, "
            + " and ".join(
                ", ".join(f"{name} {float(array):.4g}" for name, array in one.items()) for one in (here, other)
            )
            + ". More sizes and horizons, further apart, would decide"
        )
    return int(near.sum())


def _scatter(residuals: Array, parameters: int) -> float:
    """Estimates the standard deviation of log residuals from the median of their absolute values.

    The smallest are left out: an L1 fit passes through about as many runs as it has coefficients, and those say
    nothing about the scatter.
    """
    sizes = np.sort(np.abs(residuals))[min(parameters, len(residuals) - 1) :]
    return float(_MEDIAN_TO_SD * np.median(sizes))


def _check_minimum(problem: Problem, vector: Array) -> tuple[float, tuple[str, ...]]:
    """Returns the condition number at a minimum, and notes on it.

    Raises:
        FitRefusedError: the minimum lies at the edge of the search range, a direction is flat, or an exponent is too
            uncertain.
    """
    law = problem.law
    inside = (vector > problem.lower + _EDGE) & (vector < problem.upper - _EDGE)
    floor = law.coefficients.index("E")
    # A floor near 0 hardly changes the objective, so the search may stop before it reaches the edge.
    inside[floor] &= vector[floor] > np.log(_NO_FLOOR * problem.loss.min())
    notes = []
    for place in np.flatnonzero(~inside):
        name = law.coefficients[place]
        if place == floor and vector[place] < problem.upper[place] - _EDGE:
            notes.append("E is 0: the loss falls without a floor in sight, and the law says little beyond these runs")
        elif name in law.exponents:
            raise FitRefusedError(
                f"the minimum lies at the edge of the search, {name} = {vector[place]:.3g} (searched from"
                f" {LOWEST_EXPONENT} to {HIGHEST_EXPONENT}): the runs do not show this law's curvature"
            )
        else:
            raise FitRefusedError(f"the minimum lies at the edge of the search: the runs do not determine {name}")
    jacobian = problem.jacobian(vector)[:, inside]
    lengths = np.linalg.norm(jacobian, axis=0)
    condition = float(np.linalg.cond(jacobian / np.maximum(lengths, 1e-300)))
    more = "more sizes and horizons, further apart, would decide"
    if condition > _WORST_CONDITION:
        raise FitRefusedError(
            f"not identified: a direction of the coefficients is flat (condition {condition:.2g}); {more}"
        )
    errors = np.full(len(vector), 0.0)
    covariance = np.linalg.pinv(jacobian.T @ jacobian)
    residuals = problem.residuals(vector)
    errors[inside] = _ROBUST_ERROR * _scatter(residuals, len(vector)) * np.sqrt(np.diag(covariance))
    for name in law.exponents:
        value, error = (array[law.coefficients.index(name)] for array in (vector, errors))
        if error > _WORST_ERROR * value:
            raise FitRefusedError(
                f"not identified: {name} = {value:.2g} ± {error:.2g}, given the scatter of these runs;"
                f" {more}, or less noise"
            )
    return condition, tuple(notes)
