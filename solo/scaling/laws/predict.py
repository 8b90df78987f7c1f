"""Predicts the compute-optimal run from a law, with intervals."""

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
    """The compute-optimal run at `flops`.

    n, d            parameters and tokens; None for a law that does not allocate compute
    loss            loss that the law predicts
    intervals       bootstrap intervals of n, d and loss, by level, without the scatter of single runs
    extrapolation   compute over the largest fitted compute
    smallest        smallest fitted compute over this compute; above 1 the prediction lies below all runs
    scatter         relative standard deviation of the losses of single runs about the law
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
        """Whether the prediction is too far above or below the fitted compute to be relied upon."""
        return max(self.extrapolation, self.smallest) > FAR


def predict(fitted: Fit, draws: Bootstrap, flops: float, unique: float | None = None) -> Prediction:
    """Returns the compute-optimal size, tokens and loss at `flops`, with intervals.

    Args:
        fitted: the law.
        draws: its bootstrap.
        flops: training compute.
        unique: number of distinct tokens; only for the law `repeated`.

    Raises:
        ValueError: the compute is not positive, or `unique` is given for a law that does not use it.
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
    """Returns size, tokens and loss of the compute-optimal run, for one set of coefficients or for J sets."""
    if not law.allocates:
        return {"loss": law.loss(coefficients, {"flops": flops})}
    n, d = law.optimum(coefficients, flops, factor)
    if law.repeats and unique is not None:
        n = _search(law, coefficients, flops / factor, n, unique)
        d = flops / factor / n
    limit = np.inf if unique is None else unique
    return {"n": n, "d": d, "loss": law.loss(coefficients, {"n": n, "d": d, "unique": limit})}


def _search(law: Law, coefficients: Mapping[str, Any], product: float, fresh: Array, unique: float) -> Array:
    """Returns the best size if tokens repeat. Repeats are worth less, so it is at least the best with fresh tokens.

    Searches a grid in log N with steps of one percent, then fits a parabola to the lowest point and its neighbours.
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
