"""Reads the small files of a repository: its layout, its model as one of our configs, and its tokenizer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from solo.config import Config, parse_config
from solo.data.text import Tokenizer, expand_tokens, extend_tokenizer, open_tokenizer
from solo.data.text.templates import TEMPLATES
from solo.data.vocabulary import needed_tokens
from solo.interop.config_json import read_config_json, read_image_processor
from solo.interop.layout import Layout, Sections
from solo.interop.layouts import recognise
from solo.interop.layouts.neo import MODEL_TYPE as NEO_TYPE
from solo.interop.tensor_files import TensorFileError, tensor_names

# Our own key of config.json, for layouts without our sections: see `model.appended_rows`.
APPENDED_ROWS = "appended_rows"
_SOLO_PLACEHOLDER = 32001  # <vpatch> of SOLO-7B
_TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")


def has_tokenizer(folder: Path) -> bool:
    """Returns whether a repository has the files of a tokenizer."""
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def layout_of(folder: Path) -> tuple[Layout, Mapping[str, Any]]:
    """Returns the layout of a repository, and its config.json as `Layout.completed` returns it.

    Raises:
        LayoutError: see `recognise`. TensorFileError: the tensors of a NEO are missing or damaged.
    """
    config_json = read_config_json(folder)

    def names() -> Collection[str]:
        try:
            return tensor_names(folder)
        except TensorFileError:
            if config_json.get("model_type") == NEO_TYPE:
                raise
            return ()

    layout = recognise(config_json, str(folder / "config.json"), names)
    config_json = dict(layout.completed(config_json, tensor_names(folder) if layout.reads_names else ()))
    return layout, layout.with_processor(config_json, read_image_processor(folder))


def describe_repository(folder: Path) -> tuple[Layout, Config, Tokenizer | None]:
    """Returns the layout of a repository, the config of its model, and its tokenizer, or None if it has none.

    Raises:
        LayoutError: config.json is missing, of no known layout, or describes a model with a feature that ours does not
        have. ValueError: the tokenizer cannot be read.
    """
    layout, config_json = layout_of(folder)
    sections = layout.config_from(config_json)
    tokenizer = open_tokenizer(folder) if has_tokenizer(folder) else None
    sections["model"].setdefault("appended_rows", config_json.get(APPENDED_ROWS) or 0)
    if layout.adds_placeholder:
        sections["model"]["patch_embed"].setdefault("token_id", _added_token(sections, tokenizer))
    if not layout.has_images:
        sections["image"] |= {"begin_token": None, "end_token": None, "row_token": None}
    if tokenizer:
        sections.setdefault("sequence", {}).setdefault("template", _template(layout, tokenizer))
    config = parse_config({"name": "loaded", **sections}, origin=str(folder / "config.json"))
    if tokenizer:
        # Published files store some of these as ordinary tokens, so text could encode to them. The ids do not change.
        special = [*(token for _, token in needed_tokens(config)), *expand_tokens(layout.special_tokens)]
        tokenizer = extend_tokenizer(tokenizer, [token for token in special if tokenizer.find(token) is not None])
    return layout, config, tokenizer


def placeholder_id(config_json: Mapping[str, Any]) -> int | None:
    """Returns the id of the token that stands for a patch in `input_ids`, if config.json has it."""
    keys = ("image_token_id", "img_context_token_id", "image_token_index")
    return next((int(config_json[key]) for key in keys if config_json.get(key) is not None), None)


def max_positions(config_json: Mapping[str, Any]) -> int | None:
    """Returns the longest sequence that config.json names, for the whole model or for its language model."""
    parts = [config_json, *(config_json.get(key) for key in ("text_config", "llm_config", "language_config"))]
    named = (part.get("max_position_embeddings") for part in parts if isinstance(part, dict))
    return next((int(value) for value in named if value), None)


def _template(layout: Layout, tokenizer: Tokenizer) -> str:
    """Returns the layout's first chat template whose tokens the tokenizer has, else the template without markup."""
    for name in layout.templates:
        if all(tokenizer.find(token) is not None for token in TEMPLATES[name].special_tokens):
            return name
    return "solo_pretrain"


def _added_token(sections: Sections, tokenizer: Tokenizer | None) -> int:
    """Returns the token whose embedding SOLO adds to every patch, if config.json does not name it."""
    found = tokenizer.find(sections["image"]["placeholder_token"]) if tokenizer else None
    return found if found is not None else min(_SOLO_PLACEHOLDER, int(sections["model"]["vocab_size"]) - 1)
