"""What a model consists of, without allocating any of it: tensors as published, parameters by component."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from solo.config import Config
from solo.interop.layouts import LAYOUTS
from solo.model.count import ComponentCount, count_parameters
from solo.model.parameters import define


@dataclass(frozen=True)
class Structure:
    """A model's size.

    components   see `solo.model.count`
    vocab_size   rows of the vocabulary, without padding
    layouts      layout -> (tensors, parameters) of a repository in it, for every layout that holds the whole model
    """

    components: tuple[ComponentCount, ...]
    vocab_size: int
    layouts: dict[str, tuple[int, int]]


def structure(config: Config) -> Structure:
    """The structure of a config's model; where it has no `model.vocab_size`, with the tokenizer's wanted size."""
    size = config.model.vocab_size or config.data.tokenizer.vocab_size
    definition = define(config, size)
    components = tuple(count_parameters(definition))
    total = sum(component.total for component in components)
    layouts = {}
    for name, layout in LAYOUTS.items():
        if layout.refusal(config) is None:
            shapes = [prod(rule.shape) for rule in layout.tensors(definition)]
            if sum(shapes) == total:
                layouts[name] = (len(shapes), total)
    return Structure(components, size, layouts)
