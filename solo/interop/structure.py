"""The size of a model without allocating it: parameters by component, tensors by layout."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from solo.config import Config
from solo.interop.layouts import LAYOUTS
from solo.interop.layouts.native import NATIVE
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

    def as_json(self) -> dict[str, Any]:
        """Returns the figures for JSON, with the parameters that a text token and a patch use."""
        return {
            "components": {
                each.name: {"parameters": each.total, "of_text": each.of_text, "of_patches": each.of_patches}
                for each in self.components
            },
            "parameters": sum(each.total for each in self.components),
            "of_text": sum(each.of_text for each in self.components),
            "of_patches": sum(each.of_patches for each in self.components),
            "vocab_size": self.vocab_size,
            "layouts": {
                name: {"tensors": tensors, "parameters": parameters}
                for name, (tensors, parameters) in self.layouts.items()
            },
        }


def structure(config: Config) -> Structure:
    """Returns the structure of a config's model; `model.vocab_size` defaults to the tokenizer's configured size."""
    size = config.model.vocab_size or config.data.tokenizer.vocab_size
    definition = define(config, size)
    components = tuple(count_parameters(definition))
    total = sum(component.total for component in components)
    layouts = {}
    for name, layout in LAYOUTS.items():
        # `solo import` writes native repositories, also of models that the PyTorch code of an export does not compute.
        if name == NATIVE.name or layout.refusal(config) is None:
            sizes = [prod(rule.shape) for rule in layout.tensors(definition)]
            if sum(sizes) == total:
                layouts[name] = (len(sizes), total)
    return Structure(components, size, layouts)
