"""The best checkpoints of a run, by a metric of its evaluators.

The lines of `metrics.jsonl` decide, so that a resumed run, and a later command, find the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from solo.config.checkpoint import BestConfig
from solo.training.evaluators import TRAINED

# The field of an evaluator's line that stands for it, by kind.
MAIN_FIELDS = {"held_out": "loss", "evaluation": "score"}


def value_of(line: Mapping[str, Any], config: BestConfig) -> float | None:
    """Returns the value of the metric in a line of `metrics.jsonl`; None if the line holds no finite one."""
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
    """Returns the steps with a finite value of the metric, best first; of equal ones, the earlier first."""
    values = {line["step"]: value for line in lines if (value := value_of(line, config)) is not None}
    sign = 1 if config.mode == "min" else -1
    return sorted(values, key=lambda step: (sign * values[step], step))
