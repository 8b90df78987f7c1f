"""Predictions of a law: the best run of a compute, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from solo.scaling.laws.bootstrap import Bootstrap, intervals
from solo.scaling.laws.fit import Fit
from solo.scaling.laws.law import Array, Law

FAR = 100.0  # extrapolation beyond this gets a warning
_SIZES = 600


@dataclass(frozen=True)
class Prediction:
    """The best run of a compute.

    n, d            parameters and tokens; None for a law that does not allocate compute
    loss            the law's loss; a single run scatters about it by `scatter`, relative
    intervals       bootstrap intervals of the law's n, d and loss by level; a single run scatters more
    extrapolation   compute over the largest fitted compute
    smallest        the smallest fitted compute over this one; above 1 the prediction lies below all runs
    unique          number of distinct tokens, for a law with repeated tokens
    """

    flops: float
    n: float | None
    d: float | None
    loss: float
    intervals: dict[str, dict[str, tuple[float, float]]]
    extrapolation: float
    smallest: float
    scatter: float
    unique: float | None = None

    @property
    def far(self) -> bool:
        """Whether the extrapolation, up or down, is too far to be relied upon."""
        return max(self.extrapolation, self.smallest) > FAR


def predict(fitted: Fit, draws: Bootstrap, flops: float, unique: float | None = None) -> Prediction:
    """Returns optimal size, tokens and loss at a compute, with intervals.

    Args:
        fitted: the law.
        draws: its bootstrap.
        flops: training compute.
        unique: number of distinct tokens; only the law `repeated` uses it.

    Raises:
        ValueError: the compute is not positive, or the law does not use `unique`.
    """
    if not (np.isfinite(flops) and flops > 0):
        raise ValueError(f"cannot predict at {flops} FLOPs: compute must be positive")
    if unique is not None and not fitted.law.repeats:
        raise ValueError(f"the law {fitted.law.name!r} does not model repeated tokens; fit --law repeated")
    factor = fitted.runs.flops_factor
    best = optimum(fitted.law, fitted.coefficients, flops, factor, unique)
    spread = intervals(optimum(fitted.law, draws.coefficients, flops, factor, unique))
    return Prediction(
        flops=float(flops),
        n=float(best["n"]) if "n" in best else None,
        d=float(best["d"]) if "d" in best else None,
        loss=float(best["loss"]),
        intervals=spread,
        extrapolation=float(flops / fitted.runs.flops.max()),
        smallest=float(fitted.runs.flops.min() / flops),
        scatter=fitted.scatter,
        unique=unique,
    )


def optimum(
    law: Law, coefficients: Mapping[str, Any], flops: float, factor: float, unique: float | None = None
) -> dict[str, Array]:
    """Returns size, tokens and loss of the best run of a compute, for one set of coefficients or for J of them."""
    if not law.allocates:
        return {"loss": law.loss(coefficients, {"flops": flops})}
    n, d = law.optimum(coefficients, flops, factor)
    if law.repeats and unique is not None:
        n = _search(law, coefficients, flops / factor, n, unique)
        d = flops / factor / n
    limit = np.inf if unique is None else unique
    return {"n": n, "d": d, "loss": law.loss(coefficients, {"n": n, "d": d, "unique": limit})}


def _search(law: Law, coefficients: Mapping[str, Any], product: float, fresh: Array, unique: float) -> Array:
    """Returns the best size if tokens repeat: at least the best with fresh tokens, as repeats are worth less.

    Searches a grid in log N with steps of one percent, refined by a parabola through its lowest three points.
    """
    steps = np.linspace(-0.02, np.log(400.0), _SIZES)
    sizes = np.log(np.asarray(fresh))[..., None] + steps
    columns = {name: np.asarray(value)[..., None] for name, value in coefficients.items()}
    losses = law.loss(columns, {"n": np.exp(sizes), "d": product / np.exp(sizes), "unique": unique})
    lowest = np.clip(np.argmin(losses, axis=-1), 1, len(steps) - 2)[..., None]
    before, here, after = (np.take_along_axis(losses, lowest + move, axis=-1)[..., 0] for move in (-1, 0, 1))
    bend = before - 2 * here + after
    shift = np.where(bend > 0, 0.5 * (before - after) / np.where(bend > 0, bend, 1.0), 0.0)
    place = np.take_along_axis(sizes, lowest, axis=-1)[..., 0]
    return np.exp(place + np.clip(shift, -1, 1) * (steps[1] - steps[0]))
