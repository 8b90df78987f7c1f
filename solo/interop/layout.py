"""A layout describes one family of repositories: how its config.json and its tensors map to ours."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from functools import reduce
from typing import Any

from solo.config import Config, ExpertsConfig
from solo.interop.tensor_rules import TensorRule
from solo.model.parameters import ModelDefinition

# What the models of nearly all families have in common.
_USUAL: Mapping[str, Any] = {
    "model.norm_scale_dtype": "compute",
    "model.norm_placement": "pre",
    "model.value_norm": "none",
    "model.keys_are_values": False,
    "model.rope_pairs": "rotated",
    "model.embedding_scale": "none",
    "model.logit_softcap": None,
    "model.layer_scalar": False,
    "model.layer_types": ((),),
    "model.head_parts": None,
    "model.value_dim": None,
    "model.attention_scale": None,
}

Sections = dict[str, dict[str, Any]]


class LayoutError(ValueError):
    """A repository cannot be read or written as requested; the message gives the reason."""


class Layout(ABC):
    """One family of repositories.

    Attributes:
        name: its name on the command line.
        has_images: whether its models read images. A text model can be upcycled into one that does.
        adds_placeholder: whether the embedding of a placeholder token is added to every patch (SOLO).
        names_placeholder: whether config.json has the id of the token that stands for a patch in `input_ids`.
        images_form: the form in which its code takes images: `form` of the exported image processor. None if no
            processor is exported.
        templates: chat templates of its models, tried in this order if `config_from` names none.
        reads_names: whether `completed` needs the names of the tensors.
        special_tokens: tokens that its tokenizers store as ordinary tokens and that text must never produce.
        left_out_tensors: what the tensors that `leaves_out` names do, after "tensors that".
        varies: keys of `_USUAL` that its models may have other values of.
    """

    name: str
    has_images: bool
    adds_placeholder: bool = False
    names_placeholder: bool = False
    images_form: str | None = None
    reads_names: bool = False
    special_tokens: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    left_out_tensors: str = "only generate images"
    varies: tuple[str, ...] = ()

    def fixed(self) -> Mapping[str, Any]:
        """Config keys (`model.bias`) that this layout cannot vary, each with its value or a tuple of values.

        `refusal` checks them, and `config_from` returns them, the first if there are several.
        """
        return {}

    @abstractmethod
    def recognises(self, config_json: Mapping[str, Any]) -> bool:
        """Returns whether a repository with this config.json has this layout."""

    def recognises_tensors(self, names: Collection[str]) -> bool:
        """Returns whether tensors of these names have this layout, for layouts that config.json does not identify."""
        return False

    def completed(self, config_json: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Any]:
        """Returns config.json in the form that `config_from` reads. `names` are the names of the tensors."""
        return config_json

    def with_processor(self, config_json: Mapping[str, Any], processor: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns config.json with what the repository's image processor states instead; {} if it has none."""
        return config_json

    def leaves_out(self, name: str) -> bool:
        """Returns whether a tensor is ignored, because it only serves what our model does not do."""
        return False

    @abstractmethod
    def config_from(self, config_json: Mapping[str, Any]) -> Sections:
        """Returns the keys of our sections `model`, `image` and `sequence` that config.json determines.

        Raises:
            LayoutError: a key is missing, or requests a feature that our model does not have; the message names it.
        """

    @abstractmethod
    def config_json(self, config: Config, vocab_size: int) -> dict[str, Any]:
        """Returns the config.json, without `dtype`, of a model that `refusal` accepts."""

    def refusal(self, config: Config) -> str | None:
        """Returns why this layout cannot store a model of this config (key, value, what it must be), or None."""
        return first_refusal(config, self.name, {**self.usual(), **self.fixed()})

    def usual(self) -> Mapping[str, Any]:
        """Returns entries like those of `fixed`, of keys that config.json does not have."""
        return {key: value for key, value in _USUAL.items() if key not in self.varies}

    @abstractmethod
    def tensors(self, definition: ModelDefinition) -> list[TensorRule]:
        """Returns a rule for every tensor, in the order of writing. A text layout leaves the patch embedding out."""

    def canonical(self, name: str) -> str:
        """Returns the name that `tensors` uses for a tensor that some repositories call by another name."""
        return name

    def copies(self, definition: ModelDefinition) -> Mapping[str, str]:
        """Returns tensors that some repositories store twice: name of the copy -> name of its original (tied heads)."""
        return {}


def experts(value: str | tuple[str, ...]) -> dict[str, Any]:
    """Returns `fixed` entries that give all components the same kind of experts."""
    return {f"model.experts.{component}": value for component in ExpertsConfig.model_fields}


def sections(fixed: Mapping[str, Any]) -> Sections:
    """Returns `Layout.fixed` as nested sections."""
    found: Sections = {"model": {}, "image": {}, "sequence": {}}
    for key, value in fixed.items():
        *outer, last = key.split(".")
        section: dict[str, Any] = reduce(lambda at, name: at.setdefault(name, {}), outer, found)
        section[last] = value[0] if isinstance(value, tuple) else value
    return found


def first_refusal(config: Config, layout: str, allowed: Mapping[str, Any]) -> str | None:
    """Returns a message about the first key of a config whose value is not allowed, or None.

    `allowed` maps a key (`model.bias`) to its value or to a tuple of values. No published layout has the multipliers
    of muP.
    """
    for key, wanted in {"model.parametrisation.kind": "standard", **allowed}.items():
        value = reduce(getattr, key.split("."), config)
        if value not in (wanted if isinstance(wanted, tuple) else (wanted,)):
            needed = " or ".join(str(each) for each in wanted) if isinstance(wanted, tuple) else wanted
            return f"{key} is {value}; the {layout} layout has {needed}"
    return None


def get(config_json: Mapping[str, Any], key: str) -> Any:
    """Returns the value of a key. Raises LayoutError if it is missing."""
    if config_json.get(key) is None:
        raise LayoutError(f"config.json lacks {key}")
    return config_json[key]


def demand(config_json: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises LayoutError if a key is present with another value than the one that our model supports."""
    for key, value in wanted.items():
        if config_json.get(key) not in (None, value):
            raise LayoutError(f"config.json has {key}: {config_json[key]}; our model of this family has {value}")
