"""Fits a law to runs: a search from many starts, finished by SciPy. Refuses runs that do not determine the law."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from solo.scaling.laws.law import Array, Law
from solo.scaling.laws.problem import HUBER, HUBER_DELTA, Objective, Problem
from solo.scaling.laws.runs import SAME_SIZE, Runs
from solo.scaling.laws.solver import Solutions, solve
from solo.scaling.laws.start import starting_points

FEWEST_VALUES = 3  # distinct values of a variable; a power law with a floor has three unknowns
LEAST_RATIO_SPREAD = 4.0  # largest tokens per parameter over the smallest
_NAMES = {
    "n": "parameters",
    "d": "tokens",
    "flops": "compute",
    "unique": "distinct tokens",
    "ratio": "total per active parameters",
    "text": "text tokens",
    "images": "image tokens",
    "share": "share of image tokens",
    "decay": "decayed share of the run",
}
# These have no floor of their own.
_TWO_ARE_ENOUGH = frozenset({"ratio", "decay"})
_EDGE = 1e-6
_NO_FLOOR = 1e-3  # share of the lowest loss
_SEARCHED = 2000
_STEPS = 150  # of each start; a start that has not converged by then does not count as agreeing
_SAME_OBJECTIVE, _SAME_COEFFICIENT = 1e-6, 1e-2
_WORST_CONDITION = 1e7  # about 30 for a good design, above 1e7 if all runs have the same tokens per parameter
_WORST_ERROR = 0.5  # standard error of an exponent, relative
_WORST_SHAPE = 1.5  # of the logarithm of a shape
_WORST_SIGNED = 0.25  # of a signed exponent, relative to its range
_MEDIAN_TO_SD = 1.4826  # median absolute deviation to standard deviation, for normal errors
_ROBUST_ERROR = 1.25  # ratio of the standard errors of an L1 fit and of least squares, for normal errors


class FitRefusedError(ValueError):
    """The runs do not determine the law. The message says why, and which runs would."""


@dataclass(frozen=True)
class Fit:
    """A fitted law.

    coefficients    in natural units: L = E + A/N^alpha + ... with N in parameters and D in tokens
    objective       value of the objective at the minimum (see `problem.Objective`)
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


def fit(law: Law, runs: Runs, objective: Objective = HUBER, starts: Sequence[dict[str, float]] | None = None) -> Fit:
    """Fits a law to runs.

    The search from many starts uses at most 2,000 runs, drawn at random. Its best minimum is then refined on all runs.

    Args:
        law: one of `law.LAWS`.
        runs: finished runs.
        objective: Huber losses of log losses, or squared errors of losses.
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

    SciPy's Huber loss is symmetric, so an asymmetric one is left to `solve`. Tolerances are relative to the objective.
    With absolute tolerances, and even more with a mean instead of a sum, the search stops near its start (Besiroglu et
    al. 2024, arXiv 2404.10102, on the published fit of Hoffmann et al.).
    """
    starts = [start]
    if problem.objective.overestimates == 1 and len(problem.runs) <= _SEARCHED:
        done = least_squares(
            problem.residuals,
            start,
            problem.jacobian,
            bounds=(problem.lower, problem.upper),
            loss="huber" if problem.objective.name == "huber" else "linear",
            f_scale=HUBER_DELTA,
            xtol=1e-15,
            ftol=1e-15,
            gtol=1e-15,
            max_nfev=2000,
        )
        starts.append(done.x)
    candidates = np.concatenate([np.array(starts), solve(problem, np.array(starts)).vectors])
    return candidates[np.argmin(problem.value(candidates, np.ones((1, len(problem.runs)))))]


def check_design(law: Law, runs: Runs, fewest_runs: int | None = None) -> None:
    """Raises FitRefusedError if the runs cannot determine the law, regardless of their losses.

    If each group has its own exponents, each group must determine them; otherwise all groups together must, and each
    needs one run more than it has coefficients of its own.
    """
    fewest = law.fewest_runs if fewest_runs is None else fewest_runs
    parts = [runs.nameless(runs.group == place) for place in range(len(law.groups))]
    if set(law.exponents) & law.own:
        for name, part in zip(law.groups, parts, strict=True):
            _check_part(law, part, fewest, f"{name}: ")
        return
    for name, part in zip(law.groups, parts, strict=True):
        if len(part) < len(law.own) + (fewest_runs is None):
            raise FitRefusedError(
                f"{name}: {len(part)} runs are too few for {len(law.own)} coefficients of its own; it needs"
                f" {len(law.own) + 1}"
            )
    _check_part(law, runs, fewest, "")


def _check_part(law: Law, runs: Runs, fewest: int, where: str) -> None:
    if len(runs) < fewest:
        raise FitRefusedError(f"{where}{len(runs)} runs are too few for the law {law.name!r}; it needs {fewest}")
    variables = runs.variables()
    powers = {factor.variable for factor in law.factors.values() if not factor.exponential}
    for variable in law.variables:
        if variable not in variables:
            raise FitRefusedError(f"the law {law.name!r} needs {_NAMES[variable]}, which the table does not have")
        if variable == "unique":
            continue
        if variable in powers and not (variables[variable] > 0).all():
            raise FitRefusedError(
                f"{where}{np.count_nonzero(variables[variable] <= 0)} runs have no {_NAMES[variable]}; the law"
                f" {law.name!r} takes a power of it. Leave them out with --where, or choose another law"
            )
        values = _distinct(variables[variable])
        if values < FEWEST_VALUES and (law.name != "shared" or values < 2) and variable not in _TWO_ARE_ENOUGH:
            raise FitRefusedError(
                f"{where}the runs have {values} different numbers of {_NAMES[variable]}; the law {law.name!r} needs"
                f" {FEWEST_VALUES} to tell an exponent from the floor E"
            )
        if values < 2:
            raise FitRefusedError(
                f"{where}all runs have the same {_NAMES[variable]}; the law {law.name!r} needs others"
            )
    if law.allocates:
        ratio = runs.d / runs.n
        spread = float(ratio.max() / ratio.min())
        if spread < LEAST_RATIO_SPREAD:
            raise FitRefusedError(
                f"{where}tokens per parameter differ only by a factor of {spread:.3g}, {ratio.min():.3g} to"
                f" {ratio.max():.3g}: the effects of parameters and tokens cannot be separated. Vary them by"
                f" {LEAST_RATIO_SPREAD:g} or more, or fit compute alone (--law power)"
            )
    if law.repeats and not (np.count_nonzero(runs.d > 1.5 * runs.unique) >= 3):
        raise FitRefusedError(
            f"{where}the law {law.name!r} needs at least 3 runs that read their tokens more than 1.5 times;"
            f" {np.count_nonzero(runs.d > 1.5 * runs.unique)} do. Without repeats fit --law chinchilla"
        )


def _distinct(values: Array) -> int:
    """Counts the values that differ by more than a factor of `SAME_SIZE`, up to `FEWEST_VALUES`."""
    count, left = 0, values
    while count < FEWEST_VALUES and len(left):
        count += 1
        left = left[left > SAME_SIZE * left.min()]  # zero is one value
    return count


def _agreeing(problem: Problem, found: Solutions, best: Array, value: float) -> int:
    """Counts the starts that led to the best minimum. Raises FitRefusedError if another minimum is equally good."""
    near = found.converged & (found.objective <= value * (1 + _SAME_OBJECTIVE) + 1e-20)
    here, there = problem.coefficients(best), problem.coefficients(found.vectors[near])
    apart = np.zeros(int(near.sum()), bool)
    for place, parameter in enumerate(problem.law.parameters):
        name = parameter.name
        if parameter.kind == "amplitude":
            # A floor near 0 can be any small number, so amplitudes are compared relative to the loss.
            far = np.abs(np.exp(found.vectors[near, place]) - np.exp(best[place])) / problem.loss.min()
        elif parameter.kind == "exponent":
            far = np.abs(there[name] - here[name]) / (1.0 if parameter.signed else here[name])
        else:
            continue
        apart |= far > _SAME_COEFFICIENT
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
    notes = []
    floors = [place for place, parameter in enumerate(law.parameters) if parameter.base == law.floor]
    for place in floors:
        # A floor near 0 hardly changes the objective, so the search may stop before it reaches the edge.
        inside[place] &= vector[place] > np.log(_NO_FLOOR * problem.loss.min())
    for place in map(int, np.flatnonzero(~inside)):
        parameter = law.parameters[place]
        if place in floors and vector[place] < problem.upper[place] - _EDGE:
            notes.append(
                f"{parameter.name} is 0: the loss falls without a floor in sight, and the law says little beyond these"
                " runs"
            )
        elif parameter.kind == "exponent":
            raise FitRefusedError(
                f"the minimum lies at the edge of the search, {parameter.name} = {vector[place]:.3g} (searched from"
                f" {problem.lower[place]:g} to {problem.upper[place]:g}): the runs do not show this law's curvature"
            )
        else:
            raise FitRefusedError(
                f"the minimum lies at the edge of the search: the runs do not determine {parameter.name}"
            )
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
    for parameter, value, error in zip(law.parameters, vector, errors, strict=True):
        # The shape's standard error is that of its logarithm.
        most = {"exponent": _WORST_ERROR * value, "shape": _WORST_SHAPE}.get(parameter.kind, np.inf)
        if parameter.signed:
            low, high = parameter.range
            most = _WORST_SIGNED * (high - low)
        if error > most:
            shown = float(problem.coefficients(vector)[parameter.name]) if parameter.kind == "shape" else value
            unit = " in its logarithm" if parameter.kind == "shape" else ""
            raise FitRefusedError(
                f"not identified: {parameter.name} = {shown:.2g} ± {error:.2g}{unit}, given the scatter of these runs;"
                f" {more}, or less noise"
            )
    return condition, tuple(notes)
