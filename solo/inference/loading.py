"""Loading a trained model from a run's folder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from solo.config import load_config
from solo.data.text import open_tokenizer
from solo.files import is_complete
from solo.inference.monolith import Monolith
from solo.inference.trained import local_mesh
from solo.model.parameters import ModelDefinition, Parameters, define
from solo.sharding.mesh import parameter_shardings
from solo.training.checkpoint import (
    CheckpointError,
    DamagedError,
    abstract_parameters,
    differences,
    items_of,
    read_items,
    unreadable_error,
)
from solo.training.evaluators import TRAINED
from solo.training.newest import fault
from solo.training.orbax_paths import for_orbax
from solo.training.reference import find_checkpoint
from solo.training.run_folder import RunFolder

T = TypeVar("T")
_log = logging.getLogger(__name__)


def load_run(path: Path, mesh: Mesh | None = None, weights: str = TRAINED) -> Monolith:
    """Load a model from a run's folder (its newest checkpoint), or from one of the run's checkpoints; see `solo.load`.

    Raises:
        ValueError: the folder is not a run, or has no complete checkpoint, or no such weights.
        CheckpointError: the checkpoint does not belong to the model that the run's config describes.
    """
    is_checkpoint = path.parent.name == "checkpoints"
    run = path.parent.parent if is_checkpoint else path
    files = RunFolder.existing(run, lines=False)
    config = load_config(files.config_file)
    tokenizer = open_tokenizer(files.work)
    devices = local_mesh() if mesh is None else mesh
    definition = define(config, tokenizer.vocab_size)

    def read(checkpoint: Path) -> Parameters:
        return read_parameters(checkpoint, definition, devices, weights)

    return Monolith(config, tokenizer, read(path) if is_checkpoint else with_newest(run, read), devices)


def with_newest(run: Path, read: Callable[[Path], T]) -> T:
    """Reads a run's newest checkpoint that can be read. Raises ValueError if there is none."""
    checkpoint = find_checkpoint(run)
    while True:
        try:
            return read(checkpoint)
        except DamagedError as error:
            _log.warning("%s; the one before is taken", error)
            checkpoint = find_checkpoint(run, below=int(checkpoint.name))


def read_parameters(checkpoint: Path, definition: ModelDefinition, mesh: Mesh, weights: str = TRAINED) -> Parameters:
    """Read the parameters of a checkpoint, sharded over the mesh. It only reads, so the run may be training.

    Args:
        checkpoint: the folder of the checkpoint.
        definition: the model.
        mesh: the devices.
        weights: `trained`, or the name of an average.

    Raises:
        ValueError: the checkpoint is not complete, or has no such weights.
        CheckpointError: its parameters are not the model's; the message lists the differences.
        DamagedError: files of the checkpoint are missing or damaged.
    """
    if not is_complete(checkpoint):
        raise ValueError(f"{checkpoint} is not a complete checkpoint")
    wanted = abstract_parameters(definition.specs, parameter_shardings(definition.specs, mesh))
    if found := fault(checkpoint):
        raise DamagedError(f"checkpoint {checkpoint} is damaged: {found}")
    stored = ocp.checkpointables_metadata(for_orbax(checkpoint)).metadata
    if lines := differences(stored.get("parameters", {}), wanted):
        raise CheckpointError(
            f"{checkpoint} does not belong to this run's model:\n" + "\n".join(f"  {line}" for line in lines)
        )
    items = items_of(wanted, stored, weights)
    try:
        return read_items(checkpoint, items)
    except Exception as error:
        raise unreadable_error(checkpoint, error) from error
