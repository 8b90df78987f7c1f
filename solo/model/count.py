"""How many parameters a model has, by component: all of them, and those that one text token or one patch meets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import prod

from solo.model.parameters import ModelDefinition


@dataclass(frozen=True)
class ComponentCount:
    """Parameters of a component, vocabulary padding left out.

    total       all
    of_text     those that a text token meets; of learned experts, the chosen ones
    of_patches  those that a patch meets
    """

    name: str
    total: int
    of_text: int
    of_patches: int


def count_parameters(definition: ModelDefinition) -> list[ComponentCount]:
    """Components in the order of the computation; those a model does not have are left out."""
    order = ("patch_embed", "text_embed", "norms", "attention", "ffn", "head")
    found: dict[tuple[str, str], list[Fraction]] = {}
    for component, region, size, share in _parts(definition):
        sums = found.setdefault((component, region), [Fraction(0)] * 3)
        seen = (Fraction(1), share * (region != "patches"), share * (region != "text"))
        found[component, region] = [total + size * part for total, part in zip(sums, seen, strict=True)]
    keys = sorted(found, key=lambda key: (order.index(key[0]), key[1] != "shared", key[1]))
    return [ComponentCount(_title(*key), *map(int, found[key])) for key in keys]


def _title(component: str, region: str) -> str:
    only = {"patch_embed": "patches", "text_embed": "text", "head": "text"}
    return component if region in ("shared", only.get(component)) else f"{component}, {region}"


def _parts(definition: ModelDefinition) -> Iterator[tuple[str, str, int, Fraction]]:
    """(component, region, parameters, share that one slot meets) of every parameter."""
    learned = definition.config.moe
    for path, spec in definition.specs.items():
        # Padding rows of the vocabulary are nobody's.
        sizes = [
            definition.vocab_size if axis == "vocab" else size for axis, size in zip(spec.axes, spec.shape, strict=True)
        ]
        first, part, region, *rest = [*path.split("/"), "", ""]
        if first == "patch_embed":
            yield first, "patches", prod(sizes), Fraction(1)
        elif first in ("text_embed", "head"):
            yield first, "text", prod(sizes), Fraction(1)
        elif first == "final_norm":
            yield "norms", "shared", prod(sizes), Fraction(1)
        else:
            component = {"qkv": "attention", "out": "attention", "ffn": "ffn"}.get(part, "norms")
            routed = region == "moe" and rest[0] != "router"
            yield component, region, prod(sizes), Fraction(learned.top_k, learned.count) if routed else Fraction(1)
