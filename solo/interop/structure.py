"""The size of a model without allocating it: parameters by component, tensors by layout."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from solo.config import Config
from solo.interop.layouts import LAYOUTS
from solo.model.count import ComponentCount, count_parameters
from solo.model.parameters import define


@dataclass(frozen=True)
class Structure:
    """The size of a model.

    Attributes:
        components: see `solo.model.count`.
        vocab_size: vocabulary rows without padding.
        layouts: layout -> (tensors, parameters) of a repository, for every layout that stores the whole model.
    """

    components: tuple[ComponentCount, ...]
    vocab_size: int
    layouts: dict[str, tuple[int, int]]


def structure(config: Config) -> Structure:
    """Returns the structure of a config's model; `model.vocab_size` defaults to the tokenizer's configured size."""
    size = config.model.vocab_size or config.data.tokenizer.vocab_size
    definition = define(config, size)
    components = tuple(count_parameters(definition))
    total = sum(component.total for component in components)
    layouts = {}
    for name, layout in LAYOUTS.items():
        if layout.refusal(config) is None:
            sizes = [prod(rule.shape) for rule in layout.tensors(definition)]
            if sum(sizes) == total:
                layouts[name] = (len(sizes), total)
    return Structure(components, size, layouts)
