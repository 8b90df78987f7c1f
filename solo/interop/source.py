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
from solo.files import is_complete, resolved
from solo.interop.description import describe_repository
from solo.interop.tensor_rules import ParameterSlice, TensorRule
from solo.interop.weights import StoredParameters
from solo.model.parameters import ModelDefinition, define
from solo.training.checkpoint import CheckpointError, differences
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
    """

    folder: Path
    config: Config
    tokenizer: Tokenizer | None
    definition: ModelDefinition
    run: RunFolder | None = None
    step: int | None = None

    @abstractmethod
    def read(self, slice_: ParameterSlice) -> np.ndarray:
        """Returns the values of a parameter slice, possibly with vocabulary padding."""

    def in_reading_order(self, rules: Sequence[TensorRule]) -> list[TensorRule]:
        """Returns the rules in the order in which `read` is cheapest."""
        return list(rules)

    def close(self) -> None:  # noqa: B027
        """Closes open files."""


class RunSource(Source):
    """A checkpoint of a run. The parameter read last is kept, because its layers are read one after the other."""

    def __init__(self, checkpoint: Path):
        run = RunFolder.existing(checkpoint.parent.parent, lines=False)
        config, tokenizer = load_config(run.config_file), open_tokenizer(run.work)
        definition = define(config, tokenizer.vocab_size)
        super().__init__(checkpoint, config, tokenizer, definition, run, int(checkpoint.name))
        self._last: tuple[str, np.ndarray] | None = None
        stored = ocp.checkpointables_metadata(for_orbax(checkpoint)).metadata["parameters"]
        wanted = {path: spec.abstract() for path, spec in self.definition.specs.items()}
        if lines := differences(stored, wanted):
            raise CheckpointError(
                f"{checkpoint} is not a checkpoint of this run's model:\n" + "\n".join(f"  {line}" for line in lines)
            )

    def read(self, slice_: ParameterSlice) -> np.ndarray:
        """See `Source`."""
        if self._last is None or self._last[0] != slice_.path:
            self._last = None  # frees it before the next parameter is read
            self._last = (slice_.path, self._load(slice_.path))
        values = self._last[1]
        return values if slice_.layer is None else values[slice_.layer]

    def _load(self, path: str) -> np.ndarray:
        spec = self.definition.specs[path]
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context:
            wanted = {"parameters": {path: np.empty(spec.shape, np.float32)}}
            found: Any = ocp.load_checkpointables(for_orbax(self.folder), wanted)
        return np.asarray(found["parameters"][path])

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


def open_source(path: str | Path) -> Source:
    """Opens the model to export.

    Args:
        path: a run's folder (its newest checkpoint), one of its checkpoints (also `RUN@STEP`), or a repository.

    Raises:
        ValueError: it is none of these; LayoutError and TensorFileError among them.
        CheckpointError: the checkpoint does not fit the run's model.
    """
    named, which = parse_reference(path)
    folder = resolved(named)  # the names of a checkpoint and of its parent matter
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected a run, one of its checkpoints, or an imported repository")
    if (folder / "config.json").is_file() and not (folder / "config.yaml").is_file():
        return RepositorySource(folder)
    is_checkpoint = folder.parent.name == "checkpoints"
    run = folder.parent.parent if is_checkpoint else folder
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run} is not a run of solo: it has no config.yaml")
    if is_checkpoint and not is_complete(folder):
        raise ValueError(
            f"{folder} is not a complete checkpoint: it was not written to its end, or its name is not a step"
        )
    return RunSource(folder if is_checkpoint else find_checkpoint(run, which or "latest"))
