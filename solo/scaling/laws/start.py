"""Where a fit starts: variable projection.

With the exponents held, a law is linear in its amplitudes, and the best non-negative ones follow directly; only the
exponents are searched (Golub and Pereyra 1973; for scaling laws Czech et al. 2026, arXiv 2603.22339). Squared errors
let an outlier pull, so that what comes out is a start for the robust fit and not its answer.
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
    """Vectors to start from [J,P]: the best places of the grid, and a coarse grid over all of it."""
    exponents, repeats = _grid(problem)
    amplitudes, errors = _project(problem, exponents, repeats)
    best = np.argsort(errors, kind="stable")[:_BEST]
    ends = np.linspace(0, len(_GRID) - 1, _SPREAD).round().astype(int)
    coarse = np.flatnonzero(np.isin(exponents, _GRID[ends]).all(axis=1))
    chosen = np.unique(np.concatenate([best, coarse]))
    chosen = chosen[np.argsort(errors[chosen], kind="stable")]
    # A term that the projection left out gets a little: at nothing its exponent has no slope to be found by.
    logs = np.log(np.maximum(amplitudes, _LEAST_SHARE * problem.runs.loss.min()))
    vectors = np.concatenate([logs, exponents, np.log(repeats)[:, None][:, : bool(problem.law.repeats)]], axis=1)
    return np.clip(vectors[chosen], problem.lower, problem.upper)


def _grid(problem: Problem) -> tuple[Array, Array]:
    """Every choice of exponents [J,-] with every worth of repeats [J]."""
    repeats = _REPEATS if problem.law.repeats else (1.0,)
    rows = list(product(repeats, *[_GRID] * len(problem.law.exponents)))
    table = np.array(rows)
    return table[:, 1:], table[:, 0]


def _project(problem: Problem, exponents: Array, repeats: Array) -> tuple[Array, Array]:
    """Best non-negative amplitudes [J,K] for held exponents, and the squared relative errors that they leave [J]."""
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
    """Least squares without negative amplitudes, for J tables of columns [J,R,K] and one target [R].

    With three columns there are seven sets that may be in use; the best feasible of them is the answer. Returns the
    amplitudes [J,K] and the sums of squares [J].
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
