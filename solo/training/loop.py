"""The training loop: stages one after the other, from wherever the last checkpoint stands.

records -> plan -> rows -> batch -> step -> metrics. The order of the data is a pure function of the config and
the step, the step a pure function of state and batch: a run that is killed and resumed writes the same metrics.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from solo.batch import Batch
from solo.chips import peak_flops
from solo.config import Config, StageConfig
from solo.data.planning.stage_plan import StagePlan
from solo.data.rows.loader import Loader, batch_record_ids
from solo.data.store.prepare import Prepared
from solo.files import append_json_line
from solo.model.flops import BatchStats, step_flops
from solo.model.parameters import ModelDefinition, Parameters, define
from solo.sharding.compiling import compile_lowered, compiler_options
from solo.sharding.hosts import row_share, summed
from solo.sharding.mesh import device_batch, make_mesh, parameter_shardings
from solo.training.checkpoint import Checkpoints, Progress
from solo.training.distributed import stop_agreed, wait_for_all
from solo.training.idle import IdleWatch
from solo.training.ledger import Ledger
from solo.training.losses import Measured, means
from solo.training.observer import Observer
from solo.training.optimizer import carry_state, trainable_paths
from solo.training.run import Metrics, MetricsStream, RunFolder, drop_quarantined_after
from solo.training.step import Stage, TrainState, make_stage

_log = logging.getLogger(__name__)


class BadStepError(RuntimeError):
    """A loss that is not finite, or that jumped, where the config says to stop."""


class Interrupted(Exception):  # noqa: N818 - not a fault
    """SIGTERM came; the run is saved and can be resumed."""


class Facts(NamedTuple):
    """What the hosts know of a batch before it is computed. `work` is over all of them; it may wait for devices."""

    step: int
    stage_step: int
    work: Callable[[], BatchStats]
    slots: int
    wait_seconds: float


class Trainer:
    """One run of a config, on all devices unless a mesh is given.

    initial  gives the parameters that the run begins with, sharded over the mesh; they are drawn unless it is given
    ledger   is told what the time goes into
    """

    def __init__(
        self,
        config: Config,
        prepared: Prepared,
        run: RunFolder,
        observer: Observer,
        mesh: Mesh | None = None,
        initial: Callable[[ModelDefinition, Mesh], Parameters] | None = None,
        ledger: Ledger | None = None,
    ):
        self.config, self.prepared, self.run, self.observer = config, prepared, run, observer
        self.definition = define(config, prepared.tokenizer.vocab_size)
        self.mesh = mesh or make_mesh(config.mesh)
        self._share = row_share(self.mesh)
        self._initial = initial or self._draw
        self.ledger = ledger or Ledger()
        self.plans = [self._plan(stage) for stage in config.stages]
        self.totals = {"tokens": 0, "flops": 0}
        self._idle = IdleWatch()
        self._trained = [frozenset(trainable_paths(self.definition.specs, stage)) for stage in config.stages]

    @property
    def num_steps(self) -> int:
        """Steps of all stages together."""
        return sum(plan.num_steps for plan in self.plans)

    def train(self) -> None:
        """Run every stage that is not done yet.

        Raises:
            Interrupted: after SIGTERM, once the step is finished and saved.
            BadStepError: see `SafetyConfig`.
            ConfigError: the compiler refuses one of the `compiler_options`.
            CheckpointError: a checkpoint could not be read or written.
        """
        checkpoints = Checkpoints(self.run.checkpoints, self.config.checkpoint)
        progress = checkpoints.latest() or Progress(0, 0, 0, {})
        self.totals |= progress.totals
        self.ledger.resumed(progress.step, self._machine())
        metrics = self._open_metrics(progress.step)
        try:
            state: TrainState | None = None
            for number in range(progress.stage, len(self.plans)):
                at = progress if number == progress.stage else Progress(self._before(number), number, 0, {})
                stage = self._stage(number)
                if at.stage_step == 0:
                    metrics.write(self._plan_line(number))
                state = self._enter(stage, number, at, state, checkpoints)
                state = self._run_stage(stage, state, at, checkpoints, metrics)
            checkpoints.wait()
            self.ledger.spent("checkpoint")
        finally:
            self._idle.close()
            metrics.close()
            checkpoints.close()

    def _open_metrics(self, resume_step: int) -> Metrics:
        """Cuts the run's files back to the step that it resumes from. The first process writes."""
        metrics = Metrics()
        if jax.process_index() == 0:
            drop_quarantined_after(self.run, resume_step)
            metrics = stream = MetricsStream(self.run, resume_step)
            for loss in stream.losses:
                _log.warning("%s", loss)
        wait_for_all()  # before another process appends to the quarantine
        return metrics

    def _machine(self) -> dict[str, Any]:
        """What this try runs on, for the ledger: the next one may run on something else."""
        return {
            "device_kind": jax.devices()[0].device_kind,
            "devices": self.mesh.size,
            "processes": jax.process_count(),
            "mesh": dict(self.mesh.shape),
            "compiler_options": compiler_options(self.mesh, self.config.compiler_options),
        }

    def _draw(self, definition: ModelDefinition, mesh: Mesh) -> Parameters:
        shardings = parameter_shardings(definition.specs, mesh)
        return jax.jit(definition.initialise, out_shardings=shardings)(jax.random.key(self.config.seed))

    def _enter(
        self, stage: Stage, number: int, at: Progress, before: TrainState | None, checkpoints: Checkpoints
    ) -> TrainState:
        """The state a stage begins or goes on with: restored, handed on, or drawn."""
        if before is None and at.step > 0:
            return checkpoints.restore(at, stage.abstract)
        if before is None:
            return stage.start(self._initial(self.definition, self.mesh))
        state = stage.start(before.parameters)
        if self.config.stages[number].optimizer_state == "carry":
            state = state._replace(optimizer=carry_state(state.optimizer, before.optimizer))
        return state

    def _run_stage(
        self, stage: Stage, state: TrainState, at: Progress, checkpoints: Checkpoints, metrics: Metrics
    ) -> TrainState:
        """Steps `at.stage_step` to the end of stage `at.stage`, saving on the way."""
        plan, config = self.plans[at.stage], self.config.stages[at.stage]
        pending: tuple[Facts, Measured] | None = None
        step: Callable[[TrainState, Batch], tuple[TrainState, Measured]] | None = None
        for facts, batch in self._batches(plan, config, at):
            placed = device_batch(batch, self.mesh, self._share.count)
            if step is None:
                self.ledger.spent("start-up")
                lowered = stage.step.lower(state, placed)
                step = compile_lowered(lowered, self.mesh, self.config.compiler_options)
                self.ledger.spent("compile")
            state, measured = step(state, placed)
            self._idle.given(measured["loss"])
            # The previous step is read while this one runs.
            if pending:
                self._finish(at.stage, *pending, metrics)
            pending = (facts, measured)
            stopping = stop_agreed(facts.step, self.observer.stop_requested)
            last = facts.stage_step == plan.num_steps
            if last or stopping or self._saves_at(facts.step):
                self._finish(at.stage, *pending, metrics)
                pending = None
                # No checkpoint is newer than the metrics that are stored.
                metrics.sync()
                self.ledger.sync()
                snapshot = {} if last else plan.snapshot(facts.stage_step)
                checkpoints.save(state, Progress(facts.step, at.stage, facts.stage_step, snapshot, dict(self.totals)))
                self.ledger.spent("checkpoint")
            if stopping:
                checkpoints.wait()
                self.ledger.spent("checkpoint")
                wait_for_all()  # before the first process ends and takes the others with it
                raise Interrupted
        return state

    def _batches(self, plan: StagePlan, config: StageConfig, at: Progress) -> Iterator[tuple[Facts, Batch]]:
        """Numpy batches with what the host knows of them, from the step after `at`."""
        if at.plan:
            plan.seek(at.plan)
        loader = Loader(
            plan,
            {name: self.prepared.sources[name] for name in config.mixture},
            self.prepared.tokenizer,
            self.config.image_in(config),
            self.config.data,
            process_index=self._share.index,
            process_count=self._share.count,
            start_step=at.stage_step,
            quarantine=self.run.quarantine_file if self._share.first else None,
            sequence=self.config.sequence,
            steps_before=self._before(at.stage),
        )
        with loader:
            batches = iter(loader)
            for stage_step in range(at.stage_step + 1, plan.num_steps + 1):
                start = time.perf_counter()
                batch = next(batches)
                end = time.perf_counter()
                if stage_step > at.stage_step + 1:  # the first one is part of starting
                    self.ledger.waited(self._idle.idle(start, end))
                waited = end - start
                step = at.step - at.stage_step + stage_step
                slots = batch.attend.shape[0] * batch.attend.shape[1] * self._share.count
                yield Facts(step, stage_step, self._work(batch), slots, waited), batch

    def _work(self, batch: Batch) -> Callable[[], BatchStats]:
        total = summed(dataclasses.astuple(count_work(batch)), self._share, self.mesh)
        return lambda: BatchStats(*total())

    def _finish(self, number: int, facts: Facts, measured: Measured, metrics: Metrics) -> None:
        """Write the line of a step, and stop the run if the step was bad."""
        config, plan = self.config.stages[number], self.plans[number]
        values = means(jax.device_get(measured))
        # The ledger's last reading was the end of the step before, or of what paused the loop since: a save.
        seconds = self.ledger.spent("step", facts.step)
        bad_run = values.pop("bad_run")
        work = facts.work()
        flops = sum(step_flops(self.definition, work, self._trained[number]).values())
        tokens = work.patches + work.text
        self.totals = {"tokens": self.totals["tokens"] + tokens, "flops": self.totals["flops"] + flops}
        peak = peak_flops(jax.devices()[0].device_kind)
        line = {
            "kind": "train",
            "step": facts.step,
            "stage": config.name,
            "stage_step": facts.stage_step,
            **values,
            "tokens": tokens,
            "visual_tokens": work.patches,
            "targets": work.targets,
            "useful_share": tokens / facts.slots,
            "flops": flops,
            "total_tokens": self.totals["tokens"],
            "total_flops": self.totals["flops"],
            "timing": {
                "step_seconds": seconds,
                "data_wait_seconds": facts.wait_seconds,
                "tokens_per_second": tokens / seconds,
                "mfu": flops / seconds / (peak * jax.device_count()) if peak else None,
            },
        }
        metrics.write(line)
        self.observer.step(line, self.num_steps)
        if not values["applied"]:
            self._quarantine(plan, config, facts, values, bad_run)

    def _plan_line(self, number: int) -> Mapping[str, Any]:
        """What became of a stage's documents before its first step: nothing is cut or left out unsaid."""
        config, plan = self.config.stages[number], self.plans[number]
        return {
            "kind": "plan",
            "step": self._before(number) + 1,
            "stage": config.name,
            "patch_slots": plan.shape.patch_slots,
            "text_slots": plan.shape.text_slots,
            "target_slots": plan.shape.target_slots,
            "sources": {
                name: {"documents": found.documents, "split": found.split, "dropped": dict(found.dropped)}
                for name, found in plan.chunks.items()
            },
        }

    def _quarantine(
        self, plan: StagePlan, config: StageConfig, facts: Facts, values: Mapping[str, Any], skips: int
    ) -> None:
        sources = {name: self.prepared.sources[name] for name in config.mixture}
        records = batch_record_ids(plan, sources, facts.stage_step - 1)
        what = f"step {facts.step} of stage {config.name!r}: loss {values['loss']}, gradient norm {values['grad_norm']}"
        if jax.process_index() == 0:
            append_json_line(
                self.run.quarantine_file,
                {"kind": "bad_step", "step": facts.step, "reason": what, "records": records},
            )
        if self.config.safety.policy == "stop" or skips >= self.config.safety.max_skips:
            raise BadStepError(
                f"{what}. The update was not applied ({skips} in a row); the ids of its {len(records)} documents are in"
                f" {self.run.quarantine_file}. safety.policy=skip goes on over such steps."
            )

    def _plan(self, stage: StageConfig) -> StagePlan:
        indexes = {name: self.prepared.sources[name].index for name in stage.mixture}
        return StagePlan(stage, indexes, self.config.image_in(stage), self.config.data, self.config.seed)

    def _saves_at(self, step: int) -> bool:
        config = self.config.checkpoint
        return step % config.every_steps == 0 or step in config.at_steps

    def _stage(self, number: int) -> Stage:
        config = self.config
        return make_stage(
            self.definition,
            config.stages[number],
            self.plans[number].num_steps,
            config.safety,
            self.mesh,
            config.compiler_options,
        )

    def _before(self, number: int) -> int:
        return sum(plan.num_steps for plan in self.plans[:number])


def count_work(batch: Batch) -> BatchStats:
    """What of a batch (numpy) is useful: slots that hold something, targets, and query-key pairs that are seen."""
    spans = batch.attend[..., 1] - batch.attend[..., 0], batch.attend[..., 3] - batch.attend[..., 2]
    live = (spans[0] + spans[1]) > 0
    num_patches = batch.patches.shape[1]
    return BatchStats(
        patches=int(live[:, :num_patches].sum()),
        text=int(live[:, num_patches:].sum()),
        targets=int((batch.target_weights > 0).sum()),
        pairs=int(spans[0].sum() + spans[1].sum()),
    )
