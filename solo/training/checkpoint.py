"""Checkpoints of a run: Orbax underneath, asynchronous, strict on the way back.

A checkpoint `<run>/checkpoints/<step>` holds `parameters` (path -> array), `optimizer` (the optimizer state and
the counters of the stage), and, as its metadata, the JSON of `Progress`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from solo.config import CheckpointConfig
from solo.files import complete_checkpoints
from solo.model.declare import ParameterSpec
from solo.training.step import TrainState


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read as asked."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands, besides its arrays.

    step     steps done over all stages
    stage    index of the stage that the saved state belongs to
    stage_step   steps done of it
    plan     the planner's snapshot for the next step (see `StagePlan.snapshot`)
    totals   sums over the run so far, by name
    """

    step: int
    stage: int
    stage_step: int
    plan: Mapping[str, Any]
    totals: Mapping[str, int] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one run. Not thread-safe; one save is under way at most."""

    def __init__(self, folder: Path, config: CheckpointConfig):
        # Orbax reports every save through absl's logger; the progress bar says what a user needs.
        logging.getLogger("absl").setLevel(logging.ERROR)
        training = ocp.training
        keep: list[Any] = [training.preservation_policies.LatestN(config.keep_latest)]
        if config.keep_every_steps:
            keep.append(training.preservation_policies.EveryNSteps(config.keep_every_steps))
        if config.at_steps:
            keep.append(training.preservation_policies.CustomSteps(config.at_steps))
        self.folder = folder.absolute()
        self._pending: Any = None
        self._failed = False
        self._orbax = training.Checkpointer(
            self.folder,
            # The loop decides when; every call saves.
            save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=training.preservation_policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=True,
        )

    def latest(self) -> Progress | None:
        """Where the newest complete checkpoint stands, or None."""
        newest = self._orbax.latest
        if newest is None:
            return None
        return Progress(**self._orbax.checkpointables_metadata(newest.step).custom_metadata)

    def save(self, state: TrainState, progress: Progress) -> None:
        """Start saving; returns once the arrays are copied. Raises CheckpointError if this or the last save failed."""
        self.wait()
        tree = {"parameters": state.parameters, "optimizer": _counters(state)}
        try:
            self._pending = self._orbax.save_checkpointables_async(
                progress.step, tree, custom_metadata=dataclasses.asdict(progress)
            )
        except Exception as error:
            raise self._failure(error) from error

    def wait(self) -> None:
        """Wait for the save under way. Raises CheckpointError if it failed."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except Exception as error:
            raise self._failure(error) from error

    def restore(self, progress: Progress, abstract: TrainState) -> TrainState:
        """Load the state of a checkpoint onto `abstract`'s shardings (any mesh).

        Args:
            progress: which checkpoint, as `latest` gave it.
            abstract: a TrainState of `jax.ShapeDtypeStruct` with shardings.

        Raises:
            CheckpointError: parameters or optimizer differ in names or shapes; the message lists the differences.
        """
        wanted = {"parameters": abstract.parameters, "optimizer": _counters(abstract)}
        self._compare(progress.step, wanted)
        loaded = self._orbax.load_checkpointables(progress.step, wanted)
        parameters, rest = loaded["parameters"], loaded["optimizer"]
        return TrainState(
            {path: parameters[path] for path in abstract.trainable},
            {path: parameters[path] for path in abstract.frozen},
            rest["optimizer"],
            rest["health"],
            rest["step"],
        )

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, ascending."""
        return [checkpoint.step for checkpoint in self._orbax.checkpoints]

    def close(self) -> None:
        """Finish what is under way and let go of the folder."""
        try:
            self.wait()
        finally:
            # A save that failed has been reported; Orbax would raise the same once more in its place.
            with contextlib.suppress(Exception) if self._failed else contextlib.nullcontext():
                self._orbax.close()

    def _compare(self, step: int, wanted: Mapping[str, Any]) -> None:
        stored = self._orbax.checkpointables_metadata(step).metadata
        lines = [line for name, tree in wanted.items() for line in differences(stored.get(name, {}), tree)]
        if lines:
            shown = "\n".join(f"  {line}" for line in lines[:20])
            more = f"\n  and {len(lines) - 20} more" if len(lines) > 20 else ""
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)} does not fit this config; nothing was loaded:\n{shown}{more}"
            )

    def _failure(self, error: Exception) -> CheckpointError:
        self._failed = True
        good = self.steps_on_disk()
        kept = f"the last good checkpoint is step {good[-1]}" if good else "there is no good checkpoint yet"
        return CheckpointError(f"could not save to {self.folder}: {str(error).splitlines()[0]}; {kept}")

    def steps_on_disk(self) -> list[int]:
        """Steps whose checkpoint was committed, as the folder shows it."""
        return [int(path.name) for path in complete_checkpoints(self.folder)]


def abstract_parameters(specs: Mapping[str, ParameterSpec], shardings: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays without values, to be restored onto these shardings."""
    return {
        path: jax.ShapeDtypeStruct(spec.shape, spec.abstract().dtype, sharding=shardings[path])
        for path, spec in specs.items()
    }


def differences(stored: Any, wanted: Any) -> list[str]:
    """One line per leaf that is missing, left over, or of another shape or dtype."""

    def leaves(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
        found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
        return {_name(path): (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in found if hasattr(leaf, "shape")}

    old, new = leaves(stored), leaves(wanted)
    lines = [f"missing in the checkpoint: {name} {new[name][0]}" for name in sorted(new.keys() - old.keys())]
    lines += [f"only in the checkpoint: {name} {old[name][0]}" for name in sorted(old.keys() - new.keys())]
    for name in sorted(old.keys() & new.keys()):
        if old[name] != new[name]:
            lines.append(f"{name}: {old[name][1]} {old[name][0]} in the checkpoint, {new[name][1]} {new[name][0]} here")
    return lines


def _name(path: tuple[Any, ...]) -> str:
    parts = (getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))) for key in path)
    return "/".join(str(part) for part in parts)


def _counters(state: TrainState) -> dict[str, Any]:
    return {"optimizer": state.optimizer, "health": state.health, "step": state.step}
