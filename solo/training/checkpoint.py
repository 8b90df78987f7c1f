"""Checkpoints of a run, saved asynchronously by Orbax and restored strictly.

A checkpoint `<run>/checkpoints/<step>` holds `parameters` (path -> array), `optimizer` (the optimizer state and the
stage's counters) and, if the run has averages of its weights, `averages` (name -> `Average`). Its metadata is the JSON
of `Progress`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from solo.config import CheckpointConfig
from solo.files import complete_checkpoints, is_remote
from solo.model.declare import ParameterSpec
from solo.model.parameters import Parameters
from solo.statuses import TransientError
from solo.training.averages import Average
from solo.training.distributed import RESTORE_SECONDS, first_text, from_first
from solo.training.evaluators import TRAINED
from solo.training.newest import newest_whole, position_of, record_sizes, set_aside
from solo.training.orbax_paths import for_orbax, reading_context, saving_context
from solo.training.schedule import TokenCount
from solo.training.step import TrainState

# Texts of TensorStore's errors for failures of a bucket, which do not mean that its content is damaged.
_BUCKET_FAILS = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read."""


class BucketFailsError(CheckpointError, TransientError):
    """A bucket temporarily cannot store or return a checkpoint."""


class DamagedError(CheckpointError):
    """Files of a checkpoint are missing or damaged."""


@dataclass(frozen=True)
class Progress:
    """The position of a run: everything needed to resume it, except its arrays.

    step        steps done in all stages
    stage       index of the stage that the saved state belongs to
    stage_step  steps done in that stage
    plan        the plan's snapshot for the next step (`StagePlan.snapshot`)
    totals      sums over the run so far, by name
    """

    step: int
    stage: int
    stage_step: int
    plan: Mapping[str, Any]
    totals: Mapping[str, int] = field(default_factory=dict)


class _Chosen:
    """Makes Orbax keep the steps that `kept` selects from the saved ones."""

    def __init__(self, kept: Callable[[Collection[int]], Collection[int]]):
        self._kept = kept

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """See `PreservationPolicy` of Orbax."""
        kept = self._kept([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints of one run, local or not. At most one save is in progress. Not thread-safe.

    Args:
        folder: folder of the checkpoints.
        config: which checkpoints are kept.
        kept: selects further steps to keep from the saved ones; the same in all processes.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        kept: Callable[[Collection[int]], Collection[int]] = lambda saved: (),
    ):
        # Orbax logs every save through absl.
        logging.getLogger("absl").setLevel(logging.ERROR)
        training = ocp.training
        keep: list[Any] = [training.preservation_policies.LatestN(config.keep_latest)]
        if config.keep_every_steps:
            keep.append(training.preservation_policies.EveryNSteps(config.keep_every_steps))
        if config.at_steps:
            keep.append(training.preservation_policies.CustomSteps(config.at_steps))
        keep.append(_Chosen(kept))
        self.folder = for_orbax(folder)
        self.passed_over: list[str] = []  # messages about damaged checkpoints
        self._pending: Any = None  # (step, Orbax's response) of a save in progress
        self._failed = False
        context, in_place = saving_context(folder)
        with _opening(self.folder):
            self._orbax = training.Checkpointer(
                self.folder,
                context=context,
                # Every call saves: the trainer decides when.
                save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=training.preservation_policies.AnyPreservationPolicy(keep),
                # When saving in place, every incomplete folder counts as temporary, even if a user put it there.
                cleanup_tmp_directories=not in_place,
            )
        # Orbax would tell JAX the step of every save, which is not the number of a call to `stop_agreed`. After a
        # SIGTERM, the processes would then wait for a call that they have already passed, and never stop.
        self._orbax._manager.reached_preemption = lambda step: False

    def resume(self, abstract: Callable[[Progress], TrainState]) -> tuple[Progress, TrainState] | None:
        """Restores the newest intact checkpoint, the same one in all processes.

        Damaged checkpoints are skipped and renamed, and `passed_over` gives the reasons.

        Args:
            abstract: returns a TrainState of `jax.ShapeDtypeStruct` with shardings for a position.

        Returns:
            The position and the state, or None if there is no checkpoint.

        Raises:
            CheckpointError: the newest intact checkpoint does not match `abstract`, or all of them are damaged.
        """
        while True:
            told = from_first(self._newest)
            self.passed_over += told["passed"]
            self._orbax.reload()  # it does not notice that folders were renamed
            if told["position"] is None:
                if self.passed_over:
                    raise CheckpointError(
                        "no checkpoint of this run can be read, so nothing was trained:\n"
                        + "\n".join(f"  {line}" for line in self.passed_over)
                        + f"\nrestore one of them, or remove {self.folder} to start from the beginning"
                    )
                return None
            progress, damage, state = Progress(**told["position"]), "", None
            try:
                state = self.restore(progress, abstract(progress))
            except DamagedError as error:
                damage = str(error)
            damage = first_text(damage, RESTORE_SECONDS)
            if not damage:
                assert state is not None
                return progress, state
            self.passed_over.append(f"{damage}{from_first(partial(self._set_aside, progress.step))}")

    def _newest(self) -> dict[str, Any]:
        """Chooses the newest intact checkpoint, in process 0. Newer, damaged ones are renamed."""
        newest, passed = newest_whole(self.folder)
        step = -1 if newest is None else int(newest.name)
        damaged = [path for path in complete_checkpoints(self.folder) if int(path.name) > step]
        notes = [text + self._set_aside(int(path.name)) for text, path in zip(passed, reversed(damaged), strict=True)]
        return {"position": None if newest is None else position_of(newest), "passed": notes}

    def _set_aside(self, step: int) -> str:
        aside = set_aside(self.folder / str(step))
        return "" if aside is None else f"; it was renamed to {aside.name}"

    def save(self, state: TrainState, progress: Progress) -> None:
        """Starts a save; returns once the arrays are copied. Raises CheckpointError if it, or the last save, fails."""
        self.wait()
        tree = _items(state)
        try:
            pending = self._orbax.save_checkpointables_async(
                progress.step, tree, custom_metadata=dataclasses.asdict(progress)
            )
        except Exception as error:
            raise self._failure(error) from error
        self._pending = progress.step, pending

    def wait(self) -> None:
        """Waits for the save in progress. Raises CheckpointError if it fails."""
        if self._pending is None:
            return
        (step, pending), self._pending = self._pending, None
        try:
            pending.result()
        except Exception as error:
            raise self._failure(error) from error
        if jax.process_index() == 0:
            record_sizes(self.folder / str(step))

    def restore(self, progress: Progress, abstract: TrainState) -> TrainState:
        """Restores a checkpoint onto the shardings of `abstract`, on any mesh.

        Args:
            progress: the checkpoint's position, as returned by `latest`.
            abstract: a TrainState of `jax.ShapeDtypeStruct` with shardings.

        Raises:
            CheckpointError: names or shapes of the parameters or the optimizer state differ; the message lists them.
            DamagedError: files of it are missing or damaged.
        """
        wanted = _items(abstract)
        self._compare(progress.step, wanted)
        try:
            with reading_context():
                loaded: Any = ocp.load_checkpointables(self.folder / str(progress.step), wanted)
        except Exception as error:
            raise unreadable_error(self.folder / str(progress.step), error) from error
        return _state(loaded, abstract)

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, ascending."""
        return [int(path.name) for path in complete_checkpoints(self.folder)]

    def close(self) -> None:
        """Waits for the save in progress and closes Orbax."""
        try:
            self.wait()
        finally:
            # A failed save has been reported already; Orbax would raise its error again.
            with contextlib.suppress(Exception) if self._failed else contextlib.nullcontext():
                self._orbax.close()

    def _compare(self, step: int, wanted: Mapping[str, Any]) -> None:
        try:
            stored = self._orbax.checkpointables_metadata(step).metadata
        except Exception as error:
            raise DamagedError(unreadable(self.folder / str(step), error)) from error
        _check_items(self.folder / str(step), stored, wanted)

    def _failure(self, error: Exception) -> CheckpointError:
        self._failed = True
        text = f"could not save to {self.folder}: {(str(error) or type(error).__name__).splitlines()[0]}"
        try:
            good = complete_checkpoints(self.folder)
        except OSError:  # its bucket cannot be reached
            return BucketFailsError(text)
        kept = f"the last good checkpoint is step {good[-1].name}" if good else "there is no good checkpoint yet"
        fails = is_remote(self.folder) and any(word in str(error) for word in _BUCKET_FAILS)
        return (BucketFailsError if fails else CheckpointError)(f"{text}; {kept}")


@contextlib.contextmanager
def _opening(folder: Path) -> Iterator[None]:
    """Explains the missing permission if Orbax may not read a bucket's metadata."""
    try:
        yield
    except Exception as error:
        if not is_remote(folder):
            raise
        cause = str(error).splitlines()[0][:300]
        advice = ""
        if "storage.buckets.get" in str(error):
            advice = "; Orbax also needs the permission storage.buckets.get, as in roles/storage.legacyBucketReader"
        raise CheckpointError(f"checkpoints cannot be kept in {folder}: {cause}{advice}") from error


def unreadable_error(checkpoint: Path, error: Exception) -> CheckpointError:
    """Returns the error for a checkpoint that cannot be read: it is damaged, or its bucket fails."""
    text = unreadable(checkpoint, error)
    if is_remote(checkpoint) and any(word in str(error) for word in _BUCKET_FAILS):
        return BucketFailsError(text.replace(": files of it are missing or damaged", ": its bucket fails"))
    return DamagedError(text)


def unreadable(checkpoint: Path, error: Exception) -> str:
    """Returns the error for a checkpoint of which a file is missing or truncated."""
    cause = next((line for line in str(error).splitlines() if line.strip()), "")[:200]
    what = f"checkpoint {checkpoint} cannot be read: files of it are missing or damaged"
    return f"{what} ({type(error).__name__}: {cause})"


def abstract_parameters(specs: Mapping[str, ParameterSpec], shardings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns shape, dtype and sharding of every parameter, to restore a checkpoint onto."""
    return {
        path: jax.ShapeDtypeStruct(spec.shape, spec.abstract().dtype, sharding=shardings[path])
        for path, spec in specs.items()
    }


def items_of(specs: Mapping[str, Any], stored: Mapping[str, Any], weights: str) -> dict[str, Any]:
    """Returns the items of a checkpoint that hold some of its weights.

    Args:
        specs: path -> any value, for every requested parameter.
        stored: the checkpoint's metadata, by item.
        weights: `trained`, or the name of an average, which holds the parameters that were trained.

    Returns:
        The values of `specs` in the tree of the checkpoint.

    Raises:
        ValueError: the checkpoint has no such weights.
    """
    if weights == TRAINED:
        return {"parameters": dict(specs)}
    averages = stored.get("averages") or {}
    if weights not in averages:
        raise ValueError(f"there are no weights {weights!r} here; there are {', '.join([TRAINED, *sorted(averages)])}")
    means = {path: spec for path, spec in specs.items() if path in averages[weights]["weights"]}
    plain = {path: spec for path, spec in specs.items() if path not in means}
    found = {"parameters": plain, "averages": {weights: {"weights": means}}}
    return {item: tree for item, tree in found.items() if (plain if item == "parameters" else means)}


def read_items(checkpoint: Path, wanted: Mapping[str, Any]) -> Parameters:
    """Reads parameters of a checkpoint; `wanted` is what `items_of` returns, with arrays to restore onto."""
    context = reading_context()
    context.pytree.loading.partial_load = True
    with context:
        found: Any = ocp.load_checkpointables(for_orbax(checkpoint), dict(wanted))
    means = [average["weights"] for average in found.get("averages", {}).values()]
    return dict(sorted({**found.get("parameters", {}), **(means[0] if means else {})}.items()))


def _check_items(checkpoint: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises CheckpointError if a checkpoint lacks a requested item; `stored` is its metadata."""
    if empty := [name for name in wanted if not stored.get(name)]:  # what Orbax returns if it cannot read an item
        raise DamagedError(unreadable(checkpoint, ValueError(f"{', '.join(empty)} cannot be read")))
    lines = [line for name, tree in wanted.items() for line in differences(stored.get(name, {}), tree)]
    if lines:
        shown = "\n".join(f"  {line}" for line in lines[:20])
        more = f"\n  and {len(lines) - 20} more" if len(lines) > 20 else ""
        raise CheckpointError(
            f"checkpoint {checkpoint} does not match this config; nothing was restored:\n{shown}{more}"
        )


def read_state(checkpoint: Path, abstract: TrainState) -> TrainState:
    """Reads a checkpoint of another run without writing to its folder. See `Checkpoints.restore`."""
    wanted, place = _items(abstract), for_orbax(checkpoint)
    try:
        stored = ocp.checkpointables_metadata(place).metadata
    except Exception as error:
        raise unreadable_error(checkpoint, error) from error
    _check_items(checkpoint, stored, wanted)
    try:
        with reading_context():
            loaded: Any = ocp.load_checkpointables(place, wanted)
    except Exception as error:
        raise unreadable_error(checkpoint, error) from error
    return _state(loaded, abstract)


def _state(loaded: Mapping[str, Any], abstract: TrainState) -> TrainState:
    """Returns the state whose items were loaded."""
    parameters, rest = loaded["parameters"], loaded["optimizer"]
    return TrainState(
        {path: parameters[path] for path in abstract.trainable},
        {path: parameters[path] for path in abstract.frozen},
        rest["optimizer"],
        rest["health"],
        rest["step"],
        averages={name: Average(**average) for name, average in loaded.get("averages", {}).items()},
        tokens=TokenCount(*rest["tokens"]) if "tokens" in rest else (),
    )


def differences(stored: Any, wanted: Any) -> list[str]:
    """Returns a line for each leaf that is missing or unexpected, or has another shape or dtype."""

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


def _items(state: TrainState) -> dict[str, Any]:
    """Returns the content of a checkpoint by name."""
    items = {"parameters": state.parameters, "optimizer": _counters(state)}
    if state.averages:
        items["averages"] = {name: average._asdict() for name, average in state.averages.items()}
    return items


def _counters(state: TrainState) -> dict[str, Any]:
    counted = {"tokens": state.tokens} if state.tokens else {}
    return {"optimizer": state.optimizer, "health": state.health, "step": state.step, **counted}
