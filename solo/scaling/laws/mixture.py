"""The best share of image tokens for a weighting of losses, from the laws of each loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from solo.scaling.laws.bootstrap import Interval, interval
from solo.scaling.laws.fit import FitRefusedError
from solo.scaling.laws.law import Array
from solo.scaling.laws.optimum import lowest, variables_at
from solo.scaling.laws.result import FitResult

_DRAWS = 100
_SHARES = 31
_SMALLEST = 1e3


@dataclass(frozen=True)
class Mixture:
    """The best share at one compute.

    share       the share of image tokens with the lowest weighted loss, and its 80% interval
    n           parameters of that run
    losses      loss -> value at that run
    given_up    share -> the weighted loss that it gives up, relative, for the shares of the runs
    at_edge     whether the best share is the smallest or largest of the runs
    curve       shares, weighted loss at the best size, low and high end of its 80% interval: [H,4]
    """

    flops: float
    weights: dict[str, float]
    share: tuple[float, Interval]
    n: float
    losses: dict[str, float]
    given_up: dict[float, float]
    at_edge: bool
    curve: Array


def best_mixture(results: Sequence[FitResult], weights: Mapping[str, float], flops: float) -> Mixture:
    """Returns the share of image tokens that minimises the weighted sum of losses, each at the best common size.

    Only shares between those of the runs are considered. Intervals use the bootstrap draws of the laws, which resample
    the same runs together if all losses have the same runs.

    Raises:
        FitRefusedError: a loss has no law, or its law does not depend on the share.
    """
    laws = {}
    for loss in weights:
        found = [result for result in results if result.loss == loss and result.group is None]
        analysis = found[0].analysis if found else None
        if analysis is None:
            raise FitRefusedError(f"there is no law of {loss}: {found[0].refused if found else 'it was not fitted'}")
        if not {"share", "images"} & set(analysis.fit.law.variables):
            raise FitRefusedError(
                f"the law {analysis.fit.law.name!r} of {loss} does not depend on the share of images; fit --law share,"
                " transfer or tokens"
            )
        laws[loss] = analysis
    first = next(iter(laws.values())).fit.runs
    measured = first.more["share"]
    edge = 1e-3 if "text" in next(iter(laws.values())).fit.law.variables else 0.0
    shares = np.linspace(max(measured.min(), edge), min(measured.max(), 1 - edge), _SHARES)
    product = flops / first.flops_factor

    def curve(draws: bool) -> tuple[Array, Array, dict[str, Array]]:
        """Returns weighted losses, log sizes and losses by name, [1 or J, H] each."""
        columns = {
            loss: {name: np.atleast_1d(values)[:_DRAWS, None] for name, values in source.items()}
            for loss, found in laws.items()
            for source in [found.bootstrap.coefficients if draws else found.fit.coefficients]
        }

        def each(logs: Array) -> dict[str, Array]:
            point = variables_at(np.exp(logs), product / np.exp(logs), {"share": shares})  # type: ignore[dict-item]
            return {loss: found.fit.law.loss(columns[loss], point) for loss, found in laws.items()}

        def total(logs: Array) -> Array:
            return np.asarray(sum(weights[loss] * value for loss, value in each(logs).items()))

        rows = min(len(next(iter(columns[loss].values()))) for loss in laws)
        logs = lowest(total, np.log(_SMALLEST), np.log(product / _SMALLEST), (rows, len(shares)))
        return total(logs), logs, each(logs)

    central, sizes, values = curve(False)
    spread = curve(True)[0]
    place = int(np.argmin(central[0]))
    low, high = np.percentile(spread, [10, 90], axis=0)
    tried = np.unique(np.round(measured, 3))
    tried = tried if len(tried) <= 12 else np.quantile(measured, np.linspace(0, 1, 9))
    best = float(central[0].min())
    return Mixture(
        flops=flops,
        weights=dict(weights),
        share=(_vertex(shares, central[0]), interval(np.array([_vertex(shares, row) for row in spread]), 80)),
        n=float(np.exp(sizes[0, place])),
        losses={loss: float(value[0, place]) for loss, value in values.items()},
        given_up={float(share): float(np.interp(share, shares, central[0]) / best - 1) for share in tried},
        at_edge=place in (0, len(shares) - 1),
        curve=np.array([shares, central[0], low, high]).T,
    )


def _vertex(shares: Array, losses: Array) -> float:
    """Returns the minimum of a parabola through the lowest point and its neighbours."""
    place = int(np.argmin(losses))
    if place in (0, len(shares) - 1):
        return float(shares[place])
    before, here, after = losses[place - 1 : place + 2]
    shift = 0.5 * (before - after) / (before - 2 * here + after)
    return float(shares[place] + shift * (shares[1] - shares[0]))
