"""Scores of judged answers with their intervals, and comparisons of two sets of answers to the same questions.

MMStar (arXiv 2403.20330, section 4.2) defines two measures of a benchmark: the multi-modal gain, a model's score with
images minus its score without them, and the multi-modal leakage, its score without images minus the score of the
language model that it started from, but at least 0. Like the paper, this code removes the images. In the training loop
(`blank_images` of a task), they are instead replaced by uniform grey images of the same sizes: the prompt keeps its
length and form, so the model cannot tell from the prompt that an image is missing. Both baselines can be measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from solo.config import ConfigError
from solo.evaluation.benchmarks.item import Judged
from solo.evaluation.scoring.answering import Line, Task
from solo.evaluation.scoring.digest import image_digest
from solo.evaluation.scoring.intervals import RESAMPLES, Difference, Interval, Tallies, difference, interval
from solo.evaluation.scoring.predictions import Settings


@dataclass(frozen=True)
class Resampling:
    """How intervals are computed: draws of the clusters, and their seed."""

    resamples: int = RESAMPLES
    seed: int = 0


@dataclass(frozen=True)
class Score:
    """The score of a model on a benchmark.

    settings  the model, and how it was asked
    metric    name of the headline
    value     the headline with its interval
    summary   all metrics and groups, the headline first
    clusters  independent groups of items: those with the same images
    lines     the predictions, in the benchmark's order
    tallies   tallies of the headline
    """

    settings: Settings
    metric: str
    value: Interval
    summary: Mapping[str, float]
    items: int
    clusters: int
    lines: Sequence[Line]
    tallies: Tallies

    def count(self, what: str) -> int:
        """Returns the number of answers that were `cut`, `shrunk`, `too_long` or `guessed`."""
        return sum(bool(line.get(what)) for line in self.lines)

    def as_dict(self) -> dict[str, Any]:
        """Returns the score as JSON values. Undefined metrics are None."""
        return {
            **asdict(self.settings),
            "metric": self.metric,
            **_interval(self.value),
            "items": self.items,
            "questions": len(self.lines),
            "clusters": self.clusters,
            "cut": self.count("cut"),
            "shrunk": self.count("shrunk"),
            "too_long": self.count("too_long"),
            "guessed": self.count("guessed"),
            "summary": {name: _number(value) for name, value in self.summary.items()},
        }


def score(task: Task, settings: Settings, lines: Sequence[Line], how: Resampling) -> Score:
    """Judges the answers of a model to all questions of a task, and computes the headline's interval."""
    judged_lines, judged = task.judged(lines)
    tallies = _tallies(task, judged)
    return Score(
        settings,
        task.benchmark.metric.name,
        interval(tallies, resamples=how.resamples, seed=how.seed),
        task.benchmark.summary(judged),
        len(task.items),
        len(tallies.clusters),
        judged_lines,
        tallies,
    )


def measures(scores: Mapping[str, Score], how: Resampling) -> dict[str, Difference]:
    """Returns the contribution of the images of a benchmark to its score.

    Args:
        scores: any of `shown`, `removed` and `blanked` of one model, and `language_model` without images.
        how: for the intervals.

    Returns:
        `multimodal_gain` and `leakage` as MMStar defines them, and `gain_over_blanked`, by name, if their scores are
        there.
    """
    pairs = {
        "multimodal_gain": ("shown", "removed", -math.inf),
        "leakage": ("removed", "language_model", 0.0),
        "gain_over_blanked": ("shown", "blanked", -math.inf),
    }
    return {
        name: difference(
            scores[first].tallies, scores[second].tallies, resamples=how.resamples, seed=how.seed, floor=floor
        )
        for name, (first, second, floor) in pairs.items()
        if first in scores and second in scores
    }


@dataclass(frozen=True)
class Comparison:
    """A score against that of other predictions, on the items that both have.

    model        of the other predictions
    way          how both were asked; see `solo.evaluation.scoring.outcome.Evaluated`
    mine, other  the scores on these items
    difference   mine - other
    items        that both have
    only_mine    items that the other predictions lack
    fixed        questions that only mine answers better
    broken       questions that only the other answers better
    """

    model: str
    way: str
    mine: float
    other: float
    difference: Difference
    items: int
    only_mine: int
    fixed: int
    broken: int
    lines: Mapping[str, Line]

    def as_dict(self) -> dict[str, Any]:
        """Returns the comparison as JSON values, without its lines."""
        return {
            "model": self.model,
            "way": self.way,
            "mine": _number(self.mine),
            "other": _number(self.other),
            **difference_dict(self.difference),
            "items": self.items,
            "only_mine": self.only_mine,
            "better": self.fixed,
            "worse": self.broken,
        }


def compare(
    task: Task,
    mine: Score,
    settings: Mapping[str, Any],
    lines: Sequence[Line],
    how: Resampling,
    where: str,
    way: str = "shown",
) -> Comparison:
    """Compares a score with the predictions of another model, judged in the same way.

    Args:
        task: the benchmark.
        mine: the score.
        settings: of the other predictions.
        lines: the other predictions.
        how: for the interval.
        where: the file of the other predictions.
        way: how both were asked.

    Raises:
        ConfigError: they are of another task, convention or images, answer other prompts, or share no item.
    """
    for key in ("task", "convention", "images"):
        if settings.get(key) != getattr(mine.settings, key):
            raise ConfigError(
                f"--against {where}: its {key} is {settings.get(key)!r}, not {getattr(mine.settings, key)!r}"
            )
    others = {line["key"]: line for line in lines}
    own = {line["key"]: line for line in mine.lines}
    for key in own.keys() & others.keys():
        fitted = any(line.get("shrunk") or line.get("too_long") for line in (own[key], others[key]))
        if not fitted and own[key]["prompt_digest"] != others[key]["prompt_digest"]:
            raise ConfigError(f"--against {where}: question {key!r} had another prompt or image there")
    kept = [
        place for place, questions in enumerate(task.asked) if all(question.key in others for question in questions)
    ]
    if not kept:
        raise ConfigError(f"--against {where}: it answers none of the items of {task.benchmark.name}")
    items = tuple(task.items[place] for place in kept)
    shared = Task(task.benchmark, items, tuple(task.asked[place] for place in kept))
    my_lines, my_judged = shared.judged([own[key] for key in shared.questions])
    other_lines, other_judged = shared.judged([others[key] for key in shared.questions])
    first, second = _tallies(shared, my_judged), _tallies(shared, other_judged)
    better = [a["score"] > b["score"] for a, b in zip(my_lines, other_lines, strict=True)]
    worse = [a["score"] < b["score"] for a, b in zip(my_lines, other_lines, strict=True)]
    return Comparison(
        str(settings.get("model")),
        way,
        first.total(),
        second.total(),
        difference(first, second, resamples=how.resamples, seed=how.seed),
        len(items),
        len(task.items) - len(items),
        sum(better),
        sum(worse),
        {line["key"]: line for line in other_lines},
    )


def difference_dict(found: Difference) -> dict[str, Any]:
    """Returns a difference as JSON values. Undefined bounds are None."""
    return {"difference": _number(found.value), "low": _number(found.low), "high": _number(found.high), "p": found.p}


def _tallies(task: Task, judged: Sequence[Judged]) -> Tallies:
    """Returns the headline's tallies. Units with the same images are one cluster."""
    metric = task.benchmark.metric
    units = metric.units(judged)
    digests: dict[bytes, str] = {}

    def cluster(unit: Sequence[Judged]) -> str:
        images = unit[0].item.images
        if not images:
            return f"item {unit[0].item.id}"
        for image in images:
            if image.data not in digests:
                digests[image.data] = image_digest(image)
        return " ".join(digests[image.data] for image in images)

    return Tallies.of(metric.value, metric.tallies(units), [cluster(unit) for unit in units])


def _interval(value: Interval) -> dict[str, Any]:
    return {"score": _number(value.value), "low": _number(value.low), "high": _number(value.high)}


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
