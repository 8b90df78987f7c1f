"""Checks that a repository's config describes the same model as ours, or one that ours can be upcycled from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from solo.config import (
    Config,
    ExpertsConfig,
    ImageConfig,
    LayerTypeConfig,
    ModelConfig,
    MoEConfig,
    SequenceConfig,
    keys_deciding,
)
from solo.interop.layout import Layout, LayoutError, Sections

# Keys that upcycling may change. They are compared by separate rules.
_COMPARED_APART = {"experts", "moe", "vocab_size", "appended_rows"}


def source_model(sections: Sections, config: Config) -> ModelConfig:
    """Returns a repository's model section. Keys that its config.json lacks are as in ours (SOLO's token_id)."""
    model = dict(sections["model"])
    ours = config.model.patch_embed.model_dump()
    model["patch_embed"] = {**ours, **model["patch_embed"]} if "patch_embed" in model else ours
    try:
        return ModelConfig.model_validate_json(json.dumps(model))
    except ValueError as error:
        raise LayoutError(f"config.json describes an invalid model: {error}") from None


def source_image(sections: Sections, config: Config) -> ImageConfig:
    """Returns a repository's image section, completed in the same way."""
    ours = config.image.model_dump()
    return ImageConfig.model_validate_json(json.dumps({**ours, **sections["image"]}))


def check_agreement(layout: Layout, sections: Sections, config: Config, origin: str, pre_layers: int = 0) -> list[str]:
    """Compares all keys that affect the model. Additions that upcycling can make are allowed.

    Args:
        layout: layout of the repository.
        sections: what its config.json says.
        config: the model that it shall become.
        origin: name of the repository, for messages.
        pre_layers: number of layers that are added in front of those of a text model.

    Returns:
        Allowed differences that the user should know about: the sliding window.

    Raises:
        LayoutError: the models differ; all differences are listed.
    """
    model, image = source_model(sections, config), source_image(sections, config)
    keys = dict.fromkeys([*sections["model"], *_unstated(layout)])
    lines = [*_model_lines(keys, sections, model, config.model, pre_layers), *_expert_lines(model, config.model)]
    if layout.has_images and pre_layers:
        lines.append(f"{pre_layers} layers in front: only a text model gets them")
    if not layout.has_images:
        lines += _part_lines(config.model)
    if layout.has_images:
        lines += [
            line
            for key in keys_deciding(ImageConfig, "model")
            for line in _line(f"image.{key}", image, config.image, key)
        ]
        lines += _sequence_lines(sections, config)
        # What native repositories refuse concerns only the PyTorch code of an export.
        if not lines and layout.name != "native" and (refusal := layout.refusal(config)):
            lines.append(refusal)
    if lines:
        raise LayoutError(
            f"{origin} ({layout.name}) is not the model that {config.name!r} describes:\n"
            + "\n".join(f"  {line}" for line in lines)
        )
    return [] if layout.has_images else list(_sequence_lines(sections, config))


def _sequence_lines(sections: Sections, config: Config) -> Iterator[str]:
    theirs = SequenceConfig.model_validate_json(json.dumps(sections["sequence"]))
    for key in sections["sequence"]:
        if key in keys_deciding(SequenceConfig, "model"):
            yield from _line(f"sequence.{key}", theirs, config.sequence, key)


def _part_lines(ours: ModelConfig) -> Iterator[str]:
    """Yields what keeps the heads of a text model from becoming the first parts of ours."""
    first, *more = ours.head_parts or (None,)
    if first is not None and (first.width, first.theta or ours.rope_theta) != (ours.dim_per_head, ours.rope_theta):
        yield (
            "model.head_parts: the heads of a text model become the part for time, which must be as wide as head_dim,"
            " with the theta model.rope_theta; rows and columns need projections of their own (projection: grid)"
        )
    if more and sum(part.width for part in more) != ours.dim_per_head:
        yield "model.head_parts: rows and columns together must be as wide as head_dim, whose queries they begin with"
    if (ours.dim_per_value, ours.scale) != (ours.dim_per_head, ours.dim_per_head**-0.5):
        yield "model.value_dim and model.attention_scale differ from those of a text model; leave them out"


def _unstated(layout: Layout) -> Iterator[str]:
    """Yields the keys of the model section that config.json of a layout lacks, because its models are all alike."""
    for key in layout.usual():
        # The heads of a text model may become parts of ours.
        if layout.has_images or key not in ("model.head_parts", "model.value_dim", "model.attention_scale"):
            yield key.removeprefix("model.")


def _model_lines(
    keys: Iterable[str], sections: Sections, theirs: ModelConfig, ours: ModelConfig, pre_layers: int = 0
) -> Iterator[str]:
    decisive = set(keys_deciding(ModelConfig, "model")) - _COMPARED_APART
    for key in keys:
        if key == "patch_embed":
            for inner in sections["model"]["patch_embed"]:
                yield from _line(f"model.patch_embed.{inner}", theirs.patch_embed, ours.patch_embed, inner)
        elif key == "layer_types":
            yield from _line("the types of the layers", theirs, ours, "type_of_each_layer")
            yield from _type_lines(theirs, ours)
        elif key == "head_dim":
            yield from _line("model.head_dim", theirs, ours, "dim_per_head")
        elif key == "layers" and ours.layers != theirs.layers + pre_layers:
            added = f" and {pre_layers} in front" if pre_layers else ""
            yield f"model.layers: {theirs.layers} there{added}, {ours.layers} here" + (
                "; --pre-layers adds layers in front" if ours.layers > theirs.layers and not pre_layers else ""
            )
        elif key == "tied_head" and (theirs.tied_head, ours.tied_head) == (True, False):
            pass  # The head begins as a copy of the embedding.
        # `rope_sections` may be added: a text token has the same time, row and column.
        elif key in decisive and key not in ("layers", "layer_pattern"):
            yield from _line(f"model.{key}", theirs, ours, key)
    if "parametrisation" not in sections["model"] and ours.parametrisation.kind != "standard":
        yield f"model.parametrisation.kind: standard there, {ours.parametrisation.kind} here"
    rows, wanted = theirs.vocab_size or 0, ours.vocab_size
    if wanted is not None and rows > wanted:
        yield f"model.vocab_size: {rows} there, {wanted} here; rows can be added, not removed"


def _type_lines(theirs: ModelConfig, ours: ModelConfig) -> Iterator[str]:
    """Compares the layers of each type. Their keys may be stated for the type or for the model."""
    for name in theirs.layers_by_type.keys() & ours.layers_by_type.keys() - {None}:  # None: the keys of the model
        before, after = theirs.of_type(name), ours.of_type(name)
        for key in LayerTypeConfig.model_fields.keys() - {"name", "head_dim"} | {"dim_per_head"}:
            yield from _line(f"model.{key} of {name}", before, after, key)


def _expert_lines(theirs: ModelConfig, ours: ModelConfig) -> Iterator[str]:
    for component in ExpertsConfig.model_fields:
        before, after = getattr(theirs.experts, component), getattr(ours.experts, component)
        if after == "moe" and before != "moe":
            yield (
                f"model.experts.{component}: {before} there, moe here; a mixture of experts cannot be upcycled from"
                " one FFN, because the router's weights would change the logits of text"
            )
        elif (before, after) not in {(before, before), ("shared", "modality")}:
            yield f"model.experts.{component}: {before} there, {after} here"
    if theirs.experts.ffn == ours.experts.ffn == "moe":
        for key in keys_deciding(MoEConfig, "model"):
            yield from _line(f"model.moe.{key}", theirs.moe, ours.moe, key)


def _line(name: str, theirs: Any, ours: Any, key: str) -> Iterator[str]:
    before, after = getattr(theirs, key), getattr(ours, key)
    if before != after:
        yield f"{name}: {before} there, {after} here"
