"""The training loop: runs the stages one after the other, from the last checkpoint on.

records -> plan -> rows -> batch -> step -> metrics. The order of the data is a pure function of the config and the
step, and a step is a pure function of state and batch: a run that is killed and resumed writes the same metrics.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from solo.batch import Batch
from solo.chips import peak_flops
from solo.config import Config, StageConfig
from solo.data.planning.stage_plan import PlanStatistics, StagePlan
from solo.data.rows.loader import Loader, batch_record_ids
from solo.data.store.prepare import Prepared
from solo.files import append_json_line
from solo.model.flops import BatchStats, batch_stats, step_flops
from solo.model.parameters import ModelDefinition, Parameters, define
from solo.sharding.compiling import compile_lowered, compiler_options
from solo.sharding.hosts import row_share, summed
from solo.sharding.mesh import device_batch, make_mesh, parameter_shardings
from solo.training.checkpoint import Checkpoints, Progress
from solo.training.data_guard import DataGuard
from solo.training.distributed import stop_agreed, wait_for_all
from solo.training.idle import IdleWatch
from solo.training.ledger import Ledger, began_after
from solo.training.losses import Measured, means
from solo.training.metrics import Metrics, MetricsStream, drop_quarantined_after, plan_line
from solo.training.mixture import MixtureLearner, MixtureMeter, changed_weights
from solo.training.observer import Observer
from solo.training.optimizer import carry_state, trainable_paths
from solo.training.program import program_of
from solo.training.run_folder import RunFolder
from solo.training.step import Stage, TrainState, make_stage

_log = logging.getLogger(__name__)


class BadStepError(RuntimeError):
    """The loss was not finite, or jumped, and the config says to stop."""


class Interrupted(Exception):  # noqa: N818 - not a fault
    """SIGTERM was received; the run is saved and can be resumed."""


class StepInfo(NamedTuple):
    """The facts about a step that the hosts know before it is computed.

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


class Trainer:
    """One run of a config.

    Args:
        config: the run.
        prepared: its data.
        run: its folder.
        observer: shows every step.
        mesh: the devices; default: all of them.
        initial: returns the parameters that the run begins with, sharded over the mesh; default: drawn from the seed.
        ledger: records how time is spent.
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
        self.ledger = ledger or Ledger()
        self.plans = [self._plan(stage) for stage in config.stages]
        self.totals = {"tokens": 0, "flops": 0}
        self.notes: list[str] = []
        self._initial = initial or self._draw
        self._share = row_share(self.mesh)
        self._idle = IdleWatch()
        self._trained = [frozenset(trainable_paths(self.definition.specs, stage)) for stage in config.stages]
        self._metrics = Metrics()
        self._guard = DataGuard(config.data.max_unreadable, run.quarantine_file)
        self._meter = MixtureMeter(self.plans)
        self._learner: MixtureLearner | None = None
        self._stages: dict[str, Stage] = {}
        self._compiled: dict[str, Any] = {}

    @property
    def num_steps(self) -> int:
        """Steps of all stages together."""
        return self._steps_before(len(self.plans))

    def train(self) -> None:
        """Runs every stage that is not done yet. `notes` then holds messages for the user.

        Raises:
            Interrupted: after SIGTERM, once the step is finished and saved.
            BadStepError: see `SafetyConfig`.
            DataError: a batch has no target, or too many documents cannot be read.
            ConfigError: the compiler refuses one of the `compiler_options`.
            CheckpointError: a checkpoint could not be read or written.
        """
        with ExitStack() as stack:
            checkpoints = stack.enter_context(closing(Checkpoints(self.run.checkpoints, self.config.checkpoint)))
            start = checkpoints.latest() or Progress(step=0, stage=0, stage_step=0, plan={})
            self._metrics = stack.enter_context(closing(self._open_metrics(start.step)))
            stack.enter_context(closing(self._idle))
            self.totals |= start.totals
            self.ledger.resumed(start.step, self._machine())
            state: TrainState | None = None
            for number in range(start.stage, len(self.plans)):
                if number > start.stage:
                    start = Progress(self._steps_before(number), number, stage_step=0, plan={})
                state = self._run_stage(start, state, checkpoints)
            checkpoints.wait()
            self.ledger.spent("checkpoint")

    def _run_stage(self, start: Progress, state: TrainState | None, checkpoints: Checkpoints) -> TrainState:
        """Trains from `start` to the end of its stage, and saves on the way."""
        stage, plan = self._make_stage(start.stage), self.plans[start.stage]
        if start.stage_step == 0:
            self._metrics.write(plan_line(plan, start.step + 1))
        self._learner = self._continue_plan(start)
        state = self._enter(stage, start, state, checkpoints)
        step: Callable[[TrainState, Batch], tuple[TrainState, Measured]] | None = None
        pending: tuple[StepInfo, Measured] | None = None
        for info, host_batch in self._batches(start):
            batch = device_batch(host_batch, self.mesh, self._share.count)
            step = step or self._compile(start.stage, stage, state, batch)
            state, measured = step(state, batch)
            self._idle.given(measured["loss"])
            if pending:  # the previous step is read while this one runs
                self._finish(*pending)
            pending = info, measured
            stopping = stop_agreed(info.step, self.observer.stop_requested)
            last = info.stage_step == plan.num_steps
            saving = last or stopping or self.config.checkpoint.saves_at(info.step)
            learning = self._learner is not None and self._learner.due(info.stage_step) and not last
            if saving or learning:
                self._finish(*pending)
                pending = None
            if learning:
                self._learn(info)
            if saving:
                snapshot = {} if last else self._snapshot(info)
                self._save(state, Progress(info.step, info.stage, info.stage_step, snapshot, self.totals), checkpoints)
            if stopping:
                checkpoints.wait()
                self.ledger.spent("checkpoint")
                wait_for_all()  # before the first process ends and takes the others with it
                raise Interrupted
        return state

    def _continue_plan(self, start: Progress) -> MixtureLearner | None:
        """Brings a stage's plan to where it starts, and returns what learns its weights, if anything does."""
        plan, learner = self.plans[start.stage], None
        if plan.stage.mixture_learning is not None:
            learner = MixtureLearner(plan.stage.mixture_learning, plan.stage.mixture)
            if "learned" in start.plan:
                learner.restore(start.plan["learned"])
            for step, weights in learner.history.items():
                plan.change_weights(step, weights)
        if start.plan:
            plan.seek(start.plan)
        return learner

    def _learn(self, info: StepInfo) -> None:
        """Updates the weights of the steps that follow. Batches that were read ahead are read again."""
        assert self._learner is not None
        weights = self._learner.update()
        step = self.plans[info.stage].change_weights(info.stage_step, weights)
        self._learner.history[step] = weights

    def _snapshot(self, info: StepInfo) -> dict[str, Any]:
        snapshot = self.plans[info.stage].snapshot(info.stage_step)
        return snapshot if self._learner is None else {**snapshot, "learned": self._learner.state()}

    def _enter(self, stage: Stage, start: Progress, before: TrainState | None, checkpoints: Checkpoints) -> TrainState:
        """Returns the initial state of a stage: restored, drawn, or carried over from the previous stage."""
        if before is None and start.step > 0:
            return checkpoints.restore(start, stage.abstract)
        if before is None:
            return stage.start(self._initial(self.definition, self.mesh))
        state = stage.start(before.parameters)
        if self.config.stages[start.stage].optimizer_state == "carry":
            state = state._replace(optimizer=carry_state(state.optimizer, before.optimizer))
        return state

    def _batches(self, start: Progress) -> Iterator[tuple[StepInfo, Batch]]:
        """Yields this host's numpy batches with their `StepInfo`, from the step after `start` to the stage's end."""
        plan, before = self.plans[start.stage], start.step - start.stage_step
        stage_step = start.stage_step
        while stage_step < plan.num_steps:
            known = len(self._learner.history) if self._learner else 0
            with self._loader(start.stage, stage_step, before) as loader:
                batches = iter(loader)
                # New weights end the loader, which has read ahead.
                while stage_step < plan.num_steps and (not self._learner or known == len(self._learner.history)):
                    asked = time.perf_counter()
                    batch = next(batches)
                    got = time.perf_counter()
                    stage_step += 1
                    if stage_step > start.stage_step + 1:  # the first wait is part of starting
                        self.ledger.waited(self._idle.idle(asked, got))
                    slots = batch.attend.shape[0] * batch.attend.shape[1] * self._share.count
                    planned = plan.statistics(stage_step - 1, stage_step)
                    counts = planned, self._stats(batch), slots
                    yield StepInfo(before + stage_step, start.stage, stage_step, *counts, got - asked), batch

    def _loader(self, number: int, start_step: int, steps_before: int) -> Loader:
        stage = self.config.stages[number]
        return Loader(
            self.plans[number],
            self._sources(stage),
            self.prepared.tokenizer,
            self.config.image_in(stage),
            self.config.data,
            process_index=self._share.index,
            process_count=self._share.count,
            start_step=start_step,
            quarantine=self.run.quarantine_file if self._share.first else None,
            sequence=self.config.sequence,
            steps_before=steps_before,
        )

    def _stats(self, batch: Batch) -> Callable[[], BatchStats]:
        total = summed(dataclasses.astuple(batch_stats(batch)), self._share, self.mesh)
        return lambda: BatchStats(*total())

    def _compile(self, number: int, stage: Stage, state: TrainState, batch: Batch) -> Any:
        """Returns a stage's compiled step; stages of the same program, such as those of a curriculum, share it."""
        self.ledger.spent("start-up")
        key = program_of(self.plans[number])
        if key not in self._compiled:
            self._compiled[key] = compile_lowered(
                stage.step.lower(state, batch), self.mesh, self.config.compiler_options
            )
        self.ledger.spent("compile")
        return self._compiled[key]

    def _finish(self, info: StepInfo, measured: Measured) -> None:
        """Waits for a step, writes its line, and stops the run if the step or its data was bad."""
        where = f"step {info.step} of stage {self.config.stages[info.stage].name!r}"
        self._guard.check(where, info.planned, info.stats())
        measured = jax.device_get(measured)
        if self._learner is not None:
            self._learner.add(measured["loss_by_source"])
        values = means(measured)
        # Since the last reading of the ledger: the end of the previous step, or of a save or a compilation.
        seconds = self.ledger.spent("step", info.step)
        bad_run = values.pop("bad_run")
        if weights := changed_weights(self.plans[info.stage], info.stage_step):
            self._tell_of_weights(info, weights)
        line = self._line(info, values, seconds)
        self._metrics.write(line)
        self.observer.step(line, self.num_steps)
        if not values["applied"]:
            self._quarantine(info, values, bad_run)

    def _tell_of_weights(self, info: StepInfo, weights: Mapping[str, float]) -> None:
        stage = self.config.stages[info.stage]
        line = {"kind": "mixture", "step": info.step, "stage": stage.name, "stage_step": info.stage_step}
        self._metrics.write({**line, "weights": weights})
        if stage.mixture_learning is None:
            shown = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
            self.notes.append(f"stage {stage.name}: from step {info.step} on the weights are {shown}")
            _log.info("%s", self.notes[-1])

    def _line(self, info: StepInfo, values: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Returns the line of a step in `metrics.jsonl`, with device measurements and host counts."""
        stats = info.stats()
        flops = sum(step_flops(self.definition, stats, self._trained[info.stage]).values())
        tokens = stats.patches + stats.text
        summed_up = {"tokens": self.totals["tokens"] + tokens, "flops": self.totals["flops"] + flops}
        self.totals = {**self.totals, **summed_up}
        mixture = self._meter.fields(info.stage, info.planned, self.totals)
        peak = peak_flops(jax.devices()[0].device_kind)
        return {
            "kind": "train",
            "step": info.step,
            "stage": self.config.stages[info.stage].name,
            "stage_step": info.stage_step,
            "loss": values["loss"],
            **values,
            "tokens": tokens,
            "visual_tokens": stats.patches,
            "targets": stats.targets,
            "useful_share": tokens / info.slots,
            **mixture,
            "flops": flops,
            "total_tokens": self.totals["tokens"],
            "total_flops": self.totals["flops"],
            "timing": {
                "step_seconds": seconds,
                "data_wait_seconds": info.wait_seconds,
                "tokens_per_second": tokens / seconds,
                "mfu": flops / seconds / (peak * jax.device_count()) if peak else None,
            },
        }

    def _quarantine(self, info: StepInfo, values: Mapping[str, Any], bad_run: int) -> None:
        """Records the documents of a bad step; stops the run if the config says so."""
        stage = self.config.stages[info.stage]
        records = batch_record_ids(self.plans[info.stage], self._sources(stage), info.stage_step - 1)
        what = f"step {info.step} of stage {stage.name!r}: loss {values['loss']}, gradient norm {values['grad_norm']}"
        if jax.process_index() == 0:
            line = {"kind": "bad_step", "step": info.step, "reason": what, "records": records}
            append_json_line(self.run.quarantine_file, line)
        if self.config.safety.policy == "stop" or bad_run >= self.config.safety.max_skips:
            raise BadStepError(
                f"{what}. The update was not applied ({bad_run} in a row); the ids of the batch's {len(records)}"
                f" documents are in {self.run.quarantine_file}. Set safety.policy=skip to continue after such steps."
            )

    def _save(self, state: TrainState, progress: Progress, checkpoints: Checkpoints) -> None:
        """Stores the metrics, then starts a save, so that no checkpoint is newer than the stored metrics."""
        self._metrics.sync()
        self.ledger.sync()
        checkpoints.save(state, progress)
        self.ledger.spent("checkpoint")

    def _open_metrics(self, resume_step: int) -> Metrics:
        """Cuts the run's files back to the step that it resumes from. Only the first process writes metrics."""
        metrics = Metrics()
        if jax.process_index() == 0:
            damage = drop_quarantined_after(self.run.quarantine_file, resume_step)
            metrics = stream = MetricsStream(self.run, resume_step, began_after(self.run.goodput_file))
            damage += stream.damage
            self.notes += damage
            for text in damage:
                _log.warning("%s", text)
        wait_for_all()  # before another process appends to the quarantine
        return metrics

    def _machine(self) -> dict[str, Any]:
        """Returns a description of the machine for the ledger, because a run may resume on another one."""
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

    def _make_stage(self, number: int) -> Stage:
        config, num_steps = self.config, self.plans[number].num_steps
        stage, key = config.stages[number], program_of(self.plans[number])
        if key not in self._stages:
            self._stages[key] = make_stage(
                self.definition, stage, num_steps, config.safety, self.mesh, config.compiler_options
            )
        return self._stages[key]

    def _plan(self, stage: StageConfig) -> StagePlan:
        indexes = {name: source.index for name, source in self._sources(stage).items()}
        return StagePlan(stage, indexes, self.config.image_in(stage), self.config.data, self.config.seed)

    def _sources(self, stage: StageConfig) -> dict[str, Any]:
        return {name: self.prepared.sources[name] for name in stage.sources}

    def _steps_before(self, number: int) -> int:
        return sum(plan.num_steps for plan in self.plans[:number])
