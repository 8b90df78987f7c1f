"""The mixture that a run actually consumes: documents and passes by source, and weights that change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from solo.config import ConfigError, StageConfig
from solo.config.mixture import MixtureLearningConfig
from solo.data.planning.stage_plan import PlanStatistics, StagePlan
from solo.training.losses import Mean

# Above this number of expected passes, a note names the source.
_ONCE = 1.005
_POOR_FILL = 0.85


class MixtureMeter:
    """Counts the documents of every source over all stages. The counts are kept in the run's totals."""

    def __init__(self, plans: Sequence[StagePlan]) -> None:
        self._plans = plans

    def fields(self, number: int, planned: PlanStatistics, totals: dict[str, int]) -> dict[str, Any]:
        """Adds a step of stage `number` to the totals, and returns its part of the step's line.

        Returns:
            documents_by_source: documents of the batch, or chunks of long ones; passes_by_source: how often each
            source of the stage has been read since the run began, the batch included.
        """
        plan = self._plans[number]
        found = dict(zip(plan.stage.sources, planned.documents, strict=True))
        for name, count in found.items():
            key = _key(plan.stage, name)
            totals[key] = totals.get(key, 0) + count
        return {"documents_by_source": found, "passes_by_source": {name: self._passes(name, totals) for name in found}}

    def _passes(self, name: str, totals: Mapping[str, int]) -> float:
        return sum(
            totals.get(_key(plan.stage, name), 0) / len(plan.chunks[name])
            for plan in self._plans
            if name in plan.chunks
        )


def _key(stage: StageConfig, source: str) -> str:
    return f"documents/{stage.name}/{source}"


def mixture_notes(plans: Sequence[StagePlan]) -> list[str]:
    """Returns notes about a stage: sources that repeat or have no targets, and rows with many empty slots.

    Raises:
        ConfigError: no document of a stage has a target.
    """
    return [note for plan in plans for note in _notes(plan)]


def _notes(plan: StagePlan) -> Iterator[str]:
    stage = plan.stage.name
    silent = [name for name, chunks in plan.chunks.items() if not chunks.totals[2]]
    if len(silent) == len(plan.chunks):
        raise ConfigError(
            f"stage {stage!r} has nothing to learn from: no document of {', '.join(silent)} has a target; targets are"
            " the tokens of assistant and text turns"
        )
    for name in silent:
        yield f"stage {stage}: no document of {name} has a target, so it is read and never learned"
    for name, factor in plan.rounded_up.items():
        yield f"stage {stage} draws {name} {factor:,.1f} times too often, because its weight is very small"
    if any(passes > _ONCE for passes in plan.expected_passes.values()):
        times = ", ".join(f"{name} {passes:.3g} times" for name, passes in plan.expected_passes.items())
        yield f"stage {stage} reads {times}"
    for step in plan.weight_steps:
        if plan.takes_effect(step) >= plan.num_steps:
            yield (
                f"stage {stage}: the weights of step {step} never take effect: documents are drawn for a whole packing"
                f" window, the next one would begin at step {plan.takes_effect(step)}, and the stage ends before that;"
                " give an earlier step, or lower data.packing_window"
            )
            continue
        fill = plan.expected_fill(plan.takes_effect(step))
        if fill < _POOR_FILL:
            yield (
                f"stage {stage}: rows are about {fill:.0%} full with the weights of step {step}, because they are made"
                " for another ratio of patches to text; set patch_slots and text_slots, or make it a stage of its own"
            )


def changed_weights(plan: StagePlan, stage_step: int) -> dict[str, float] | None:
    """Returns the weights of a stage's step, from 1, if the step before had others; None on a linear schedule."""
    if plan.stage.mixture_between == "linear" or stage_step < 2:
        return None
    weights = plan.weights(stage_step - 1)
    return weights if weights != plan.weights(stage_step - 2) else None


class MixtureLearner:
    """Learns the weights of a stage online; see `MixtureLearningConfig`.

    Its state depends only on the losses that it receives, which are the same on every host.
    """

    def __init__(self, config: MixtureLearningConfig, mixture: Mapping[str, float]) -> None:
        self._config = config
        total = sum(mixture.values())
        self._first = {name: weight / total for name, weight in mixture.items()}
        self._sums = {name: [0.0, 0.0] for name in mixture}
        self._losses: list[dict[str, float]] = []
        self.history: dict[int, dict[str, float]] = {}

    def add(self, losses: Mapping[str, Mean]) -> None:
        """Adds the losses of a step by source, `loss_by_source` of the loss terms."""
        for name, mean in losses.items():
            if math.isfinite(float(mean.total)):
                self._sums[name][0] += float(mean.total)
                self._sums[name][1] += float(mean.count)

    def due(self, stage_step: int) -> bool:
        """Returns whether the weights are updated after this step of the stage, from 1."""
        return stage_step % self._config.every == 0

    def update(self) -> dict[str, float]:
        """Returns the new weights, which sum to 1, from the losses since the last update."""
        before = self._losses[-1] if self._losses else dict.fromkeys(self._first, 0.0)
        # A source that was not drawn has the loss that it had.
        found = {name: total / count if count else before[name] for name, (total, count) in self._sums.items()}
        self._losses = [*self._losses, found][-self._config.window :]
        self._sums = {name: [0.0, 0.0] for name in self._first}
        graph = {name: self._config.graph.get(name, {name: 1.0}) for name in self._first}
        gains = {
            name: sum(weight * losses[other] for losses in self._losses for other, weight in helped.items())
            for name, helped in graph.items()
        }
        highest = max(gains.values())  # against overflow; it cancels
        raised = {name: w * math.exp(self._config.rate * (gains[name] - highest)) for name, w in self._first.items()}
        total, least = sum(raised.values()), self._config.least
        return {name: least + (1 - least * len(raised)) * weight / total for name, weight in raised.items()}

    def state(self) -> dict[str, Any]:
        """Returns the state as JSON."""
        return {"sums": self._sums, "losses": self._losses, "history": list(self.history.items())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from `state()`."""
        self._sums = {name: list(sums) for name, sums in state["sums"].items()}
        self._losses = [dict(losses) for losses in state["losses"]]
        self.history = {int(step): dict(weights) for step, weights in state["history"]}
