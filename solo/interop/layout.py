"""A layout maps the tensors of one family of repositories to our parameters and back.

Values keep their dtype. Tensors hold the published rows of the vocabulary: `join` drops our padding rows, and whoever
writes the result of `split` into a parameter pads it with zeros.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any

import numpy as np

from solo.config import Config, ModelConfig
from solo.model.parameters import ModelDefinition

Sections = dict[str, dict[str, Any]]
_COMPONENTS = ("ffn", "qkv", "out", "norms")


class LayoutError(ValueError):
    """A repository cannot be read or written as requested; the message says what does not fit and why."""


@dataclass(frozen=True, slots=True)
class ParameterSlice:
    """One layer of a stacked parameter, or a whole parameter where `layer` is None."""

    path: str
    layer: int | None = None

    def __str__(self) -> str:
        return self.path if self.layer is None else f"{self.path}[{self.layer}]"


@dataclass(frozen=True)
class TensorRule:
    """One tensor of a repository and the parameters it stores.

    Attributes:
        name: of the tensor.
        shape: of the tensor.
        slices: the parameters that it stores.
        split: maps the tensor's values to those of `slices`, in their order. The results are views where possible.
        join: the inverse of `split`. It accepts vocabulary padding and drops it.
    """

    name: str
    shape: tuple[int, ...]
    slices: tuple[ParameterSlice, ...]
    split: Callable[[np.ndarray], Sequence[np.ndarray]]
    join: Callable[[Sequence[np.ndarray]], np.ndarray]


class Layout(ABC):
    """One family of repositories.

    Attributes:
        name: its name on the command line.
        has_images: whether its models read images. A text model can be upcycled into one that does.
        adds_placeholder: whether the embedding of a placeholder token is added to every patch (SOLO).
        templates: chat templates of its models, tried in this order where `config_from` names none.
        special_tokens: tokens that its tokenizers store as ordinary ones and that text must never produce.
    """

    name: str
    has_images: bool
    adds_placeholder: bool = False
    special_tokens: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    def fixed(self) -> Mapping[str, Any]:
        """Config keys (`model.bias`) that this layout cannot vary, each with its value or a tuple of values.

        `refusal` checks them, and `config_from` returns them, the first where there are several.
        """
        return {}

    @abstractmethod
    def recognises(self, config_json: Mapping[str, Any]) -> bool:
        """Returns whether a repository with this config.json has this layout."""

    @abstractmethod
    def config_from(self, config_json: Mapping[str, Any]) -> Sections:
        """Returns the keys of our sections `model`, `image` and `sequence` that config.json determines.

        Raises:
            LayoutError: a key is missing, or asks for something that our model does not have; the message names it.
        """

    @abstractmethod
    def config_json(self, config: Config, vocab_size: int) -> dict[str, Any]:
        """Returns the config.json, without `dtype`, of a model that `refusal` accepts."""

    def refusal(self, config: Config) -> str | None:
        """Returns why this layout cannot store a model of this config (key, value, what it must be), or None."""
        return first_refusal(config, self.name, self.fixed())

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
    return {f"model.experts.{component}": value for component in _COMPONENTS}


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
        if config_json.get(key, value) != value:
            raise LayoutError(f"config.json has {key}: {config_json[key]}; our model of this family has {value}")


class Rules:
    """Makes the rules of one model. Shapes come from its parameters only."""

    def __init__(self, definition: ModelDefinition):
        self.definition = definition
        self.config: ModelConfig = definition.config

    def tensors(self, paths: Mapping[str, str], layer: int | None = None) -> list[TensorRule]:
        """Returns the rules of tensors that store one parameter each: name -> path.

        Parameters that the model does not have are left out, such as the biases and norms of related models.
        """
        specs = self.definition.specs
        return [self.tensor(name, path, layer) for name, path in paths.items() if path in specs]

    def layer(
        self,
        names: Mapping[str, tuple[str, str]],
        packed_names: Mapping[str, tuple[str, str, str]],
        prefix: str,
        layer: int,
        region: str = "text",
        mark: str = "",
    ) -> list[TensorRule]:
        """Returns the rules of one layer and region. Shared weights belong to the text.

        Args:
            names: tensor -> component and last part of the path, such as (`attention_norm`, `scale`).
            packed_names: tensor -> last parts of the paths of q, k and v; see `packed`.
            prefix: of the names.
            layer: its number.
            region: text or patches.
            mark: replaces `{mark}` in the names.
        """
        paths = {
            prefix + name.format(mark=mark): self._layer_path(component, region, last)
            for name, (component, last) in names.items()
            if region == "text" or not self._is_shared(component)
        }
        found = self.tensors(paths, layer)
        for name, lasts in packed_names.items():
            if region == "text" or not self._is_shared("qkv"):
                q, k, v = (self._layer_path("qkv", region, last) for last in lasts)
                found.append(self.packed(prefix + name.format(mark=mark), (q, k, v), layer))
        return found

    def _layer_path(self, component: str, region: str, last: str) -> str:
        return f"layers/{component}/{'shared' if self._is_shared(component) else region}/{last}"

    def _is_shared(self, component: str) -> bool:
        """Returns whether patches and text share the weights of a component (`ffn`, `attention_norm`)."""
        return getattr(self.config.experts, "norms" if component.endswith("norm") else component) == "shared"

    def shape(self, slice_: ParameterSlice) -> tuple[int, ...]:
        """Returns the shape of a parameter slice without vocabulary padding."""
        spec = self.definition.specs[slice_.path]
        sizes = [
            self.definition.vocab_size if axis == "vocab" else size
            for axis, size in zip(spec.axes, spec.shape, strict=True)
        ]
        return tuple(sizes[slice_.layer is not None :])

    def tensor(
        self, name: str, path: str, layer: int | None = None, shape: tuple[int, ...] | None = None
    ) -> TensorRule:
        """Returns the rule of a tensor that stores one parameter as PyTorch does.

        Matrices are (out, in) and expert matrices (E, out, in), while ours have their inputs first, in one or two axes
        (`out` [H, C, D]). Biases have one axis. All else keeps its shape. `shape` reshapes the result, such as to a
        convolution's (out, C, y, x).
        """
        spec, ours = self.definition.specs[path], self.shape(ParameterSlice(path, layer))
        if not spec.is_matrix:
            view = (prod(ours),) if spec.role == "bias" else ours
            return self.rearranged(name, path, layer, view=view, order=tuple(range(len(view))), shape=shape)
        stacked = int("experts" in spec.axes and spec.role != "router")
        inputs = stacked + spec.inputs
        view = (*ours[:stacked], prod(ours[inputs:]), prod(ours[stacked:inputs]))
        order = (*range(stacked), stacked + 1, stacked)
        return self.rearranged(name, path, layer, view=view, order=order, shape=shape)

    def rearranged(
        self,
        name: str,
        path: str,
        layer: int | None = None,
        *,
        view: tuple[int, ...],
        order: tuple[int, ...],
        shape: tuple[int, ...] | None = None,
    ) -> TensorRule:
        """The tensor has `shape` (default `view`); seen as `view`, its axes transposed to `order`, it has our shape."""
        slice_ = ParameterSlice(path, layer)
        ours, shape = self.shape(slice_), shape or view
        inverse = tuple(int(axis) for axis in np.argsort(order))
        transposed = tuple(view[axis] for axis in order)

        def split(theirs: np.ndarray) -> list[np.ndarray]:
            return [theirs.reshape(view).transpose(order).reshape(ours)]

        def join(values: Sequence[np.ndarray]) -> np.ndarray:
            (found,) = values
            return self._unpadded(found, slice_).reshape(transposed).transpose(inverse).reshape(shape)

        return TensorRule(name, shape, (slice_,), split, join)

    def packed(self, name: str, paths: tuple[str, str, str], layer: int) -> TensorRule:
        """q, k and v in one tensor, grouped by key/value head: its queries, its key, its value.

        InternLM2's `wqkv` (mono_internvl.md 1.5), and Persimmon's `query_key_value`, whose groups have one query.
        Weights have the shape ((H + 2K) C, D), biases ((H + 2K) C).
        """
        slices = tuple(ParameterSlice(path, layer) for path in paths)
        *rest, heads, dim = self.shape(slices[0])  # rest: [D] for weights, [] for biases
        groups = self.shape(slices[1])[-2]
        queries = heads // groups

        def split(theirs: np.ndarray) -> list[np.ndarray]:
            grouped = theirs.reshape(groups, queries + 2, dim, *rest)
            found = (grouped[:, :queries].reshape(heads, dim, *rest), grouped[:, queries], grouped[:, queries + 1])
            return [np.moveaxis(values, -1, 0) if rest else values for values in found]

        def join(found: Sequence[np.ndarray]) -> np.ndarray:
            q, k, v = (np.moveaxis(values, 0, -1) if rest else values for values in found)
            q = q.reshape(groups, queries, dim, *rest)
            return np.concatenate([q, k[:, None], v[:, None]], axis=1).reshape(shape)

        shape = ((heads + 2 * groups) * dim, *rest)
        return TensorRule(name, shape, slices, split, join)

    def _unpadded(self, values: np.ndarray, slice_: ParameterSlice) -> np.ndarray:
        """Drops vocabulary padding. Raises ValueError if the shape differs otherwise."""
        ours, axes = self.shape(slice_), self.definition.specs[slice_.path].axes[slice_.layer is not None :]
        cut = tuple(slice(size if axis == "vocab" else None) for size, axis in zip(ours, axes, strict=True))
        if values[cut].shape != ours:
            raise ValueError(f"{slice_} has shape {values.shape}; {ours} is expected")
        return values[cut]
