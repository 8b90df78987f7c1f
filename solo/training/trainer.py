"""The training loop: runs the stages one after the other, from the last checkpoint on.

records -> plan -> rows -> batch -> step -> metrics. The order of the data is a pure function of the config and the
step, and a step is a pure function of state and batch. So a run that is killed and resumed writes the same metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from typing import Any, NoReturn

import jax
from jax.sharding import Mesh

from solo.batch import Batch
from solo.config import Config
from solo.data.planning.stage_plan import StagePlan
from solo.data.store.prepare import Prepared
from solo.model.parameters import ModelDefinition, Parameters, define
from solo.sharding.compiling import compile_lowered, compiler_options
from solo.sharding.mesh import device_batch, make_mesh, parameter_shardings
from solo.training.activations import activations_of
from solo.training.averages import averaged_paths, carry
from solo.training.best import BestSteps, values_by_step
from solo.training.boards import Board
from solo.training.branching import Branched, Origin, branch_off
from solo.training.bucket_run import Store
from solo.training.checkpoint import Checkpoints, Progress
from solo.training.distributed import from_first, wait_for_all
from solo.training.evaluators import EvaluationStopped, Evaluators, NoEvaluators
from solo.training.facts import machine_text, start_text
from solo.training.feeding import Feeder, StepInfo
from solo.training.idle import IdleWatch
from solo.training.ledger import Ledger, began_after
from solo.training.lineage import release
from solo.training.losses import Measured
from solo.training.metrics import (
    Metrics,
    MetricsStream,
    changed_values,
    drop_quarantined_after,
    plan_line,
    read_metrics,
    resumed_line,
)
from solo.training.observer import Observer
from solo.training.optimizer import carry_state, check_stages
from solo.training.profiler import Profiler
from solo.training.program import program_of
from solo.training.recording import BadStepError, Recorder
from solo.training.run_folder import RunFolder
from solo.training.step import Stage, TrainState, make_stage
from solo.training.stopping import Interrupted, Stop
from solo.training.tensorboard import TensorBoard
from solo.training.wandb_board import WandbBoard

__all__ = ["BadStepError", "Trainer"]


class Trainer:
    """One run of a config.

    Args:
        config: config of the run.
        prepared: the prepared data.
        run: folder of the run.
        observer: shows every step.
        mesh: the devices; default: all of them.
        initial: returns the initial parameters, sharded over the mesh; default: initialised from the seed.
        ledger: records how time is spent.
        evaluators: evaluators of the weights during training; default: none.
        origin: finds the checkpoint of another run that this one branches from; default: the run is not a branch.
        store: stores the files of the run before every save; default: only writes them to disk.
        stop: whether to stop; default: never.

    Attributes:
        notes: messages for the user, once `train` has ended.
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
        evaluators: Evaluators | None = None,
        store: Store | None = None,
        origin: Callable[[], Origin] | None = None,
        stop: Stop | None = None,
    ):
        self.config, self.run, self.observer = config, run, observer
        self.definition = define(config, prepared.tokenizer.vocab_size)
        self.mesh = mesh or make_mesh(config.mesh)
        self.ledger = ledger or Ledger()
        self.notes: list[str] = []
        self._initial = initial or self._draw
        self._evaluators = evaluators or NoEvaluators()
        self._store = store or Store()
        self._best = BestSteps(config, {})
        self._origin = origin
        self._stop = stop or Stop()
        self._idle = IdleWatch()
        check_stages(config.stages, self.definition.specs, config.model)
        self._feeder = Feeder(config, prepared, self.mesh, self.ledger, self._idle, run.quarantine_file, self._stop)
        self._metrics = Metrics()
        self._profiler = Profiler(config.profile, run.profiles, observer.say)
        self._stages: dict[str, Stage] = {}
        self._compiled: dict[str, Any] = {}
        self._activations: dict[str, Any] = {}

    @property
    def plans(self) -> list[StagePlan]:
        """The plan of every stage."""
        return list(self._feeder.plans)

    @property
    def num_steps(self) -> int:
        """Steps of all stages together."""
        return self._feeder.steps_before(len(self._feeder.plans))

    def train(self) -> None:
        """Runs every stage that is not done yet. `notes` then holds messages for the user.

        Raises:
            Interrupted: after SIGTERM, once the last step is finished and saved.
            BadStepError: see `SafetyConfig`.
            DataError: a batch has no target, or too many documents cannot be read.
            ConfigError: the compiler refuses one of the `compiler_options`.
            CheckpointError: a checkpoint could not be read or written.
        """
        with ExitStack() as stack:
            stack.enter_context(self._stop.noted())  # until the last save is complete
            kept = Checkpoints(self.run.checkpoints, self.config.checkpoint, lambda saved: self._best.kept(saved))
            checkpoints = stack.enter_context(closing(kept))
            with self._stop.at_once():
                start, state, branched = self._resume(checkpoints)
            self._stop.check()
            self._metrics = stack.enter_context(closing(self._open_metrics(-1 if branched else start.step)))
            stack.enter_context(closing(self._idle))
            self._best = BestSteps(self.config, self._values_of_best())
            stack.enter_context(closing(self._profiler))
            self.observer.say(machine_text(self.mesh))
            self.observer.say(start_text(self.run.path, start.step, self.num_steps))
            recorder = self._recorder(start)
            stack.callback(lambda: self.notes.extend(recorder.notes))
            self.ledger.resumed(start.step, self._machine(), changed_values(self.run.changes))
            self._take_up_changes(start.step)
            if branched:
                self._keep_branch(branched, checkpoints)
            first = start.stage
            for number in range(first, len(self._feeder.plans)):
                if number > first:
                    start = Progress(self._feeder.steps_before(number), number, stage_step=0, plan={})
                if number > first or state is None:
                    with self._stop.at_once(checkpoints.wait):
                        state = self._enter(number, state)
                state = self._run_stage(start, state, checkpoints, recorder, begins=number == first)
            checkpoints.wait()
            self.ledger.spent("checkpoint")
            self._stop.check()

    def _run_stage(
        self, start: Progress, state: TrainState, checkpoints: Checkpoints, recorder: Recorder, begins: bool
    ) -> TrainState:
        """Trains from `start`, with the given state, to the end of its stage, and saves and evaluates on the way.

        If the run `begins` or resumes here, evaluators that have no result for this step run first.
        """
        feeder, stage = self._feeder, self._make_stage(start.stage)
        if start.stage_step == 0:
            self._metrics.write(plan_line(feeder.plans[start.stage], start.step + 1))
        feeder.start(start)
        if begins and self._evaluators.due(start.step, start.step == self.num_steps):
            self.ledger.spent("start-up")
            if not self._evaluate(state, start.step):
                self._leave(checkpoints)
        profiler = self._profiler
        step: Callable[[TrainState, Batch], tuple[TrainState, Measured]] | None = None
        pending: tuple[StepInfo, Measured] | None = None
        unsaved: StepInfo | None = None  # the last step, until its save begins
        batches = feeder.batches(start)
        self.observer.note("reading the first batch")
        try:
            for info, host_batch in batches:
                batch = device_batch(host_batch, self.mesh, feeder.share.count)
                if step is None:
                    step = self._compile(start.stage, stage, state, batch, checkpoints)
                    info = info._replace(wait_seconds=0.0)  # the wait for the first batch is no part of its step
                activations = self._activations_at(info, state, batch)
                requested, self.observer.profile_requested = self.observer.profile_requested, False
                with profiler.step(info.step, requested):
                    state, measured = step(state, batch)
                measured = {**measured, **activations}
                profiler.done(info.step, measured["loss"])
                self._idle.given(measured["loss"])
                if pending:  # the previous step is read while this one runs
                    recorder.finish(*pending)
                pending, unsaved = (info, measured), info
                stopping = self._stop.agreed()
                ends = info.stage_step == feeder.plans[start.stage].num_steps
                last = info.step == self.num_steps
                evaluating = not stopping and self._evaluators.due(info.step, last)
                saving = ends or stopping or self.config.checkpoint.saves_at(info.step)
                saving = saving or (evaluating and self._best.measured_at(info.step, last))
                learning = feeder.learns_after(info)
                if saving or evaluating or learning:
                    recorder.finish(*pending)
                    pending = None
                if learning:
                    feeder.learn(info)
                if saving:
                    self._save(state, self._position(info, recorder), checkpoints)
                    unsaved = None
                if evaluating and not self._evaluate(state, info.step):
                    stopping = True
                    if not saving:
                        self._save(state, self._position(info, recorder), checkpoints)
                        unsaved = None
                if stopping:
                    self._leave(checkpoints)
        except Interrupted:  # a single process does not wait for a batch any longer
            if unsaved is not None:
                if pending:
                    recorder.finish(*pending)
                self._save(state, self._position(unsaved, recorder), checkpoints)
            raise
        finally:
            batches.close()  # at the latest when the interpreter ends, which would wait for its processes
        return state

    def _evaluate(self, state: TrainState, step: int) -> bool:
        """Runs the evaluators that are due. Returns False if SIGTERM ended them.

        The save of this step, if any, has already begun, so a kill loses no step.
        """
        self.observer.note("evaluating")
        try:
            for line in self._evaluators.run(state.weights, step, step == self.num_steps, self._stop.agreed):
                self._metrics.write(line)
                self._best.add(line)
                self.observer.evaluated(line)
        except EvaluationStopped:
            return False
        finally:
            self.ledger.spent("evaluation")
        return True

    def _values_of_best(self) -> dict[int, float]:
        """Returns the values so far of the metric that decides the best checkpoint."""
        best = self.config.checkpoint.best
        if best is None:
            return {}
        found = from_first(lambda: list(values_by_step(read_metrics(self.run.metrics_file), best).items()))
        return {step: value for step, value in found}

    def _leave(self, checkpoints: Checkpoints) -> NoReturn:
        """Ends the run in all processes, once it is saved."""
        checkpoints.wait()
        self.ledger.spent("checkpoint")
        wait_for_all()  # before the first process ends and takes the others with it
        raise Interrupted

    def _resume(self, checkpoints: Checkpoints) -> tuple[Progress, TrainState | None, Branched | None]:
        """Returns the position and state at which the run begins: its newest intact checkpoint, or step 0.

        A branch without its own checkpoint begins at the other run's; the last value describes that.
        """
        self.observer.note("looking for a checkpoint")
        found = checkpoints.resume(lambda progress: self._make_stage(progress.stage).abstract)
        self._tell(checkpoints.passed_over)
        if found:
            return *found, None
        if self._origin is None:
            return Progress(step=0, stage=0, stage_step=0, plan={}), None, None
        self.observer.note("reading the checkpoint that the run branches from")
        branched = branch_off(
            self._origin(), self.config, self.definition, self.mesh, list(self._feeder.plans), self._make_stage
        )
        return branched.start, branched.state, branched

    def _keep_branch(self, branched: Branched, checkpoints: Checkpoints) -> None:
        """Records where the run branches from, and saves its first checkpoint, so the other run is no longer needed."""
        self._tell(branched.notes)
        self._metrics.write(branched.line)
        self._save(branched.state, branched.start, checkpoints)
        checkpoints.wait()
        self.ledger.spent("checkpoint")
        if jax.process_index() == 0:
            release(self.run)

    def _enter(self, number: int, before: TrainState | None) -> TrainState:
        """Returns the initial state of a stage: newly initialised, or carried over from the previous stage."""
        stage = self._make_stage(number)
        if before is None:
            self.observer.note("creating the parameters")
            return stage.start(self._initial(self.definition, self.mesh))
        state = stage.start(before.parameters)
        state = state._replace(averages=carry(state.averages, before.averages))
        if self.config.stages[number].optimizer_state == "carry":
            state = state._replace(optimizer=carry_state(state.optimizer, before.optimizer))
        return state

    def _make_stage(self, number: int) -> Stage:
        config, plan, key = self.config, self._feeder.plans[number], self._program(number)
        if key not in self._stages:
            self._stages[key] = make_stage(
                self.definition,
                plan.stage,
                plan.num_steps,
                config.safety,
                self.mesh,
                config.compiler_options,
                config.averages,
                self._averaged(number),
                config.watch.norms_every_steps,
            )
        return self._stages[key]

    def _averaged(self, number: int) -> list[str]:
        """Returns the paths that averages hold in a stage."""
        stages = self.config.stages
        return averaged_paths(stages, stages[number], self.definition.specs) if self.config.averages else []

    def _program(self, number: int) -> str:
        """Returns a text that is equal for stages of equal programs."""
        return " ".join([program_of(self._feeder.plans[number]), *self._averaged(number)])

    def _compile(self, number: int, stage: Stage, state: TrainState, batch: Batch, checkpoints: Checkpoints) -> Any:
        """Returns a stage's compiled step; stages of the same program, such as those of a curriculum, share it."""
        self.ledger.spent("start-up")
        self.observer.note(f"compiling stage {self.config.stages[number].name}")
        key = self._program(number)
        if key not in self._compiled:
            with self._stop.at_once(checkpoints.wait):
                options = self.config.compiler_options
                self._compiled[key] = compile_lowered(stage.step.lower(state, batch), self.mesh, options)
                if self.config.watch.activations_every_steps is not None:
                    measure = activations_of(self.definition, self.config.stages[number], self.mesh, options)
                    lowered = measure.lower(state.parameters, batch)
                    self._activations[key] = compile_lowered(lowered, self.mesh, options)
        self.ledger.spent("compile")
        self.observer.note("running the first step")
        return self._compiled[key]

    def _activations_at(self, info: StepInfo, state: TrainState, batch: Batch) -> dict[str, Any]:
        """Returns the activations of a step, before its update, if they are due."""
        every = self.config.watch.activations_every_steps
        if every is None or info.stage_step % every:
            return {}
        return {"activations": self._activations[self._program(info.stage)](state.parameters, batch)}

    def _position(self, info: StepInfo, recorder: Recorder) -> Progress:
        return Progress(info.step, info.stage, info.stage_step, self._feeder.snapshot(info), recorder.totals)

    def _save(self, state: TrainState, progress: Progress, checkpoints: Checkpoints) -> None:
        """Stores the metrics, then starts a save, so that no checkpoint is newer than the stored metrics."""
        self.observer.note(f"saving step {progress.step}")
        self._metrics.sync()
        self.ledger.sync()
        self._store.store()
        checkpoints.save(state, progress)
        self.ledger.spent("checkpoint")

    def _take_up_changes(self, step: int) -> None:
        """Records the changed keys of a resumed run in the metrics, then in its config, so a kill loses neither."""
        if self.run.changes:
            self._metrics.write(resumed_line(step, self.run.changes, self._machine()))
            self._metrics.sync()
            self.run.take_up(self.config)

    def _recorder(self, start: Progress) -> Recorder:
        common = self._feeder, self.run, self._metrics, self.observer, self.ledger
        return Recorder(self.config, self.definition, *common, start.totals)

    def _open_metrics(self, resume_step: int) -> Metrics:
        """Truncates the run's files to the step that it resumes from. Only the first process writes metrics."""
        metrics = Metrics()
        if jax.process_index() == 0:
            self._tell(drop_quarantined_after(self.run.quarantine_file, resume_step))
            began, boards = began_after(self.run.goodput_file), self._boards()
            metrics = MetricsStream(self.run, resume_step, began, boards, lambda text: self._tell([text]))
        wait_for_all()  # before another process appends to the quarantine
        return metrics

    def _boards(self) -> list[Board]:
        boards: list[Board] = [TensorBoard(self.run.tensorboard, self._evaluators.pictures)]
        if self.config.watch.wandb is not None:
            boards.append(WandbBoard(self.run, self.config, self.config.watch.wandb))
        return boards

    def _tell(self, notes: Iterable[str]) -> None:
        """Shows a message immediately, because a failed attempt returns no notes, and again at the end."""
        for text in notes:
            self.notes.append(text)
            self.observer.warn(text)

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
