"""Starting points of a fit, by variable projection.

For fixed exponents, a law is linear in its amplitudes, and non-negative least squares gives the best ones. So only the
exponents are searched (Golub and Pereyra 1973; for scaling laws Czech et al. 2026, arXiv 2603.22339). Squared
errors are sensitive to outliers, so the result is only the start of the robust fit.
"""

from __future__ import annotations

from itertools import combinations, product

import numpy as np

from solo.scaling.laws.law import Array, Law
from solo.scaling.laws.problem import Problem
from solo.scaling.laws.runs import Runs

# Values of each exponent, by the number of exponents.
_VALUES = {1: 15, 2: 15, 3: 7}
_LOWEST, _HIGHEST = 0.03, 2.0
_BEST, _SPREAD = 8, 5
_MOST = 40  # starts of a fit
_GROUPED = 12  # starts of a joint fit
_LEAST_SHARE = 0.01
_BLOCK = 2_000_000  # elements of the columns that are projected at a time


def starting_points(problem: Problem) -> Array:
    """Returns starting vectors [J,P]: the best points of the grid, and a coarse subset of the whole grid.

    The amplitudes of each group are projected alone. Groups that share exponents start from the points with the lowest
    total error; what they share otherwise starts at the mean of their logarithms.
    """
    law, runs = problem.law, problem.runs
    names, parts = law.single, runs.parts(len(law.groups))
    table = _grid(names)
    found = [_project(names, part, table, problem.scales) for part in parts]
    errors = np.array([error for _, error in found])
    common = not set(law.exponents) <= law.own
    orders = [_choose(names, table, errors.sum(axis=0) if common else error) for error in errors]
    if law.groups:  # a search over many parameters takes long, and several groups have fewer bad minima
        orders = [order[:_GROUPED] for order in orders]
    logs = [np.log(np.maximum(amplitudes, _LEAST_SHARE * problem.runs.loss.min())) for amplitudes, _ in found]
    vectors = np.empty((min(map(len, orders)), len(law.parameters)))
    bases = list(names.coefficients)
    for place, parameter in enumerate(law.parameters):
        index = bases.index(parameter.base)
        columns = []
        for group, order in enumerate(orders):
            rows = order[: len(vectors)]
            if parameter.kind == "amplitude":
                columns.append(logs[group][rows, index] + _centre(problem, names, parts[group], table[rows], index))
            else:
                columns.append(table[rows, index - len(names.terms)])
        vectors[:, place] = np.mean(columns, axis=0) if parameter.group is None else columns[parameter.group]
    return np.clip(vectors, problem.lower, problem.upper)


def _grid(law: Law) -> Array:
    """Returns all combinations of exponents and log shapes [J, number of both]."""
    count = _VALUES.get(len(law.exponents), 5)
    axes = []
    for factor in law.factors.values():
        low, high = factor.range
        if factor.signed:
            axes.append(np.linspace(low / 3, high / 3, count + 1))
        else:
            axes.append(np.geomspace(_LOWEST, _HIGHEST, count))
    axes += [np.log(shape.starts) for shape in law.shapes]
    return np.array(list(product(*axes)))


def _choose(law: Law, table: Array, errors: Array) -> np.ndarray:
    """Returns the places of the best points and of a coarse subset, best first."""
    best = np.argsort(errors, kind="stable")[:_BEST]
    coarse = np.ones(len(table), bool)
    for place in range(len(law.exponents)):
        values = np.unique(table[:, place])
        ends = np.linspace(0, len(values) - 1, _SPREAD if len(law.exponents) < 3 else 2).round().astype(int)
        coarse &= np.isin(table[:, place], values[ends])
    chosen = np.unique(np.concatenate([best, np.flatnonzero(coarse)]))
    chosen = chosen[np.argsort(errors[chosen], kind="stable")]
    return chosen if len(chosen) <= _MOST else chosen[np.r_[0:_BEST, _BEST : len(chosen) : len(chosen) // _MOST + 1]]


def _features(law: Law, runs: Runs, table: Array, scales: list[float]) -> list[tuple[int, int | None, Array]]:
    """Returns the features of all factors: place of the term, place of the exponent, [R] or [J,R]."""
    measured = runs.variables()
    exponents = len(law.exponents)
    derived = None
    if law.derived:
        shapes = [np.exp(table[:, exponents + i, None]) * scale for i, scale in enumerate(scales)]
        derived = law.derived.value(measured, shapes)
    found = []
    for place, term in enumerate(law.terms):
        for factor in term.factors:
            is_derived = law.derived is not None and factor.variable == law.derived.variable
            values = factor.feature(derived if is_derived and derived is not None else measured[factor.variable])
            found.append((place, law.exponents.index(factor.exponent) if factor.exponent else None, values))
    return found


def _project(law: Law, runs: Runs, table: Array, scales: list[float]) -> tuple[Array, Array]:
    """Returns the best non-negative amplitudes [J,K] for variables centred in these runs, and squared errors [J]."""
    size = max(_BLOCK // (len(runs) * len(law.terms)), 1)
    parts = []
    for first in range(0, len(table), size):
        rows = table[first : first + size]
        columns = np.zeros((len(rows), len(runs), len(law.terms)))
        for place, exponent, values in _features(law, runs, rows, scales):
            part = values - values.mean(axis=-1, keepdims=True) if exponent is not None else values
            columns[:, :, place] -= (-1.0 if exponent is None else rows[:, exponent, None]) * part
        # A steep exponential of a wide variable must not overflow.
        np.exp(np.clip(columns, -50.0, 50.0), out=columns)
        parts.append(non_negative(columns / runs.loss[:, None], np.ones(len(runs))))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _centre(problem: Problem, law: Law, runs: Runs, table: Array, place: int) -> Array:
    """Returns what moving the centre from these runs to the problem's adds to a log amplitude: [J]."""
    total = np.zeros(len(table))
    factors = iter(_features(law, runs, table, problem.scales))
    for at, term in enumerate(law.terms):
        for factor in term.factors:
            _, exponent, values = next(factors)
            if at == place and exponent is not None:
                here = values.mean(axis=-1)
                total -= table[:, exponent] * (problem.means[(factor.variable, factor.exponential)] - here)
    return total


def non_negative(columns: Array, target: Array) -> tuple[Array, Array]:
    """Solves J non-negative least squares problems with columns [J,R,K] and one target [R].

    Tries every subset of the columns (seven of three) and takes the best feasible one. Returns the amplitudes [J,K]
    and the sums of squares [J].
    """
    count, _, width = columns.shape
    best, errors = np.zeros((count, width)), np.full(count, float(target @ target))
    for size in range(1, width + 1):
        for used in combinations(range(width), size):
            part = columns[:, :, used]
            turned = part.swapaxes(1, 2)
            gram = turned @ part
            ridge = 1e-13 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(size)
            found = np.linalg.solve(gram + ridge, (turned @ target)[..., None])[..., 0]
            error = ((np.einsum("jrk,jk->jr", part, found) - target) ** 2).sum(axis=1)
            better = (found >= 0).all(axis=1) & (error < errors)
            errors = np.where(better, error, errors)
            update = np.zeros((count, width))
            update[:, used] = found
            best = np.where(better[:, None], update, best)
    return best, errors
