"""The source of an export: a run's checkpoint or a repository, read one parameter at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from orbax.checkpoint import v1 as ocp

from solo.config import Config, load_config
from solo.data.text import Tokenizer, open_tokenizer
from solo.files import complete_checkpoints, is_complete, resolved
from solo.interop.config_json import is_repository
from solo.interop.description import describe_repository
from solo.interop.tensor_rules import ParameterSlice, TensorRule
from solo.interop.weights import StoredParameters
from solo.model.parameters import ModelDefinition, define
from solo.training.checkpoint import (
    CheckpointError,
    DamagedError,
    differences,
    items_of,
    read_items,
    unreadable_error,
)
from solo.training.evaluators import TRAINED
from solo.training.newest import fault
from solo.training.orbax_paths import for_orbax
from solo.training.reference import find_checkpoint, parse_reference
from solo.training.run_folder import RunFolder


@dataclass
class Source(ABC):
    """A model on disk.

    Attributes:
        folder: the checkpoint or the repository.
        config: config of the run, or the config that the repository describes.
        tokenizer: None if a repository has none.
        definition: the network. Its vocabulary has the published rows.
        run: the run's folder, if this is a checkpoint.
        step: step of the checkpoint.
        weights: the name of its weights: `trained`, or an average that was kept in training.
        averaged: steps of the checkpoints whose mean this is; empty if it is one checkpoint.
    """

    folder: Path
    config: Config
    tokenizer: Tokenizer | None
    definition: ModelDefinition
    run: RunFolder | None = None
    step: int | None = None
    weights: str = TRAINED
    averaged: tuple[int, ...] = ()

    @abstractmethod
    def read(self, slice_: ParameterSlice) -> np.ndarray:
        """Returns the values of a parameter slice, possibly with vocabulary padding."""

    def in_reading_order(self, rules: Sequence[TensorRule]) -> list[TensorRule]:
        """Returns the rules in the order in which `read` is cheapest."""
        return list(rules)

    def close(self) -> None:  # noqa: B027
        """Closes open files."""


class RunSource(Source):
    """A checkpoint of a run, or the mean of several.

    The last parameter is cached, because its layers are read one after the other. A mean is summed in float64, so a
    parameter takes 12 bytes per element.

    Args:
        checkpoint: the checkpoint, or the newest of several.
        weights: `trained`, or the name of an average that was kept in training.
        earlier: the other checkpoints of a mean.

    Raises:
        CheckpointError: a checkpoint is of another model, or is damaged.
        ValueError: a checkpoint has no such weights.
    """

    def __init__(self, checkpoint: Path, weights: str = TRAINED, earlier: Sequence[Path] = ()):
        run = RunFolder.existing(checkpoint.parent.parent, lines=False)
        config, tokenizer = load_config(run.config_file), open_tokenizer(run.work)
        definition = define(config, tokenizer.vocab_size)
        self._folders = [*earlier, checkpoint]
        steps = tuple(int(folder.name) for folder in self._folders) if earlier else ()
        super().__init__(checkpoint, config, tokenizer, definition, run, int(checkpoint.name), weights, steps)
        self._last: tuple[str, np.ndarray] | None = None
        self._stored = [self._checked(folder) for folder in self._folders]

    def _checked(self, checkpoint: Path) -> dict[str, Any]:
        """Returns a checkpoint's metadata by item."""
        if found := fault(checkpoint):
            raise DamagedError(f"checkpoint {checkpoint} is damaged: {found}")
        stored = ocp.checkpointables_metadata(for_orbax(checkpoint)).metadata
        wanted = {path: spec.abstract() for path, spec in self.definition.specs.items()}
        if lines := differences(stored["parameters"], wanted):
            raise CheckpointError(
                f"{checkpoint} is not a checkpoint of this run's model:\n" + "\n".join(f"  {line}" for line in lines)
            )
        items_of(wanted, stored, self.weights)  # raises if it has no such weights
        return stored

    def read(self, slice_: ParameterSlice) -> np.ndarray:
        """See `Source`."""
        if self._last is None or self._last[0] != slice_.path:
            self._last = None  # frees it before the next parameter is read
            self._last = (slice_.path, self._load(slice_.path))
        values = self._last[1]
        return values if slice_.layer is None else values[slice_.layer]

    def _load(self, path: str) -> np.ndarray:
        if not self.averaged:
            return self._load_from(path, 0)
        total = np.zeros(self.definition.specs[path].shape, np.float64)
        for number in range(len(self._folders)):
            total += self._load_from(path, number)
        total /= len(self._folders)
        return total.astype(np.float32)

    def _load_from(self, path: str, number: int) -> np.ndarray:
        wanted = {path: np.empty(self.definition.specs[path].shape, np.float32)}
        try:
            found = read_items(self._folders[number], items_of(wanted, self._stored[number], self.weights))
        except Exception as error:
            raise unreadable_error(self._folders[number], error) from error
        return np.asarray(found[path])

    def in_reading_order(self, rules: Sequence[TensorRule]) -> list[TensorRule]:
        """Orders rules by parameter instead of by layer, so that each parameter is read once."""
        places: dict[str, int] = {}
        for rule in rules:
            places.setdefault(rule.slices[0].path, len(places))
        return sorted(rules, key=lambda rule: places[rule.slices[0].path])


class RepositorySource(Source):
    """A repository of a layout with images, such as `solo import` writes."""

    def __init__(self, folder: Path):
        layout, config, tokenizer = describe_repository(folder)
        if not layout.has_images:
            raise ValueError(
                f"{folder} is a text model ({layout.name}); `solo import` upcycles it to one that reads images"
            )
        super().__init__(folder, config, tokenizer, define(config, tokenizer.vocab_size if tokenizer else None))
        self._stored = StoredParameters(folder, layout, self.definition)

    def read(self, slice_: ParameterSlice) -> np.ndarray:
        """See `Source`."""
        return self._stored.read(slice_)

    def close(self) -> None:
        """See `Source`."""
        self._stored.reader.close()


def open_source(path: str | Path, weights: str = TRAINED, average: int | Sequence[int] | None = None) -> Source:
    """Opens the model to export.

    Args:
        path: a run's folder (its newest checkpoint), one of its checkpoints (also `RUN@STEP`), or a repository.
        weights: for a run, `trained` or the name of an average.
        average: for a run, use the mean of this many of the newest checkpoints, or of the checkpoints of these steps.

    Raises:
        ValueError: it is none of these, or has no such weights or checkpoints; also as LayoutError or TensorFileError.
        CheckpointError: the checkpoint does not fit the run's model.
    """
    named, which = parse_reference(path)
    folder = resolved(named)  # the names of a checkpoint and of its parent matter
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected a run, one of its checkpoints, or an imported repository")
    if is_repository(folder):
        if weights != TRAINED or average is not None:
            raise ValueError(
                f"{folder} is a repository, which has one set of weights: --weights and --average need a run"
            )
        return RepositorySource(folder)
    is_checkpoint = folder.parent.name == "checkpoints"
    run = folder.parent.parent if is_checkpoint else folder
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run} is not a run of solo: it has no config.yaml")
    if is_checkpoint and not is_complete(folder):
        raise ValueError(f"{folder} is not a complete checkpoint: its save was interrupted, or its name is not a step")
    if average is None:
        return RunSource(folder if is_checkpoint else find_checkpoint(run, which or "latest"), weights)
    if is_checkpoint or which is not None:
        raise ValueError(f"--average chooses checkpoints itself: give the run's folder, {run}")
    *earlier, newest = _to_average(RunFolder(run), average)
    return RunSource(newest, weights, earlier)


def _to_average(run: RunFolder, average: int | Sequence[int]) -> list[Path]:
    """Returns the checkpoints of a mean, by step. Raises ValueError if they are not there."""
    complete = {int(path.name): path for path in complete_checkpoints(run.checkpoints)}
    there = f"{run.path} has {len(complete)} complete checkpoints: {', '.join(map(str, complete))}"
    if isinstance(average, int):
        if average < 2:
            raise ValueError("a mean needs two checkpoints or more: --average 2, or steps such as --average 900,1000")
        if average > len(complete):
            raise ValueError(
                f"cannot average {average} checkpoints: {there}. A run keeps more with checkpoint.keep_latest or"
                " keep_every_steps"
            )
        return list(complete.values())[-average:]
    if missing := [step for step in average if step not in complete]:
        raise ValueError(f"cannot average the checkpoints of steps {', '.join(map(str, missing))}: {there}")
    if len(set(average)) < len(average):
        raise ValueError("--average: a step is named twice")
    return [complete[step] for step in sorted(average)]
