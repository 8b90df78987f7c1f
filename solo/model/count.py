"""Counts a model's parameters by component: in total, and active per text token and per patch."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import prod

from solo.model.declare import ParameterSpec
from solo.model.parameters import ModelDefinition

# The components of the count, in the order of the computation.
_NAMES = {
    "patch_embed": "patch_embed",
    "text_embed": "text_embed",
    "norms": "norms",
    "qkv": "attention",
    "out": "attention",
    "ffn": "ffn",
    "head": "head",
}
_ORDER = list(dict.fromkeys(_NAMES.values()))


@dataclass(frozen=True)
class ComponentCount:
    """The parameters of a component, without the padding of the vocabulary.

    name        the component, and its region if the regions have separate weights: `ffn, patches`
    total       all parameters
    of_text     parameters that a text token uses; with a router, those of `top_k` of `count` experts
    of_patches  parameters that a patch uses
    """

    name: str
    total: int
    of_text: int
    of_patches: int


@dataclass(frozen=True)
class ActiveParameters:
    """The parameters that one slot of each region uses, without the padding of the vocabulary."""

    patches: int
    text: int


def count_parameters(definition: ModelDefinition) -> list[ComponentCount]:
    """Returns the components of the model, in the order of the computation."""
    sums: dict[tuple[str, str], list[Fraction]] = {}
    for spec in definition.specs.values():
        key = _component(spec)
        size, share = Fraction(_size(spec, definition)), min(spec.uses, Fraction(1))
        seen = size, size * share * _used_by(spec, "text"), size * share * _used_by(spec, "patches")
        sums[key] = [total + part for total, part in zip(sums.get(key, [Fraction(0)] * 3), seen, strict=True)]
    keys = sorted(sums, key=lambda key: (_ORDER.index(key[0]), key[1] != "shared", key[1]))
    return [ComponentCount(_title(*key), *map(int, sums[key])) for key in keys]


def component_title(spec: ParameterSpec) -> str:
    """Returns the name of a parameter's component, as in `ComponentCount`."""
    return _title(*_component(spec))


def active_parameters(definition: ModelDefinition) -> ActiveParameters:
    """Returns the parameters that a patch and a text token use, including the token's row of the embedding table."""
    counts = count_parameters(definition)
    return ActiveParameters(sum(each.of_patches for each in counts), sum(each.of_text for each in counts))


def _component(spec: ParameterSpec) -> tuple[str, str]:
    return _NAMES[spec.component], "shared" if spec.component in ("patch_embed", "text_embed") else spec.region


def _used_by(spec: ParameterSpec, region: str) -> bool:
    return spec.region in ("shared", "moe", region) or (spec.region == "targets" and region == "text")


def _size(spec: ParameterSpec, definition: ModelDefinition) -> int:
    # No slot uses the padding rows of the vocabulary.
    return prod(
        definition.vocab_size if axis == "vocab" else size for axis, size in zip(spec.axes, spec.shape, strict=True)
    )


def _title(component: str, region: str) -> str:
    return component if region in ("shared", "targets") else f"{component}, {region}"
