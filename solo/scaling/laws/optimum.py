"""The best split of compute between parameters and tokens, how flat it is, and how serving the model moves it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from solo.scaling.laws.law import Array, Law

NEAR = 0.005  # a size is good enough if its loss is within this share of the best
SERVED = 1 / 3  # FLOPs of a served token over those of a training token: forward only
_SMALLEST = 1e3  # parameters or tokens
_GOLDEN = (5**0.5 - 1) / 2
_STEPS = 60  # of a bisection
_SECTIONS = 40  # a minimum cannot be found more exactly than to half of the digits
_WIDEST = np.log(1e4)

At = Mapping[str, float]


def variables_at(n: Any, d: Any, at: At | None = None, flops: Any = np.nan) -> dict[str, Any]:
    """Returns the variables of a run with these parameters and tokens; `at` holds the others, such as `share`."""
    found = {"n": n, "d": d, "flops": flops, "unique": np.inf, **(at or {})}
    if "share" in found:
        found["images"], found["text"] = found["share"] * d, (1 - found["share"]) * d
    return found


def optimum(
    law: Law, coefficients: Mapping[str, Any], flops: Any, factor: float, at: At | None = None
) -> dict[str, Array]:
    """Returns size, tokens and loss of the compute-optimal run, for one set of coefficients or for J sets.

    A law that does not allocate compute only has a loss.
    """
    if not law.allocates:
        return {"loss": law.loss(coefficients, variables_at(np.nan, np.nan, at, flops))}
    product = np.asarray(flops, float) / factor
    if law.pair is not None and not (law.repeats and at and "unique" in at):
        n, d = law.optimum(coefficients, flops, factor, at)
    else:
        low, high = np.log(_SMALLEST), np.log(product / _SMALLEST)
        shape = np.broadcast(product, *map(np.asarray, coefficients.values())).shape
        n = np.exp(lowest(lambda x: along(law, coefficients, np.exp(x), product, at), low, high, shape))
        d = product / n
    return {"n": n, "d": d, "loss": law.loss(coefficients, variables_at(n, d, at, flops))}


def along(law: Law, coefficients: Mapping[str, Any], n: Any, product: Any, at: At | None = None) -> Array:
    """Returns the loss of size n if n d = product."""
    return law.loss(coefficients, variables_at(n, product / n, at))


def lowest(value: Callable[[Array], Array], low: Any, high: Any, shape: tuple[int, ...]) -> Array:
    """Returns where functions with one minimum each are lowest, by golden section. Infinite values count as too low."""
    left, right = np.array(np.broadcast_to(low, shape), float), np.array(np.broadcast_to(high, shape), float)
    for _ in range(_SECTIONS):
        reach = _GOLDEN * (right - left)
        first, second = right - reach, left + reach
        down = value(first) < value(second)
        right, left = np.where(down, second, right), np.where(down, left, first)
    return np.asarray((left + right) / 2)


def crossing(value: Callable[[Array], Array], inside: Any, outside: Any, shape: tuple[int, ...]) -> Array:
    """Returns where functions change from negative, at `inside`, to positive, by bisection; NaN if they do not."""
    near, far = np.array(np.broadcast_to(inside, shape), float), np.array(np.broadcast_to(outside, shape), float)
    reached = value(far) > 0
    for _ in range(_STEPS):
        middle = (near + far) / 2
        beyond = value(middle) > 0
        near, far = np.where(beyond, near, middle), np.where(beyond, middle, far)
    return np.where(reached, (near + far) / 2, np.nan)


def near_optimal(
    law: Law, coefficients: Mapping[str, Any], flops: float, factor: float, at: At | None = None
) -> tuple[Array, Array]:
    """Returns the smallest and the largest size whose loss at this compute is within 0.5% of the best."""
    best = optimum(law, coefficients, flops, factor, at)

    def above(logs: Array) -> Array:
        return along(law, coefficients, np.exp(logs), flops / factor, at) - (1 + NEAR) * best["loss"]

    middle = np.log(best["n"])
    low, high = (np.exp(crossing(above, middle, middle + side * _WIDEST, middle.shape)) for side in (-1, 1))
    return low, high


def given_up(
    law: Law, coefficients: Mapping[str, Any], flops: float, factor: float, n: Any, at: At | None = None
) -> Array:
    """Returns by how much the loss of size n at this compute exceeds the best, relative."""
    best = optimum(law, coefficients, flops, factor, at)["loss"]
    return np.asarray(along(law, coefficients, n, flops / factor, at) / best - 1.0)


def serve(
    law: Law, coefficients: Mapping[str, Any], flops: float, factor: float, tokens: float, at: At | None = None
) -> dict[str, Array]:
    """Returns the run that is cheapest in total if `tokens` are served after training.

    Its loss is that of the compute-optimal run at `flops`. Serving a token takes a third of the compute of training on
    it, so a smaller model that is trained for longer costs less in total (Sardana and Frankle 2024, arXiv 2401.00448).

    Returns:
        n and d; training and total FLOPs; saved, the total relative to that of the compute-optimal run.
    """
    best = optimum(law, coefficients, flops, factor, at)
    shape = best["n"].shape

    def needed(n: Array) -> Array:
        """Returns the tokens with which size n reaches the loss; infinite if none do."""

        def missing(logs: Array) -> Array:
            return best["loss"] - law.loss(coefficients, variables_at(n, np.exp(logs), at))

        start = np.log(best["d"])
        logs = crossing(missing, start, start + _WIDEST, shape)
        return np.where(np.isnan(logs), np.inf, np.exp(logs))

    def total(n: Array, d: Array) -> Array:
        return np.asarray(factor * n * (d + SERVED * tokens))

    top = np.log(best["n"])
    n = np.exp(lowest(lambda x: total(np.exp(x), needed(np.exp(x))), top - _WIDEST, top, shape))
    d = needed(n)
    whole = total(n, d)
    return {
        "n": n,
        "d": d,
        "training": factor * n * d,
        "total": whole,
        "saved": 1.0 - whole / total(best["n"], best["d"]),
    }


def equal_loss(
    law: Law, coefficients: Mapping[str, Any], loss: Array, around: float, factor: float, at: At | None = None
) -> Array:
    """Returns the compute with which the law's best run reaches a loss; infinite if no compute does.

    Looks up to a factor of 10,000 below and above `around`.
    """

    def missing(logs: Array) -> Array:
        return loss - optimum(law, coefficients, np.exp(logs), factor, at)["loss"]

    start = np.log(around)
    logs = crossing(missing, start - _WIDEST, start + _WIDEST, np.shape(loss))
    return np.where(np.isnan(logs), np.inf, np.exp(logs))
