"""Branches: a run that continues from a checkpoint of another run.

The names of the stages decide how. If the branch has a stage of the same name as the checkpoint's, it continues that
stage: at the checkpoint's step, with its data and optimizer state, and with the branch's own schedule at that step. The
step count of the run continues. A branch with more steps or further stages therefore does what a run of its config
would have done from the beginning.

If the branch has no such stage, its first stage begins at its first step with its own data, like any stage that follows
another one. It takes over the optimizer state if it says `optimizer_state: carry`. The run counts its steps from 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from solo.config import Config, ConfigError, StageConfig, differences, load_config, summary
from solo.data.planning.stage_plan import StagePlan
from solo.model.parameters import ModelDefinition
from solo.training.averages import averaged_paths, carry
from solo.training.checkpoint import Progress, read_state
from solo.training.checkpoint import differences as other_arrays
from solo.training.groups import trainable_paths
from solo.training.lineage import origin
from solo.training.metrics import changed_values
from solo.training.newest import position_of
from solo.training.optimizer import begin_anew, carry_state, update_rules
from solo.training.run_folder import RunFolder
from solo.training.step import Stage, TrainState, make_stage

_SHOWN = 8


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a run branches from.

    config      config of the other run
    checkpoint  the checkpoint's folder
    progress    its position in the other run
    """

    config: Config
    checkpoint: Path
    progress: Progress

    @property
    def stage(self) -> StageConfig:
        """The stage of the other run that the checkpoint belongs to."""
        return self.config.stages[self.progress.stage]

    def continued(self, stages: Iterable[StageConfig]) -> int | None:
        """Returns the number of the stage that continues the checkpoint's, or None."""
        return next((number for number, stage in enumerate(stages) if stage.name == self.stage.name), None)


def find_origin(config: Config, run: RunFolder) -> Origin:
    """Reads what a run branches from, without its arrays. Raises ConfigError if the other run is not there."""
    assert config.branch is not None
    other, checkpoint = RunFolder.existing(config.branch.run, lines=False), origin(config.branch, run)
    return Origin(load_config(other.config_file), checkpoint, Progress(**position_of(checkpoint)))


def check_position(found: Origin, config: Config) -> None:
    """Checks the position of a branch as far as the config determines it: stages may count epochs or tokens.

    Raises:
        ConfigError: the stages are not those of the other run up to the checkpoint.
    """
    number = found.continued(config.stages)
    if number is None:
        return
    steps = [stage.steps for stage in config.stages[: number + 1]]
    known = [each for each in steps if each is not None]
    if len(known) == len(steps):
        _check_position(found, config, number, known)


def _check_position(found: Origin, config: Config, number: int, steps: list[int]) -> None:
    """Raises ConfigError if stage `number` cannot continue at the checkpoint. `steps` are the steps of each stage."""
    was, what = found.progress, f"stage {found.stage.name!r}"
    done = was.stage_step
    before = sum(steps[:number])
    if before != was.step - done:
        raise ConfigError(
            f"cannot branch: {what} begins after step {was.step - done} of {found.config.name}, and after step"
            f" {before} here; keep the stages before it, or give it another name to start it from the beginning"
        )
    if done > steps[number]:
        raise ConfigError(
            f"cannot branch: the checkpoint has done {done} steps of {what}, which has {steps[number]} here; raise"
            f" stages.{number}.steps, or branch from an earlier step"
        )
    if done == steps[number] and number + 1 == len(config.stages):
        raise ConfigError(
            f"cannot branch: all {done} steps of {what}, the last one, are done at step {was.step}; raise"
            f" stages.{number}.steps, append a stage, or branch from an earlier step"
        )


def start_of(found: Origin, config: Config, plans: list[StagePlan]) -> Progress:
    """Returns the position at which a branch begins.

    Raises:
        ConfigError: the stages, or the data of the continued one, are not those of the other run up to there.
    """
    was, number = found.progress, found.continued(config.stages)
    if number is None:
        return Progress(step=0, stage=0, stage_step=0, plan={})
    _check_position(found, config, number, [each.num_steps for each in plans])
    plan, done = plans[number], was.stage_step
    if done < plan.num_steps:
        _check_data(found, config, number, plan)
    return Progress(was.step, number, done, was.plan, was.totals)


def _check_data(found: Origin, config: Config, number: int, plan: StagePlan) -> None:
    """Raises ConfigError if a stage cannot continue with the data that it began with in the other run."""
    stage, was = config.stages[number], found.progress
    advice = (
        f"A stage goes on with the data that it began with. To change its weights from here on, set"
        f" stages.{number}.mixture_changes={{{was.stage_step}: {{SOURCE: WEIGHT}}}}; for other data, end the stage here"
        f" (stages.{number}.steps={was.stage_step}) and append another, or give the stage another name"
    )
    try:
        if was.plan:
            plan.seek(was.plan)
    except ValueError:
        changes = [each for each in differences(found.config, config) if each.decides_at("data")]
        shown = [f"  {line}" for line in summary(changes)[:_SHOWN]] or ["  the prepared data, made of other inputs"]
        raise ConfigError(
            "\n".join(
                [f"cannot branch: the data of stage {stage.name!r} differs from {found.config.name}'s:", *shown, advice]
            )
        ) from None
    before, now = found.stage.mixture_changes, stage.mixture_changes
    if past := [
        step for step in sorted({*before, *now}) if step < was.stage_step and before.get(step) != now.get(step)
    ]:
        raise ConfigError(
            f"cannot branch: stages.{number}.mixture_changes differs from {found.config.name}'s at step {past[0]}, and"
            f" the checkpoint is of step {was.stage_step} of the stage; change the weights from there on"
        )
    learning = stage.mixture_learning
    if learning is not None and ("learned" not in was.plan or was.stage_step == found.stage.steps):
        raise ConfigError(
            f"cannot branch: the mixture of stage {stage.name!r} is learned, and the checkpoint is of the stage's end;"
            " branch from an earlier step"
        )


@dataclass(frozen=True)
class Branched:
    """The beginning of a branch.

    start, state  position and state
    notes         messages for the user: what was kept and what starts fresh
    line          line of `metrics.jsonl`
    """

    start: Progress
    state: TrainState
    notes: list[str]
    line: Mapping[str, Any]


def branch_off(
    found: Origin,
    config: Config,
    definition: ModelDefinition,
    mesh: Mesh,
    plans: list[StagePlan],
    stages: Callable[[int], Stage],
) -> Branched:
    """Reads the checkpoint that a run branches from, and makes the state of the branch from it.

    Args:
        found: the checkpoint.
        config: config of the branch.
        definition: definition of the branch's model.
        mesh: devices of the branch.
        plans: plans of the branch's stages.
        stages: returns the compiled stage with a given number.

    Raises:
        ConfigError: see `start_of`; or the stage trains other parameters and does not say `optimizer_state: carry`.
        CheckpointError: the checkpoint is of another model, or is damaged.
    """
    start = start_of(found, config, plans)
    now = config.stages[start.stage]
    goes_on = found.continued(config.stages) is not None
    before = read_state(found.checkpoint, _as_saved(found, now, definition, mesh))
    stage = stages(start.stage)
    if goes_on and (before.tokens == ()) != (stage.abstract.tokens == ()):
        raise ConfigError(
            f"cannot branch: stage {now.name!r} counts its schedule in tokens in one of {found.config.name} and"
            f" {config.name}, and in steps in the other; keep that, or append a stage"
        )
    optimizer, kept = before.optimizer, list(before.trainable)
    whole = goes_on and not other_arrays(before.optimizer, stage.abstract.optimizer)
    if not whole or before.trainable.keys() != stage.abstract.trainable.keys():
        if goes_on and now.optimizer_state != "carry":
            raise ConfigError(
                f"cannot branch: stage {now.name!r} trains other parameters than in {found.config.name}, or by another"
                " rule, so that each needs a step count of its own: set"
                f" stages.{start.stage}.optimizer_state=carry"
            )
        whole = False
    fresh = stage.start(before.parameters)
    averages = carry(fresh.averages, before.averages)
    if not whole:
        carried = now.optimizer_state == "carry"
        optimizer = carry_state(fresh.optimizer, before.optimizer) if carried else fresh.optimizer
        anew = begin_anew(fresh.optimizer, before.optimizer)
        kept = _kept(found, now, definition, anew) if carried else []
    # Also those that are new count the steps of the run, by which `start_step` and `every_steps` go.
    averages = {name: each._replace(step=jnp.full_like(each.step, start.step)) for name, each in averages.items()}
    if goes_on:
        # The rest are counters of the stage.
        state = before._replace(trainable=fresh.trainable, frozen=fresh.frozen, optimizer=optimizer, averages=averages)
    else:
        state = fresh._replace(optimizer=optimizer, averages=averages)
    return Branched(start, state, *_said(found, config, start, goes_on, kept, before, state))


def _as_saved(found: Origin, now: StageConfig, definition: ModelDefinition, mesh: Mesh) -> TrainState:
    """Returns shapes and shardings of the state in the checkpoint, on the mesh of the branch."""
    # Rows do not matter to the state, and those of the branch fit its mesh.
    stage = found.stage.model_copy(update={"batch_rows": now.batch_rows, "accumulate": now.accumulate})
    was = found.config
    averaged = averaged_paths(was.stages, found.stage, definition.specs) if was.averages else []
    return make_stage(definition, stage, 1, was.safety, mesh, averages=was.averages, averaged=averaged).abstract


def _kept(found: Origin, now: StageConfig, definition: ModelDefinition, anew: set[str]) -> list[str]:
    """Returns the parameters that both stages train by the same rule, except those whose state starts fresh."""
    specs = definition.specs
    rules, rules_now = (update_rules(stage.optimizer, specs) for stage in (found.stage, now))
    both = set(trainable_paths(specs, found.stage)) & set(trainable_paths(specs, now))
    return sorted(path for path in both - anew if rules[path].name == rules_now[path].name)


def _said(
    found: Origin,
    config: Config,
    start: Progress,
    goes_on: bool,
    kept: list[str],
    before: TrainState,
    state: TrainState,
) -> tuple[list[str], dict[str, Any]]:
    """Returns notes for the user, and the line of `metrics.jsonl`."""
    assert config.branch is not None
    stage, source = config.stages[start.stage], f"{config.branch.run}@{config.branch.step}"
    fresh = sorted(set(state.trainable) - set(kept))
    how = f"continues stage {stage.name} after its step {start.stage_step}" if goes_on else f"begins stage {stage.name}"
    notes = [f"{config.name} branches from {source} and {how}"]
    if config.init_from is not None:
        notes.append("init_from is not read: the weights are those of the branch's checkpoint")
    if not kept:
        notes.append("the optimizer state starts fresh")
    elif fresh:
        notes.append(f"the optimizer state is kept, except for {_listed(fresh)}, where it starts fresh")
    if new := sorted(state.averages.keys() - before.averages.keys()):
        notes.append(f"averages that begin with the weights of {source}: {', '.join(new)}")
    if left := sorted(before.averages.keys() - state.averages.keys()):
        notes.append(f"averages of {source} that are not continued: {', '.join(left)}")
    notes += _ended(before, state)
    changes = [
        each for each in differences(found.config, config) if each.key.split(".")[0] not in ("name", "folder", "branch")
    ]
    line = {
        "kind": "branched",
        "step": start.step,
        "run": config.branch.run,
        "from_step": config.branch.step,
        "from_totals": dict(found.progress.totals),
        "stage": stage.name,
        "stage_step": start.stage_step,
        "optimizer_state": {"kept": kept, "fresh": fresh},
        "changes": changed_values(changes),
    }
    return notes, line


def _ended(before: TrainState, state: TrainState) -> list[str]:
    """Returns notes on averages that continue without some parameters, because the branch does not train them."""
    notes = []
    for name in sorted(before.averages.keys() & state.averages.keys()):
        if left := sorted(before.averages[name].weights.keys() - state.averages[name].weights.keys()):
            notes.append(
                f"average {name} ends for {_listed(left)}: the branch does not train them, and their trained weights"
                " are used"
            )
    return notes


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(paths[:_SHOWN]) + more
