"""Metrics of a whole benchmark, in a form that resampling is cheap in.

A metric is a function of sums over independent units: a mean is a sum of scores over a count, F1 a function of three
counts. `tallies` gives the terms of the sums, a row per unit; `value` computes the metric from their sums. A bootstrap
then is one matrix product: `metric.value(weights @ metric.tallies(units))` with weights `[resamples, units]`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from solo.evaluation.benchmarks.item import Judged


class Metric(ABC):
    """A metric of judged items.

    name  key of the headline in a summary, such as `accuracy`
    most  its largest value
    """

    name: str
    most: float = 100.0

    def unit(self, item: Judged) -> str:
        """Returns the unit that an item belongs to. Units are independent; by default each item is one."""
        return item.item.id

    @abstractmethod
    def tallies(self, units: Sequence[Sequence[Judged]]) -> np.ndarray:
        """Returns what each unit adds to the sums: float64 `[units, sums]`."""

    @abstractmethod
    def value(self, sums: np.ndarray) -> np.ndarray:
        """Returns the metric of summed tallies: `[..., sums]` to `[...]`. Not a number where it is undefined."""

    def units(self, items: Sequence[Judged]) -> list[list[Judged]]:
        """Returns the items by unit, in the order of each unit's first."""
        found: dict[str, list[Judged]] = {}
        for item in items:
            found.setdefault(self.unit(item), []).append(item)
        return list(found.values())

    def of(self, items: Sequence[Judged]) -> float:
        """Returns the metric of all items. Not a number without items."""
        if not items:
            return float("nan")
        return float(self.value(self.tallies(self.units(items)).sum(axis=0)))


class Mean(Metric):
    """The mean score, times `most`. An item counts once: it is right if all its questions were answered right."""

    def __init__(self, name: str = "accuracy", most: float = 100.0):
        self.name, self.most = name, most

    def tallies(self, units: Sequence[Sequence[Judged]]) -> np.ndarray:
        """Returns the score of each unit and the number of its items."""
        return np.array([[sum(score(item) for item in unit), len(unit)] for unit in units], np.float64)

    def value(self, sums: np.ndarray) -> np.ndarray:
        """Returns the mean."""
        return self.most * ratio(sums[..., 0], sums[..., 1])


def score(item: Judged) -> float:
    """Returns the score of an item: the lowest of its questions'. Circular evaluation counts so."""
    return min(answer.score for answer in item.answers)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Returns part / whole, and not a number where `whole` is 0."""
    return np.divide(part, whole, out=np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan), where=whole != 0)
