"""The best checkpoints of a run, by a metric of its evaluators.

They are determined from `metrics.jsonl`, so a resumed run or a later command finds the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from solo.config import BestConfig, Config
from solo.training.evaluators import TRAINED, without_replaced

# The field of an evaluator's line that is its main result, by kind.
MAIN_FIELDS = {"held_out": "loss", "evaluation": "score", "integration_rate": "rate"}


def value_of(line: Mapping[str, Any], config: BestConfig) -> float | None:
    """Returns the value of the metric in a line of `metrics.jsonl`; None if the line has no finite value."""
    kind, _, rest = config.metric.partition("/")
    task = line.get("task")
    if line["kind"] != kind or task is None or line.get("weights", TRAINED) != config.weights:
        return None
    if rest != task and not rest.startswith(f"{task}/"):
        return None
    fields = rest[len(task) + 1 :] or MAIN_FIELDS.get(kind, "")
    value: Any = line
    for field in fields.split("/"):
        value = value.get(field) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def best_steps(lines: Iterable[Mapping[str, Any]], config: BestConfig) -> list[int]:
    """Returns the steps with a finite value of the metric, from best to worst; see `ranked`."""
    return ranked(values_by_step(lines, config), config)


def values_by_step(lines: Iterable[Mapping[str, Any]], config: BestConfig) -> dict[int, float]:
    """Returns the finite values of the metric, by step. If a step has several lines, the last one is used.

    Lines of an evaluator that a resumed run replaced are ignored.
    """
    return {line["step"]: value for line in without_replaced(lines) if (value := value_of(line, config)) is not None}


def ranked(values: Mapping[int, float], config: BestConfig) -> list[int]:
    """Returns the steps sorted from the best value to the worst. Of equal values, the earlier step is first."""
    sign = 1 if config.mode == "min" else -1
    return sorted(values, key=lambda step: (sign * values[step], step))


class BestSteps:
    """The steps of a run's best checkpoints so far.

    Args:
        config: the run.
        values: values of the metric so far, by step.
    """

    def __init__(self, config: Config, values: Mapping[int, float]):
        self._config, self._best, self._values = config, config.checkpoint.best, dict(values)

    def measured_at(self, step: int, last: bool) -> bool:
        """Returns whether the metric is measured after a step. Such steps are saved."""
        if self._best is None:
            return False
        evaluation = self._config.evaluation
        return any(
            evaluation.runs_at(section, step, last)
            for kind, name, section in evaluation.evaluators()
            if f"{self._best.metric}/".startswith(f"{kind}/{name}/")
        )

    def add(self, line: Mapping[str, Any]) -> None:
        """Takes a line of `metrics.jsonl`."""
        if self._best is not None and (value := value_of(line, self._best)) is not None:
            self._values[line["step"]] = value

    def kept(self, saved: Collection[int]) -> list[int]:
        """Returns the steps of the checkpoints to keep, among those that are saved."""
        if self._best is None:
            return []
        found = [step for step in ranked(self._values, self._best) if step in saved]
        return found[: self._best.keep]
