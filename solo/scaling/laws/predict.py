"""Predicts the compute-optimal run from a law, with intervals, and what other sizes cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solo.scaling.laws.bootstrap import Bootstrap, Interval, interval, intervals
from solo.scaling.laws.fit import Fit
from solo.scaling.laws.optimum import At, given_up, near_optimal, optimum, serve

FAR = 100.0  # extrapolation beyond this gets a warning


@dataclass(frozen=True)
class Flat:
    """How flat an optimum is.

    smallest, largest   sizes between which the loss is within 0.5% of the best, each with its 80% interval
    given_up            name of another size -> the size, the share of loss that it gives up, its 80% interval
    """

    smallest: tuple[float, Interval]
    largest: tuple[float, Interval]
    given_up: dict[str, tuple[float, float, Interval]]


@dataclass(frozen=True)
class Served:
    """The run with the same loss that is cheapest in total if `tokens` are served after training.

    values      n, d, training and total FLOPs, and the share of the total that it saves
    intervals   their 80% intervals
    """

    tokens: float
    values: dict[str, float]
    intervals: dict[str, Interval]


@dataclass(frozen=True)
class Prediction:
    """The compute-optimal run at `flops`.

    n, d            parameters and tokens; None for a law that does not allocate compute
    loss            loss that the law predicts
    intervals       bootstrap intervals of n, d and loss, by level, without the scatter of single runs
    extrapolation   compute over the largest fitted compute
    smallest        smallest fitted compute over this compute; above 1 the prediction lies below all runs
    scatter         relative standard deviation of the losses of single runs about the law
    at              the law's other variables, such as the number of distinct tokens
    flat            how flat the optimum is; None for a law that does not allocate compute
    served          the run for which serving was counted, if it was asked for
    """

    flops: float
    n: float | None
    d: float | None
    loss: float
    intervals: dict[str, dict[str, Interval]]
    extrapolation: float
    smallest: float
    scatter: float
    at: dict[str, float]
    flat: Flat | None
    served: Served | None

    @property
    def far(self) -> bool:
        """Whether the prediction is too far above or below the fitted compute to be relied upon."""
        return max(self.extrapolation, self.smallest) > FAR


def predict(
    fitted: Fit,
    draws: Bootstrap,
    flops: float,
    at: At | None = None,
    tied: Fit | None = None,
    served: float | None = None,
) -> Prediction:
    """Returns the compute-optimal size, tokens and loss at `flops`, with intervals.

    Args:
        fitted: the law.
        draws: its bootstrap.
        flops: training compute.
        at: the law's other variables; default: those of the runs (`defaults`).
        tied: the law with equal exponents, fitted to the same runs; its optimum is N ~ C^0.5.
        served: number of tokens that will be served after training.

    Raises:
        ValueError: the compute is not positive, or `at` names a variable that the law does not have.
    """
    if not (np.isfinite(flops) and flops > 0):
        raise ValueError(f"cannot predict at {flops} FLOPs: compute must be positive")
    law, factor = fitted.law, fitted.runs.flops_factor
    where = {**defaults(fitted), **(at or {})}
    if unknown := set(where) - set(defaults(fitted)) - ({"unique"} if law.repeats else set()):
        hint = "; fit --law repeated" if "unique" in unknown else ""
        what = "repeated tokens" if "unique" in unknown else f"the variable {min(unknown)!r}"
        raise ValueError(f"the law {law.name!r} does not model {what}{hint}")
    best = optimum(law, fitted.coefficients, flops, factor, where)
    return Prediction(
        flops=float(flops),
        n=float(best["n"]) if "n" in best else None,
        d=float(best["d"]) if "d" in best else None,
        loss=float(best["loss"]),
        intervals=intervals(optimum(law, draws.coefficients, flops, factor, where)),
        extrapolation=float(flops / fitted.runs.flops.max()),
        smallest=float(fitted.runs.flops.min() / flops),
        scatter=fitted.scatter,
        at=where,
        flat=_flat(fitted, draws, flops, where, tied) if law.allocates else None,
        served=_served(fitted, draws, flops, where, served) if law.allocates and served else None,
    )


def defaults(fitted: Fit) -> dict[str, float]:
    """Returns the law's variables other than parameters, tokens and compute: the median of the runs.

    The decayed share of a run is the largest one, since a model that is used has been decayed.
    """
    found = {}
    for name, values in fitted.runs.more.items():
        if name in fitted.law.variables and name not in ("text", "images"):
            found[name] = float(values.max() if name == "decay" else np.median(values))
    if "images" in fitted.law.variables:
        found["share"] = float(np.median(fitted.runs.more["images"] / fitted.runs.d))
    return found


def _flat(fitted: Fit, draws: Bootstrap, flops: float, at: At, tied: Fit | None) -> Flat:
    law, factor = fitted.law, fitted.runs.flops_factor
    here = near_optimal(law, fitted.coefficients, flops, factor, at)
    spread = near_optimal(law, draws.coefficients, flops, factor, at)
    best = float(optimum(law, fitted.coefficients, flops, factor, at)["n"])
    sizes = {"half the size": best / 2, "twice the size": best * 2}
    if tied is not None:
        sizes["tied, a = 0.5"] = float(tied.law.optimum(tied.coefficients, flops, factor)[0])
    lost = {
        name: (
            n,
            float(given_up(law, fitted.coefficients, flops, factor, n, at)),
            interval(given_up(law, draws.coefficients, flops, factor, n, at), 80),
        )
        for name, n in sizes.items()
    }
    low, high = ((float(value), interval(values, 80)) for value, values in zip(here, spread, strict=True))
    return Flat(low, high, lost)


def _served(fitted: Fit, draws: Bootstrap, flops: float, at: At, tokens: float) -> Served:
    law, factor = fitted.law, fitted.runs.flops_factor
    here = serve(law, fitted.coefficients, flops, factor, tokens, at)
    spread = serve(law, draws.coefficients, flops, factor, tokens, at)
    return Served(
        tokens,
        {name: float(value) for name, value in here.items()},
        {name: interval(values, 80) for name, values in spread.items()},
    )
