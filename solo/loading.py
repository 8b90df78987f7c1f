"""Opening trained weights, wherever they come from: a run of ours, or a repository of a published model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from solo.config import Config, parse_config
from solo.data.text import Tokenizer, expand_tokens, extend_tokenizer, open_tokenizer
from solo.data.text.templates import TEMPLATES
from solo.data.text.vocabulary import needed_tokens
from solo.inference.monolith import Monolith, Published, load_run, local_mesh, newest_checkpoint, read_parameters
from solo.interop.layout import Layout, Sections
from solo.interop.layouts import recognise
from solo.interop.weights import load_parameters, read_config_json, tensor_of
from solo.model.parameters import ModelDefinition, Parameters, define

_SOLO_PATCH = 32001  # <vpatch> of SOLO-7B (solo.md 1.5)
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")


def load(path: str | Path, mesh: Mesh | None = None) -> Monolith:
    """Load a model that can be asked.

    Args:
        path: a run (`runs/<name>`, its newest checkpoint; it may still be training), one of its checkpoints
            (`runs/<name>/checkpoints/<step>`), or a folder in the Hugging Face form of any layout that solo knows:
            what `solo import` and `solo export` write, SOLO, Mono-InternVL, EVEv2, Fuyu, Mistral, Llama, Qwen, ...
        mesh: devices to load it onto; all of this process's unless given. It need not be the mesh it was trained on.

    Raises:
        ValueError: there is no such folder, it is neither a run nor a known layout, or a run has no checkpoint yet.
        CheckpointError: the checkpoint is not of the model that the run's config describes.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is no folder; expected a run (runs/<name>), one of its checkpoints, or a repository"
        )
    if (folder / "config.json").is_file() and not (folder / "config.yaml").is_file():
        return load_repository(folder, mesh)
    return load_run(folder, mesh)


def load_repository(folder: Path, mesh: Mesh | None = None) -> Monolith:
    """A model from a folder in the Hugging Face form. Without tokenizer files it takes tensors only."""
    config_json = read_config_json(folder)
    layout, config, tokenizer = describe_repository(folder)
    definition = define(config, tokenizer.vocab_size if tokenizer else None)
    mesh = local_mesh() if mesh is None else mesh
    published = Published(
        layout.has_images, placeholder_id(config_json), partial(published_tensors, layout, definition)
    )
    parameters = load_parameters(folder, definition, mesh, without_images=not layout.has_images)
    return Monolith(config, tokenizer, parameters, mesh, published)


def describe_repository(folder: Path) -> tuple[Layout, Config, Tokenizer | None]:
    """What a folder's small files say: its layout, the model in our terms, and the tokenizer where there is one."""
    config_json = read_config_json(folder)
    layout = recognise(config_json, str(folder / "config.json"))
    sections = layout.config_from(config_json)
    tokenizer = open_tokenizer(folder) if any((folder / name).is_file() for name in TOKENIZER_FILES) else None
    if layout.adds_placeholder:
        sections["model"]["patch_embed"].setdefault("token_id", _placeholder_row(sections, tokenizer))
    if not layout.has_images:
        sections["image"] |= {"begin_token": None, "end_token": None, "row_token": None}
    if tokenizer:
        sections.setdefault("sequence", {}).setdefault("template", _template(layout, tokenizer))
    config = parse_config({"name": "loaded", **sections}, origin=str(folder / "config.json"))
    if tokenizer:
        # Some are normal tokens in published files, which text could become; ids stay, and nothing is appended.
        special = [*(token for _, token in needed_tokens(config)), *expand_tokens(layout.special_tokens)]
        tokenizer = extend_tokenizer(tokenizer, [token for token in special if tokenizer.find(token) is not None])
    return layout, config, tokenizer


def _template(layout: Layout, tokenizer: Tokenizer) -> str:
    """The first of the layout's chat templates whose tokens the tokenizer has; else the one without any markup."""
    for name in layout.templates:
        if all(tokenizer.find(token) is not None for token in TEMPLATES[name].special_tokens):
            return name
    return "solo_pretrain"


def published_tensors(
    layout: Layout, definition: ModelDefinition, parameters: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Path -> float32 array of ours, to name -> array of a layout's tensors."""
    return {rule.name: tensor_of(rule, parameters, np.float32) for rule in layout.tensors(definition)}


def _placeholder_row(sections: Sections, tokenizer: Tokenizer | None) -> int:
    """The row of the vocabulary that a SOLO adds under every patch, which its config.json does not say."""
    token = sections["image"]["placeholder_token"]
    found = tokenizer.find(token) if tokenizer else None
    return found if found is not None else min(_SOLO_PATCH, int(sections["model"]["vocab_size"]) - 1)


def placeholder_id(config_json: dict[str, Any]) -> int | None:
    """The id of the token that stands for a patch, where config.json says so."""
    keys = ("image_token_id", "img_context_token_id", "image_token_index")
    return next((int(config_json[key]) for key in keys if config_json.get(key) is not None), None)


def initial_parameters(folder: str | Path, definition: ModelDefinition, mesh: Mesh) -> Parameters:
    """What a run begins with (`Config.init_from`): a run's newest checkpoint, one of its checkpoints, or a repository.

    Raises:
        ValueError: there is no such folder, or nothing in it that can be read.
        CheckpointError, LayoutError: it is of another model; the differences are listed.
    """
    path = Path(folder)
    if (path / "config.json").is_file():
        return load_parameters(path, definition, mesh)
    if path.parent.name == "checkpoints":
        return read_parameters(path, definition, mesh)
    if not path.is_dir():
        raise ValueError(f"init_from: {path} is no folder; expected weights (solo import), a run, or its checkpoint")
    return read_parameters(newest_checkpoint(path), definition, mesh)
