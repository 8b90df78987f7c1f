"""Starting points of a fit, by variable projection.

For fixed exponents, a law is linear in its amplitudes, and non-negative least squares gives the best ones. So only the
exponents are searched (Golub and Pereyra 1973; for scaling laws Czech et al. 2026, arXiv 2603.22339). Squared
errors are sensitive to outliers, so the result is only the start of the robust fit.
"""

from __future__ import annotations

from itertools import combinations, product

import numpy as np

from solo.scaling.laws.law import Array, effective_tokens
from solo.scaling.laws.problem import Problem

_GRID = np.geomspace(0.03, 2.0, 15)
_REPEATS = (3.0, 15.0, 60.0)
_BEST, _SPREAD = 8, 5
_LEAST_SHARE = 0.01


def starting_points(problem: Problem) -> Array:
    """Returns starting vectors [J,P]: the best points of the grid, and a coarse subset of the whole grid."""
    exponents, repeats = _grid(problem)
    amplitudes, errors = _project(problem, exponents, repeats)
    best = np.argsort(errors, kind="stable")[:_BEST]
    ends = np.linspace(0, len(_GRID) - 1, _SPREAD).round().astype(int)
    coarse = np.flatnonzero(np.isin(exponents, _GRID[ends]).all(axis=1))
    chosen = np.unique(np.concatenate([best, coarse]))
    chosen = chosen[np.argsort(errors[chosen], kind="stable")]
    # A term with amplitude 0 gets a small one; otherwise the objective would not depend on its exponent.
    logs = np.log(np.maximum(amplitudes, _LEAST_SHARE * problem.runs.loss.min()))
    vectors = np.concatenate([logs, exponents, np.log(repeats)[:, None][:, : bool(problem.law.repeats)]], axis=1)
    return np.clip(vectors[chosen], problem.lower, problem.upper)


def _grid(problem: Problem) -> tuple[Array, Array]:
    """Returns all combinations of exponents [J, number of exponents] and values of repeats [J]."""
    repeats = _REPEATS if problem.law.repeats else (1.0,)
    rows = list(product(repeats, *[_GRID] * len(problem.law.exponents)))
    table = np.array(rows)
    return table[:, 1:], table[:, 0]


def _project(problem: Problem, exponents: Array, repeats: Array) -> tuple[Array, Array]:
    """Returns the best non-negative amplitudes [J,K] for fixed exponents, and their squared relative errors [J]."""
    law, runs = problem.law, problem.runs
    columns = np.ones((len(exponents), len(runs), len(law.terms)))
    for place, term in enumerate(law.terms):
        if term.exponent and term.variable:
            logs = problem.logs[term.variable] - problem.means[term.variable]
            if law.repeats and term.variable == "d":
                logs = np.log(effective_tokens(runs.d, runs.unique, repeats[:, None])) - problem.means["d"]
            columns[:, :, place] = np.exp(-exponents[:, law.exponents.index(term.exponent), None] * logs)
    return non_negative(columns / runs.loss[:, None], np.ones(len(runs)))


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
