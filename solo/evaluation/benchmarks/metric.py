"""Metrics of a whole benchmark, in a form that makes resampling cheap.

A metric is a function of sums over independent units: a mean is a sum of scores over a count, F1 a function of three
counts. `tallies` gives the terms of the sums, a row per unit; `value` computes the metric from their sums. A bootstrap
then is one matrix product: `metric.value(weights @ metric.tallies(units))` with weights `[resamples, units]`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from solo.evaluation.benchmarks.item import SEVERAL, Judged


class Metric(ABC):
    """A metric of judged items.

    name    its key in a summary, such as `accuracy`
    scale   factor of the scores: 100 for percent
    spread  a label: an item counts once for each of its values
    """

    name: str
    scale: float = 100.0
    spread: str | None = None

    def unit(self, item: Judged) -> str:
        """Returns the unit that an item belongs to. Units are independent; by default each item is one."""
        return item.item.id

    @abstractmethod
    def tallies(self, units: Sequence[Sequence[Judged]]) -> np.ndarray:
        """Returns the contribution of each unit to the sums: float64 `[units, sums]`."""

    @abstractmethod
    def value(self, sums: np.ndarray) -> np.ndarray:
        """Returns the metric of summed tallies: `[..., sums]` to `[...]`. Not a number where it is undefined."""

    def units(self, items: Sequence[Judged]) -> list[list[Judged]]:
        """Returns the items by unit, in the order of each unit's first."""
        found: dict[str, list[Judged]] = {}
        for item in items:
            found.setdefault(self.unit(item), []).extend(one_per_value(item, self.spread) if self.spread else [item])
        return list(found.values())

    def of(self, items: Sequence[Judged]) -> float:
        """Returns the metric of all items. Not a number without items."""
        if not items:
            return float("nan")
        return float(self.value(self.tallies(self.units(items)).sum(axis=0)))


class Mean(Metric):
    """The mean score, times `scale`. An item counts once: it is right if all its questions were answered right."""

    def __init__(self, name: str = "accuracy", scale: float = 100.0, spread: str | None = None):
        self.name, self.scale, self.spread = name, scale, spread

    def tallies(self, units: Sequence[Sequence[Judged]]) -> np.ndarray:
        """Returns the score of each unit and the number of its items."""
        return np.array([[sum(score(item) for item in unit), len(unit)] for unit in units], np.float64)

    def value(self, sums: np.ndarray) -> np.ndarray:
        """Returns the mean."""
        return self.scale * ratio(sums[..., 0], sums[..., 1])


def score(item: Judged) -> float:
    """Returns the score of an item: the lowest score of its questions, as in circular evaluation."""
    return min(answer.score for answer in item.answers)


def one_per_value(item: Judged, label: str) -> list[Judged]:
    """Returns the item once for each value of a label, or as it is if it has none."""
    values = item.item.labels.get(label, "").split(SEVERAL)
    if len(values) == 1:
        return [item]
    return [item._replace(item=replace(item.item, labels={**item.item.labels, label: value})) for value in values]


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Returns part / whole, and not a number where `whole` is 0."""
    return np.divide(part, whole, out=np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan), where=whole != 0)


class MeanOfGroups(Metric):
    """The mean over groups of the groups' mean scores, times `scale`. Groups are the values of a label."""

    def __init__(self, label: str, name: str = "accuracy", scale: float = 100.0):
        self.label, self.name, self.scale = label, name, scale

    def tallies(self, units: Sequence[Sequence[Judged]]) -> np.ndarray:
        """Returns the sum of scores and the number of items of each group: `[units, 2 x groups]`."""
        values = sorted({item.item.labels.get(self.label, "") for unit in units for item in unit})
        found = np.zeros((len(units), len(values), 2))
        for number, unit in enumerate(units):
            for item in unit:
                found[number, values.index(item.item.labels.get(self.label, ""))] += (score(item), 1)
        return found.reshape(len(units), -1)

    def value(self, sums: np.ndarray) -> np.ndarray:
        """Returns the mean over the groups that have items."""
        groups = sums.reshape(*sums.shape[:-1], -1, 2)
        means, present = ratio(groups[..., 0], groups[..., 1]), groups[..., 1] > 0
        return self.scale * ratio(np.where(present, means, 0).sum(-1), present.sum(-1))


Count = Literal["f1", "precision", "recall", "yes_ratio"]


class Detection(Metric):
    """F1, precision or recall of the answer "yes", or the share of such answers, in percent.

    An item with several values of the label `category` counts once in each, as in the files that list it several times.
    An answer that is neither "yes" nor "no" is a wrong "no" in VLMEvalKit. In lmms-eval it counts as neither, so that
    recall is higher (`lenient`).
    """

    spread = "category"

    def __init__(self, name: Count, lenient: bool):
        self.name, self.lenient = name, lenient

    def tallies(self, units: Sequence[Sequence[Judged]]) -> np.ndarray:
        """Returns true positives, false positives, false negatives and answers: `[units, 4]`."""
        found = np.zeros((len(units), 4))
        for number, unit in enumerate(units):
            for item, (answer, *_) in unit:
                positive, said = item.references[0] == "yes", answer.extracted
                missed = positive and (said == "no" if self.lenient else said != "yes")
                found[number] += (positive and said == "yes", not positive and said == "yes", missed, 1)
        return found

    def value(self, sums: np.ndarray) -> np.ndarray:
        """Returns the metric; 0 without a "yes" or a reference "yes", as both harnesses do."""
        right, wrong, missed, count = np.moveaxis(sums, -1, 0)
        parts = {
            "f1": (2 * right, 2 * right + wrong + missed),
            "precision": (right, right + wrong),
            "recall": (right, right + missed),
            "yes_ratio": (right + wrong, count),
        }
        return self.scale * np.nan_to_num(ratio(*parts[self.name]))


class MME(Metric):
    """The score of MME: for each subtask accuracy plus accuracy+, in percent, summed over subtasks.

    Accuracy+ is the share of images whose questions, two of them, are all answered right.
    """

    def __init__(self, name: str, subtasks: Sequence[str]):
        self.name, self.subtasks = name, tuple(subtasks)

    def unit(self, item: Judged) -> str:
        """Returns subtask and image."""
        return f"{item.item.labels['category']}/{item.item.labels['image']}"

    def tallies(self, units: Sequence[Sequence[Judged]]) -> np.ndarray:
        """Returns right answers, questions, images answered right, and images, of each subtask."""
        found = np.zeros((len(units), len(self.subtasks), 4))
        for number, unit in enumerate(units):
            category = unit[0].item.labels["category"]
            if category in self.subtasks:
                scores = [score(item) for item in unit]
                found[number, self.subtasks.index(category)] = (sum(scores), len(scores), min(scores), 1)
        return found.reshape(len(units), -1)

    def value(self, sums: np.ndarray) -> np.ndarray:
        """Returns the sum over the subtasks that have questions; not a number if none has."""
        right, questions, both, images = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 4), -1, 0)
        scores = 100 * (np.nan_to_num(ratio(right, questions)) + np.nan_to_num(ratio(both, images)))
        return np.where(images.sum(-1) > 0, scores.sum(-1), np.nan)
