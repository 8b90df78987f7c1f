"""Estimates the compute-optimal size by two other methods: isoFLOP parabolas, and the envelope of training curves.

Both methods are biased even without noise. Parabolas are biased by the width and the centre of the size grid, and if
alpha != beta (Czech et al. 2026, arXiv 2603.22339). The envelope is biased by the spacing of the sizes. The bias
affects the optimal size more than the exponent. It is measured by applying the method to the losses that the law
predicts for the same runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator

from solo.scaling.laws.fit import Fit
from solo.scaling.laws.law import Array
from solo.scaling.laws.predict import defaults
from solo.scaling.laws.runs import Runs, group_budgets, group_sizes

_FEWEST_SIZES = 4  # a parabola fits any three points exactly
_FEWEST_OPTIMA = 2
_ENVELOPE_POINTS = 25


@dataclass(frozen=True)
class Curve:
    """The runs of one budget, and the parabola fitted to them in log N. `refused` says why there is no optimum."""

    flops: float
    runs: Runs
    parabola: tuple[float, float, float]
    optimum: float | None
    refused: str | None


@dataclass(frozen=True)
class CrossCheck:
    """The optimum N = G C^a, estimated without the law.

    optima          pairs (compute, optimal size)
    exponent        a
    optimal_n       optimal size at the largest compute of the runs
    law_n           the law's optimal size at that compute
    bias            relative bias of `optimal_n`, measured on the losses that the law predicts for these runs
    refused         why there is no estimate
    """

    name: str
    optima: tuple[tuple[float, float], ...]
    exponent: float | None
    optimal_n: float | None
    law_n: float | None
    bias: float | None
    refused: str | None

    @property
    def difference(self) -> float | None:
        """Relative difference between this optimal size and the law's."""
        return self.optimal_n / self.law_n - 1.0 if self.optimal_n and self.law_n else None


def cross_checks(fitted: Fit) -> list[CrossCheck]:
    """Returns the optimum from parabolas and from the envelope; empty for a law in more than parameters and tokens."""
    if fitted.law.pair is None or defaults(fitted):
        return []
    return [
        _check(fitted, "isoFLOP parabolas", parabola_optima),
        _check(fitted, "envelope", envelope_optima),
    ]


def isoflop_curves(runs: Runs) -> list[Curve]:
    """Fits a parabola to the loss, in log N, for each budget with at least four sizes."""
    curves = []
    for group in group_budgets(runs.flops):
        part = runs[group]
        if len(group_sizes(part.n)) < _FEWEST_SIZES:
            continue
        logs = np.log(part.n)
        center = logs.mean()
        square, slope, level = (float(value) for value in np.polyfit(logs - center, part.loss, 2))
        vertex = float(np.exp(center - slope / (2 * square))) if square > 0 else float("nan")
        refused = None
        lowest = part.n[np.argmin(part.loss)]
        if lowest in (part.n.min(), part.n.max()):
            refused = f"the lowest loss is at the {'smallest' if lowest == part.n.min() else 'largest'} size"
        elif not part.n.min() < vertex < part.n.max():
            refused = "the parabola has no minimum among the sizes"
        curves.append(
            Curve(
                flops=float(np.exp(np.log(part.flops).mean())),
                runs=part,
                parabola=(square, slope - 2 * square * center, level - slope * center + square * center**2),
                optimum=None if refused else vertex,
                refused=refused,
            )
        )
    return curves


def parabola_optima(runs: Runs) -> list[tuple[float, float]]:
    """Returns (compute, optimal size) for each budget whose parabola has its minimum within the range of sizes."""
    return [(curve.flops, curve.optimum) for curve in isoflop_curves(runs) if curve.optimum]


def envelope_optima(runs: Runs) -> list[tuple[float, float]]:
    """Returns pairs (compute, best size), from the sizes with at least three horizons.

    The loss of a size is interpolated between its horizons, in log-log space. Values of compute at which the smallest
    or the largest available size is best are left out.
    """
    curves: list[tuple[float, Array, PchipInterpolator]] = []
    for group in group_sizes(runs.n):
        part = runs[group]
        logs, places = np.unique(np.log(part.flops), return_index=True)
        if len(logs) >= 3:
            curves.append((float(np.median(part.n)), logs, PchipInterpolator(logs, np.log(part.loss[places]))))
    if len(curves) < _FEWEST_SIZES:
        return []
    ends = [(logs[0], logs[-1]) for _, logs, _ in curves]
    found = []
    for place in np.linspace(min(low for low, _ in ends), max(high for _, high in ends), _ENVELOPE_POINTS):
        losses = [float(line(place)) if logs[0] <= place <= logs[-1] else np.nan for _, logs, line in curves]
        offered = np.flatnonzero(np.isfinite(losses))
        if len(offered) >= 3:
            best = int(offered[np.argmin(np.array(losses)[offered])])
            if best not in (offered[0], offered[-1]):
                found.append((float(np.exp(place)), curves[best][0]))
    return found


def _check(fitted: Fit, name: str, procedure: Callable[[Runs], list[tuple[float, float]]]) -> CrossCheck:
    runs = fitted.runs
    largest = float(runs.flops.max())
    law_n = float(fitted.law.optimum(fitted.coefficients, largest, runs.flops_factor)[0])
    optima = procedure(runs)
    line = _line(optima, largest)
    if line is None:
        why = f"only {len(optima)} of the {_FEWEST_OPTIMA} required optima lie between two sizes"
        return CrossCheck(name, tuple(optima), None, None, law_n, None, why)
    ideal = _line(procedure(runs.with_loss(fitted.predict(runs))), largest)
    return CrossCheck(name, tuple(optima), line[0], line[1], law_n, ideal[1] / law_n - 1.0 if ideal else None, None)


def _line(optima: list[tuple[float, float]], flops: float) -> tuple[float, float] | None:
    """Fits the optima by least squares in log-log space. Returns the exponent, and the optimal size at `flops`."""
    if len({round(np.log(compute), 2) for compute, _ in optima}) < _FEWEST_OPTIMA:
        return None
    logs = np.log(np.array(optima))
    slope, level = np.polyfit(logs[:, 0], logs[:, 1], 1)
    return float(slope), float(np.exp(level + slope * np.log(flops)))
