"""The results of a call of `solo evaluate --tasks` or `--text`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from solo.evaluation.scoring.answering import Task
from solo.evaluation.scoring.intervals import Difference
from solo.evaluation.scoring.scores import Comparison, Score, difference_dict
from solo.evaluation.scoring.text_files import TextFile
from solo.evaluation.scoring.texts import TextScore

LANGUAGE_MODEL = "language_model"


@dataclass
class Evaluated:
    """The results of one benchmark.

    scores       by `shown`, `removed`, `blanked` and `language_model`
    measures     see `solo.evaluation.scoring.scores.measures`
    comparisons  with other predictions
    seconds      spent on answers in this call
    """

    task: Task
    scores: dict[str, Score] = field(default_factory=dict)
    measures: dict[str, Difference] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Returns the results as JSON values."""
        return {
            "title": self.task.benchmark.title,
            "scores": {name: each.as_dict() for name, each in self.scores.items()},
            "measures": {name: difference_dict(each) for name, each in self.measures.items()},
            "against": [each.as_dict() for each in self.comparisons],
            "left_out": dict(self.task.left_out),
        }


@dataclass
class MeasuredText:
    """The results of one file of texts.

    scores       of the model (`shown`), and of the `language_model` that it started from
    differences  of the two by metric: the model - the language model
    """

    file: TextFile
    scores: dict[str, TextScore] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Returns the results as JSON values."""
        return {
            "scores": {name: each.as_dict() for name, each in self.scores.items()},
            "differences": {name: difference_dict(each) for name, each in self.differences.items()},
        }


@dataclass
class Outcome:
    """All results of a call, and the folder that it wrote them to.

    weights  digest of the model's weights, once it is loaded
    """

    folder: Path
    model: str
    tasks: Sequence[Evaluated]
    texts: Sequence[MeasuredText] = ()
    weights: str = ""
