"""Loading trained weights from one of our runs, or from a repository of a published model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from solo.data.text.templates import Template
from solo.files import resolved
from solo.inference.loading import load_run, read_parameters, with_newest
from solo.inference.monolith import Monolith
from solo.inference.trained import Published, local_mesh
from solo.interop.config_json import is_repository
from solo.interop.description import describe_repository, layout_of, max_positions, placeholder_id
from solo.interop.layout import Layout
from solo.interop.published_chat import end_tokens, published_template
from solo.interop.weights import load_parameters, tensor_of
from solo.model.parameters import ModelDefinition, Parameters, define
from solo.training.evaluators import TRAINED
from solo.training.reference import Which, find_checkpoint, parse_reference


def load(path: str | Path, mesh: Mesh | None = None, *, step: Which | None = None, weights: str = TRAINED) -> Monolith:
    """Load a trained model for inference.

    Args:
        path: a run (`runs/<name>`, its newest checkpoint; it may still be training), one of its checkpoints
            (`runs/<name>@<step>`, `runs/<name>@best`, or the folder `runs/<name>/checkpoints/<step>`), or a Hugging
            Face repository of any supported layout: the output of `solo import` and `solo export`, SOLO,
            Mono-InternVL, EVEv2, Fuyu, Mistral, Llama, Qwen, ...
        mesh: the devices to load the model onto; by default all devices of this process. It may differ from the mesh
            of training.
        step: for a run, the checkpoint to load: a step, `latest`, or `best` (by `checkpoint.best` of its config).
        weights: for a run, `trained` or the name of an average of the weights, such as `ema` (`averages` of its
            config).

    Raises:
        ValueError: there is no such folder, it is neither a run nor a known layout, or the run has no such checkpoint
            or weights.
        CheckpointError: the checkpoint does not belong to the model that the run's config describes.
    """
    path, named = parse_reference(path)
    which = named if step is None else step
    folder = resolved(path)  # the names of a checkpoint and of its parent matter
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is not a folder; expected a run (runs/<name>), one of its checkpoints, or a repository"
        )
    if is_repository(folder):
        if which is not None:
            raise ValueError(f"{folder} is a repository, which has one set of weights; {which} names none of them")
        if weights != TRAINED:
            raise ValueError(f"{folder} is a repository, which has one set of weights, and no {weights!r}")
        return load_repository(folder, mesh)
    return load_run(folder if which is None else find_checkpoint(folder, which), mesh, weights)


def load_repository(folder: Path, mesh: Mesh | None = None) -> Monolith:
    """Load a model from a Hugging Face repository. Without tokenizer files, the model accepts only tensors.

    A text model uses the chat template of its repository. Every model ends answers at the end tokens of its repository.
    """
    _, config_json = layout_of(folder)
    layout, config, tokenizer = describe_repository(folder)
    definition = define(config, tokenizer.vocab_size if tokenizer else None)
    mesh = local_mesh() if mesh is None else mesh
    template: Template | None = None
    stops: tuple[int, ...] = ()
    if tokenizer is not None:
        # Layouts with images have chat templates of our own, which are compared with the published code.
        template = None if layout.has_images else published_template(folder, tokenizer)
        stops = end_tokens(folder, tokenizer)
    rename = partial(published_tensors, layout, definition)
    published = Published(
        layout.has_images, placeholder_id(config_json), rename, template, stops, max_positions(config_json)
    )
    parameters = load_parameters(folder, definition, mesh, without_images=not layout.has_images)
    return Monolith(config, tokenizer, parameters, mesh, published)


def published_tensors(
    layout: Layout, definition: ModelDefinition, parameters: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Convert our arrays, path -> float32, to a layout's tensors, name -> float32."""
    return {rule.name: tensor_of(rule, parameters, np.float32) for rule in layout.tensors(definition)}


def initial_parameters(folder: str | Path, definition: ModelDefinition, mesh: Mesh) -> Parameters:
    """Load the parameters that a run starts from (`Config.init_from`).

    Args:
        folder: a run, whose newest checkpoint is read, one of its checkpoints (also `RUN@STEP`), or a repository.
        definition: the run's model.
        mesh: the run's devices.

    Raises:
        ValueError: there is no such folder, or it contains no weights.
        CheckpointError: the checkpoint belongs to another model; the message lists the differences.
        LayoutError: the same for a repository.
    """
    named, which = parse_reference(folder)
    path = resolved(named)
    if is_repository(path):
        return load_parameters(path, definition, mesh)
    if path.parent.name == "checkpoints":
        return read_parameters(path, definition, mesh)
    if not path.is_dir():
        raise ValueError(f"init_from: {path} is not a folder; expected weights (solo import), a run, or its checkpoint")
    if which is None:
        return with_newest(path, lambda checkpoint: read_parameters(checkpoint, definition, mesh))
    return read_parameters(find_checkpoint(path, which), definition, mesh)
