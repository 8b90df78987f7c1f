"""Feeds the devices: turns the plan of a stage into batches, each with the facts that the host knows about its step.

If the mixture is learned from the losses, updates change the plan of later steps. The loader, which has prefetched
batches, then restarts after the last step.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from solo.batch import Batch
from solo.config import Config, StageConfig
from solo.data.planning.stage_plan import PlanStatistics, StagePlan
from solo.data.rows.loader import Loader, batch_record_ids
from solo.data.store.prepare import Prepared
from solo.model.flops import BatchStats, batch_stats, type_shares
from solo.sharding.axes import check_slots, rows_per_shard
from solo.sharding.hosts import RowShare, row_share, summed
from solo.training.checkpoint import Progress
from solo.training.idle import IdleWatch
from solo.training.ledger import Ledger
from solo.training.mixture import MixtureLearner
from solo.training.stopping import Stop


class StepInfo(NamedTuple):
    """Facts about a step that are known before it is computed.

    step          step of the run, from 1
    stage         index of the stage
    stage_step    step of the stage, from 1
    planned       the plan's counts over the whole batch
    stats         returns counts over the whole batch of all hosts; calling it may wait for the devices
    slots         slots of the whole batch
    wait_seconds  seconds that the loop waited for the batch
    """

    step: int
    stage: int
    stage_step: int
    planned: PlanStatistics
    stats: Callable[[], BatchStats]
    slots: int
    wait_seconds: float


class Feeder:
    """Yields the batches of a run's stages.

    Args:
        config: the run.
        prepared: its data.
        mesh: the devices.
        ledger: records how long the devices wait for a batch.
        idle: measures when the devices are idle.
        quarantine: file for documents that cannot be read.
        stop: whether to stop waiting for a batch; default: never.

    Attributes:
        plans: one plan for each stage.
        share: the rows of a batch that this process loads.
        learner: learns the weights of the current stage's mixture, or None.
    """

    def __init__(
        self,
        config: Config,
        prepared: Prepared,
        mesh: Mesh,
        ledger: Ledger,
        idle: IdleWatch,
        quarantine: Path,
        stop: Stop | None = None,
    ):
        self.plans: Sequence[StagePlan] = [self._plan(config, prepared, stage) for stage in config.stages]
        for plan in self.plans:  # plan all stages now, so that errors do not appear after days of training
            rows_per_shard(plan.stage, mesh.shape)
            check_slots(plan.stage, plan.shape.patch_slots, plan.shape.text_slots, mesh.shape)
        self.share: RowShare = row_share(mesh)
        self.learner: MixtureLearner | None = None
        self._config, self._prepared, self._mesh = config, prepared, mesh
        self._ledger, self._idle, self._quarantine = ledger, idle, quarantine
        self._stop = stop or Stop()

    def steps_before(self, number: int) -> int:
        """Returns the steps of the stages before stage `number`."""
        return sum(plan.num_steps for plan in self.plans[:number])

    def start(self, start: Progress) -> None:
        """Restores the plan of a stage to its starting point. Must be called before the stage's `batches`."""
        plan, self.learner = self.plans[start.stage], None
        if plan.stage.mixture_learning is not None:
            self.learner = MixtureLearner(plan.stage.mixture_learning, plan.stage.mixture)
            if "learned" in start.plan:
                self.learner.restore(start.plan["learned"])
            for step, weights in self.learner.history.items():
                plan.change_weights(step, weights)
        if start.plan:
            plan.seek(start.plan)

    def learns_after(self, info: StepInfo) -> bool:
        """Returns whether the mixture's weights are updated after a step whose losses were added to `learner`."""
        last = info.stage_step == self.plans[info.stage].num_steps
        return self.learner is not None and self.learner.due(info.stage_step) and not last

    def learn(self, info: StepInfo) -> None:
        """Updates the weights for the following steps. Prefetched batches are discarded and read again."""
        assert self.learner is not None
        weights = self.learner.update()
        step = self.plans[info.stage].change_weights(info.stage_step, weights)
        self.learner.history[step] = weights

    def snapshot(self, info: StepInfo) -> dict[str, Any]:
        """Returns what `start` needs to continue after a step: the plan's snapshot, and the learner's state."""
        plan = self.plans[info.stage]
        if info.stage_step == plan.num_steps and plan.stage.steps is None:
            return {}  # the data ends here
        snapshot = plan.snapshot(info.stage_step)  # also at the end of a stage: a branch may have more steps
        return snapshot if self.learner is None else {**snapshot, "learned": self.learner.state()}

    def record_ids(self, info: StepInfo) -> Any:
        """Returns the ids of the documents of a step's batch."""
        plan = self.plans[info.stage]
        return batch_record_ids(plan, self._sources(plan.stage), info.stage_step - 1)

    def batches(self, start: Progress) -> Generator[tuple[StepInfo, Batch]]:
        """Yields this host's numpy batches with their `StepInfo`, from the step after `start` to the stage's end.

        Raises:
            Interrupted: SIGTERM came while a single process waited for a batch.
        """
        plan, before = self.plans[start.stage], start.step - start.stage_step
        stage_step = start.stage_step
        while stage_step < plan.num_steps:
            known = len(self.learner.history) if self.learner else 0
            with self._loader(start.stage, stage_step, before) as loader:
                batches = iter(loader)
                # New weights restart the loader, because it has prefetched batches.
                while stage_step < plan.num_steps and (not self.learner or known == len(self.learner.history)):
                    asked = time.perf_counter()
                    with self._stop.at_once():
                        batch = next(batches)
                    got = time.perf_counter()
                    stage_step += 1
                    if stage_step > start.stage_step + 1:  # the first wait is part of starting
                        self._ledger.waited(self._idle.idle(asked, got))
                    slots = batch.attend.shape[0] * batch.attend.shape[1] * self.share.count
                    planned = plan.statistics(stage_step - 1, stage_step)
                    counts = planned, self._stats(batch), slots
                    yield StepInfo(before + stage_step, start.stage, stage_step, *counts, got - asked), batch

    def _loader(self, number: int, start_step: int, steps_before: int) -> Loader:
        stage = self._config.stages[number]
        return Loader(
            self.plans[number],
            self._sources(stage),
            self._prepared.tokenizer,
            self._config.image_in(stage),
            self._config.data,
            process_index=self.share.index,
            process_count=self.share.count,
            start_step=start_step,
            quarantine=self._quarantine if self.share.first else None,
            sequence=self._config.sequence,
            steps_before=steps_before,
        )

    def _stats(self, batch: Batch) -> Callable[[], BatchStats]:
        total = summed(dataclasses.astuple(batch_stats(batch, type_shares(self._config.model))), self.share, self._mesh)
        return lambda: BatchStats(*total())

    def _sources(self, stage: StageConfig) -> dict[str, Any]:
        return {name: self._prepared.sources[name] for name in stage.sources}

    @staticmethod
    def _plan(config: Config, prepared: Prepared, stage: StageConfig) -> StagePlan:
        indexes = {name: prepared.sources[name].index for name in stage.sources}
        return StagePlan(stage, indexes, config.image_in(stage), config.data, config.seed)
