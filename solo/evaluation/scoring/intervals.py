"""Confidence intervals by the bootstrap over clusters (Efron and Tibshirani 1993; Field and Welsh 2007). Numpy only.

Questions about one image are not independent of each other, so images are resampled, each with all its questions. A
metric is a function of sums over its units (`solo.evaluation.benchmarks.metric`), so a resample is a row of weights
times a matrix. Two models that answered the same questions are resampled with the same weights, so the difficulty of a
question cancels in their difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

RESAMPLES = 2_000
_COVERAGE = 0.95
_DRAWS = 1 << 22  # held in memory at once

Value = Callable[[np.ndarray], np.ndarray]


class Interval(NamedTuple):
    """A value, and the bounds of its interval; not a number where the metric is undefined."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """The difference of two values on the same items, its interval, and its p-value.

    p  twice the smaller share of the resamples in which the difference is not above, or not below, zero; at most 1.
       Not a number with a single cluster
    """

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Tallies:
    """A metric before its sums.

    value     [..., sums] to [...]
    clusters  float64 [clusters, sums]: what every cluster adds to the sums
    """

    value: Value
    clusters: np.ndarray

    @classmethod
    def of(cls, value: Value, units: np.ndarray, cluster: Sequence[str]) -> Tallies:
        """Adds up the tallies of units [units, sums] by cluster. Clusters are in the order of their first units."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(cluster))}
        found = np.zeros((len(numbers), units.shape[1]))
        np.add.at(found, [numbers[name] for name in cluster], units)
        return cls(value, found)

    def total(self) -> float:
        """Returns the metric of all clusters."""
        return float(self.value(self.clusters.sum(axis=0)))


def interval(tallies: Tallies, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Returns a metric with its 95% percentile interval. Equal arguments give equal intervals.

    If all answers are right, or all are wrong, all resamples agree and the interval has zero width. With a single
    cluster, the spread is unknown and the bounds are NaN.

    Args:
        tallies: the metric.
        resamples: number of resamples of the clusters, with replacement.
        seed: seed of the resamples.
    """
    (found,) = _resampled([tallies], resamples, seed)
    return Interval(tallies.total(), *_percentiles(found))


def difference(
    first: Tallies,
    second: Tallies,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    floor: float = -np.inf,
) -> Difference:
    """Returns first - second with the paired 95% percentile interval.

    Args:
        first: a metric.
        second: a metric of the same clusters, in the same order.
        resamples: see `interval`.
        seed: see `interval`.
        floor: lower bound of the difference, which is also applied to every resample.

    Raises:
        ValueError: the metrics are of different numbers of clusters.
    """
    if len(first.clusters) != len(second.clusters):
        raise ValueError(f"{len(first.clusters)} and {len(second.clusters)} clusters cannot be paired")
    mine, other = _resampled([first, second], resamples, seed)
    plain = mine - other
    value = first.total() - second.total()
    low, high = _percentiles(np.maximum(plain, floor))
    known = plain[~np.isnan(plain)]
    tail = min((known <= 0).sum(), (known >= 0).sum())
    p = min(1.0, 2 * (tail + 1) / (len(known) + 1)) if len(known) else float("nan")
    return Difference(max(value, floor) if value == value else value, low, high, p)


def _resampled(metrics: Sequence[Tallies], resamples: int, seed: int) -> list[np.ndarray]:
    """Returns the values of each metric in every resample, float64 [resamples]. All metrics use the same resamples.

    The values are NaN if there is only one cluster, because every resample would be a copy of it.
    """
    if len(metrics[0].clusters) < 2:
        return [np.full(resamples, np.nan) for _ in metrics]
    rows = [
        [each.value(weights @ each.clusters) for each in metrics]
        for weights in _weights(len(metrics[0].clusters), resamples, seed)
    ]
    return [np.concatenate(parts) for parts in zip(*rows, strict=True)]


def _weights(clusters: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yields how often each cluster is drawn, float64 [some resamples, clusters]."""
    rng = np.random.default_rng(seed)
    at_once = max(1, min(resamples, _DRAWS // max(clusters, 1)))
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = rng.integers(clusters, size=(rows, clusters)) + np.arange(rows)[:, None] * clusters
        yield np.bincount(drawn.ravel(), minlength=rows * clusters).reshape(rows, clusters).astype(np.float64)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - _COVERAGE) / 2, (1 + _COVERAGE) / 2])
    return float(low), float(high)
