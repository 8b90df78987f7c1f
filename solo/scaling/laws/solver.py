"""A damped Newton method for many small fits at once.

SciPy minimises one function at a time; a bootstrap needs thousands of fits of five parameters, and is some hundred
times faster when they share their array operations. The fit that is reported is finished by SciPy (`fit.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solo.scaling.laws.law import Array
from solo.scaling.laws.problem import Problem, Value

MOST_STEPS = 300
_FIRST_DAMPING, _LEAST_DAMPING, _MOST_DAMPING = 1e-2, 1e-9, 1e9


@dataclass(frozen=True)
class Solutions:
    """J vectors [J,P], their objectives [J], and whether each is a minimum to the last digits [J]."""

    vectors: Array
    objective: Array
    converged: np.ndarray


def solve(problem: Problem, starts: Array, weights: Array | None = None, steps: int = MOST_STEPS) -> Solutions:
    """Minimise from J starts [J,P], each with its own weights of the runs [J,R] (all 1 where none are given).

    Newton steps on the exact Hessian, damped by the curvature of the parabolas that touch the Huber loss from above:
    where far from the minimum the Hessian says little, that alone goes downhill.
    """
    vectors = np.clip(np.array(starts, float), problem.lower, problem.upper)
    count = len(vectors)
    weights = np.broadcast_to(1.0 if weights is None else weights, (count, len(problem.runs)))
    objective = problem.value(vectors, weights)
    damping = np.full(count, _FIRST_DAMPING)
    converged = np.zeros(count, bool)
    active = np.arange(count)
    for _ in range(steps):
        part = problem.only(active)
        now, value = vectors[active], part.evaluate(vectors[active], weights[active])
        free = ~((now <= problem.lower) & (value.gradient > 0) | (now >= problem.upper) & (value.gradient < 0))
        gradient = np.where(free, value.gradient, 0.0)
        # What the touching parabolas promise does not shrink with the damping, as what the step promises would.
        left = -0.5 * np.einsum("jp,jp->j", gradient, _step(value.majoriser, gradient, free))
        moved = np.clip(now + _newton(value, gradient, free, damping[active]), problem.lower, problem.upper)
        reached = part.value(moved, weights[active])
        better = reached < objective[active]
        vectors[active] = np.where(better[:, None], moved, now)
        converged[active] = done = left <= 1e-12 * objective[active] + 1e-22
        objective[active] = np.where(better, reached, objective[active])
        damping[active] = np.clip(np.where(better, damping[active] / 5, damping[active] * 4), _LEAST_DAMPING, np.inf)
        active = active[~done & (damping[active] < _MOST_DAMPING)]
        if not len(active):
            break
    return Solutions(vectors, objective, converged)


def _newton(value: Value, gradient: Array, free: np.ndarray, damping: Array) -> Array:
    """Steps [J,P] of Newton's method with some of the majoriser added to the Hessian."""
    return _step(value.hessian + damping[:, None, None] * value.majoriser, gradient, free)


def _step(matrix: Array, gradient: Array, free: np.ndarray) -> Array:
    """`-matrix^-1 gradient` over the free parameters [J,P]; a direction without curvature gets a short step."""
    identity = np.eye(gradient.shape[-1])
    matrix = np.where(free[:, :, None] & free[:, None, :], matrix, identity)
    size = np.sqrt(np.maximum(np.abs(np.einsum("jpp->jp", matrix)), 1e-150))
    scaled = matrix / (size[:, :, None] * size[:, None, :]) + 1e-13 * identity
    return -np.linalg.solve(scaled, (gradient / size)[..., None])[..., 0] / size
