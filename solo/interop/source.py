"""What is exported: a run's checkpoint, or a repository in our own layout, read one parameter at a time."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from orbax.checkpoint import v1 as ocp

from solo.config import Config, load_config
from solo.data.text import Tokenizer, open_tokenizer
from solo.inference.monolith import newest_checkpoint
from solo.interop.layout import Part, TensorRule
from solo.interop.tensor_files import TensorReader
from solo.interop.weights import matched
from solo.loading import describe_repository
from solo.model.parameters import ModelDefinition, define
from solo.training.checkpoint import CheckpointError, differences
from solo.training.run import RunFolder


@dataclass
class Source(ABC):
    """A model on disk.

    folder      the run's checkpoint, or the repository
    config      of the run, or what the repository says
    tokenizer   None where a repository has none
    definition  everything about the network but its values; its vocabulary has the published rows
    """

    folder: Path
    config: Config
    tokenizer: Tokenizer | None
    definition: ModelDefinition

    @abstractmethod
    def read(self, part: Part) -> np.ndarray:
        """The values of a parameter, or of one layer of it; vocabulary padding may be on."""

    def in_reading_order(self, rules: Sequence[TensorRule]) -> list[TensorRule]:
        """The rules in the order in which `read` is cheapest."""
        return list(rules)

    @property
    def run(self) -> RunFolder | None:
        """The run's folder, if it is one."""
        return None

    @property
    def step(self) -> int | None:
        """Of the checkpoint."""
        return None

    def close(self) -> None:  # noqa: B027
        """Let go of files, where any are open."""


class RunSource(Source):
    """A checkpoint of a run. The parameter read last is kept: its layers are wanted one after the other."""

    def __init__(self, checkpoint: Path):
        run = RunFolder(checkpoint.parent.parent)
        config = load_config(run.config_file)
        tokenizer = open_tokenizer(run.path)
        super().__init__(checkpoint, config, tokenizer, define(config, tokenizer.vocab_size))
        self._last: tuple[str, np.ndarray] | None = None
        stored = ocp.checkpointables_metadata(checkpoint.absolute()).metadata["parameters"]
        wanted = {path: spec.abstract() for path, spec in self.definition.specs.items()}
        if lines := differences(stored, wanted):
            raise CheckpointError(
                f"{checkpoint} is not of this run's model:\n" + "\n".join(f"  {line}" for line in lines)
            )

    def read(self, part: Part) -> np.ndarray:
        """See `Source`."""
        if self._last is None or self._last[0] != part.path:
            self._last = None  # before the next is read: two would not fit
            self._last = (part.path, self._load(part.path))
        values = self._last[1]
        return values if part.layer is None else values[part.layer]

    def _load(self, path: str) -> np.ndarray:
        spec = self.definition.specs[path]
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context:
            wanted = {"parameters": {path: np.empty(spec.shape, np.float32)}}
            found: Any = ocp.load_checkpointables(self.folder.absolute(), wanted)
        return np.asarray(found["parameters"][path])

    def in_reading_order(self, rules: Sequence[TensorRule]) -> list[TensorRule]:
        """Parameter by parameter, and not layer by layer: each is read once."""
        places: dict[str, int] = {}
        for rule in rules:
            places.setdefault(rule.parts[0].path, len(places))
        return sorted(rules, key=lambda rule: places[rule.parts[0].path])

    @property
    def run(self) -> RunFolder:
        """The run's folder."""
        return RunFolder(self.folder.parent.parent)

    @property
    def step(self) -> int:
        """Of the checkpoint."""
        return int(self.folder.name)


class RepositorySource(Source):
    """A repository of a layout that holds a whole model, as `solo import` writes it."""

    def __init__(self, folder: Path):
        layout, config, tokenizer = describe_repository(folder)
        if not layout.has_images:
            raise ValueError(
                f"{folder} is a text model ({layout.name}); `solo import` grows one that sees images of it"
            )
        super().__init__(folder, config, tokenizer, define(config, tokenizer.vocab_size if tokenizer else None))
        self._reader = TensorReader(folder)
        self._rules = matched(self._reader, layout, self.definition, str(folder))
        self._homes = {part: (name, n) for name, rule in self._rules.items() for n, part in enumerate(rule.parts)}

    def read(self, part: Part) -> np.ndarray:
        """See `Source`."""
        name, place = self._homes[part]
        return self._rules[name].split(self._reader.read(name))[place]

    def close(self) -> None:
        """Let go of the files."""
        self._reader.close()


def open_source(path: str | Path) -> Source:
    """Open what is to be exported.

    Args:
        path: a run's folder (its newest checkpoint), one of its checkpoints, or a repository.

    Raises:
        ValueError: it is none of these; LayoutError and TensorFileError among them.
        CheckpointError: the checkpoint is not of the run's model.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; expected a run, one of its checkpoints, or an imported repository")
    if (folder / "config.json").is_file() and not (folder / "config.yaml").is_file():
        return RepositorySource(folder)
    is_checkpoint = folder.parent.name == "checkpoints"
    run = folder.parent.parent if is_checkpoint else folder
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run} is no run of solo: it has no config.yaml")
    return RunSource(folder if is_checkpoint else newest_checkpoint(run))


def json_text(value: Any) -> str:
    """As files of repositories are written."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
