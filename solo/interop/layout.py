"""A layout: the two-way rule between the tensors of a repository and our parameters.

Values keep their dtype. Vocabulary rows in flight are the published ones: `join` leaves our padding rows out, and
who writes `split`'s result into a parameter leaves zeros behind it.
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


class LayoutError(ValueError):
    """A repository that cannot be read or written as asked; the message says what does not fit and why."""


@dataclass(frozen=True, slots=True)
class Part:
    """One of our parameters at `layer` of its first axis, or the whole of it where `layer` is None."""

    path: str
    layer: int | None = None

    def __str__(self) -> str:
        return self.path if self.layer is None else f"{self.path}[{self.layer}]"


@dataclass(frozen=True)
class TensorRule:
    """One tensor of a repository.

    name, shape   the tensor
    parts         what it holds of ours
    split         its values -> those of the parts, in their order; views where numpy can
    join          the other way round; vocabulary padding may still be on, and is left out
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    split: Callable[[np.ndarray], Sequence[np.ndarray]]
    join: Callable[[Sequence[np.ndarray]], np.ndarray]


class Layout(ABC):
    """What is known of one family of repositories.

    name        what it is called on the command line
    has_images  whether its models see images; the others can be grown into one that does
    adds_placeholder  whether the embedding of the token at a patch's place is added to the patch (SOLO)
    templates         chat templates that its models know, where `config_from` names none
    special_tokens    tokens that its tokenizers have as normal ones, which text could become, and that are no text
    """

    name: str
    has_images: bool
    adds_placeholder: bool = False
    special_tokens: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    @abstractmethod
    def recognises(self, config_json: Mapping[str, Any]) -> bool:
        """Whether a repository with this config.json is of this layout."""

    @abstractmethod
    def config_from(self, config_json: Mapping[str, Any]) -> Sections:
        """What config.json settles, in our terms: sections `model`, `image`, `sequence`, each with some of its keys.

        Raises:
            LayoutError: it lacks a key, or asks for something that our model cannot do; the message names it.
        """

    @abstractmethod
    def config_json(self, config: Config, vocab_size: int) -> dict[str, Any]:
        """The config.json of a model that `refusal` has nothing against; without `dtype`."""

    @abstractmethod
    def refusal(self, config: Config) -> str | None:
        """Why a model of this config cannot be written in this layout: the key, its value, what it must be."""

    @abstractmethod
    def tensors(self, definition: ModelDefinition) -> list[TensorRule]:
        """Every tensor of the repository, in the order in which it is written. A text layout leaves images out."""

    def canonical(self, name: str) -> str:
        """A tensor's name as `tensors` has it, of one that some repositories spell otherwise."""
        return name

    def copies(self, definition: ModelDefinition) -> Mapping[str, str]:
        """Tensors that some repositories store besides, and what each must be equal to: a tied head."""
        return {}


class Rules:
    """Makes the rules of one model. Shapes come from its parameters and are written down nowhere else."""

    def __init__(self, definition: ModelDefinition):
        self.definition = definition
        self.config: ModelConfig = definition.config

    def shape(self, part: Part) -> tuple[int, ...]:
        """Of one part of ours, without vocabulary padding."""
        spec = self.definition.specs[part.path]
        sizes = [
            self.definition.vocab_size if axis == "vocab" else size
            for axis, size in zip(spec.axes, spec.shape, strict=True)
        ]
        return tuple(sizes[part.layer is not None :])

    def same(self, name: str, path: str, layer: int | None = None, shape: tuple[int, ...] | None = None) -> TensorRule:
        """The same numbers in the same order, in our shape or in `shape`: norms, biases, embeddings."""
        ours = self.shape(Part(path, layer))
        return self.rearranged(name, path, layer, view=ours, order=tuple(range(len(ours))), shape=shape or ours)

    def linear(
        self,
        name: str,
        path: str,
        layer: int | None = None,
        inputs: int = 1,
        shape: tuple[int, ...] | None = None,
    ) -> TensorRule:
        """PyTorch's (out, in), or a `shape` with the same numbers in that order: a convolution's (out, C, y, x).

        Ours has its inputs first, `inputs` axes of them: one for q [D, H, C], two for out [H, C, D].
        """
        ours = self.shape(Part(path, layer))
        view = (prod(ours[inputs:]), prod(ours[:inputs]))
        return self.rearranged(name, path, layer, view=view, order=(1, 0), shape=shape)

    def flat(self, name: str, path: str, layer: int | None = None) -> TensorRule:
        """Ours in one axis: the bias of heads, [H, C]."""
        return self.same(name, path, layer, (prod(self.shape(Part(path, layer))),))

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
        """Ours is the tensor of `shape` (default `view`) seen as `view`, its axes in `order`, in our shape."""
        part = Part(path, layer)
        ours, shape = self.shape(part), shape or view
        inverse = tuple(int(axis) for axis in np.argsort(order))
        turned = tuple(view[axis] for axis in order)

        def split(theirs: np.ndarray) -> list[np.ndarray]:
            return [theirs.reshape(view).transpose(order).reshape(ours)]

        def join(parts: Sequence[np.ndarray]) -> np.ndarray:
            (found,) = parts
            return self._published(found, part).reshape(turned).transpose(inverse).reshape(shape)

        return TensorRule(name, shape, (part,), split, join)

    def packed(self, name: str, paths: tuple[str, str, str], layer: int) -> TensorRule:
        """q, k and v in one tensor, by groups of a key/value head: its queries, its key, its value.

        InternLM2's `wqkv` (mono_internvl.md 1.5), and Persimmon's `query_key_value`, whose groups have one query.
        For weights the rows of ((H + 2K) C, D), for biases ((H + 2K) C).
        """
        parts = tuple(Part(path, layer) for path in paths)
        *rest, heads, dim = self.shape(parts[0])  # rest: [D] for weights, [] for biases
        groups = self.shape(parts[1])[-2]
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
        return TensorRule(name, shape, parts, split, join)

    def _published(self, values: np.ndarray, part: Part) -> np.ndarray:
        """Without vocabulary padding. Raises ValueError where anything but padding is too much."""
        ours, axes = self.shape(part), self.definition.specs[part.path].axes[part.layer is not None :]
        cut = tuple(slice(size if axis == "vocab" else None) for size, axis in zip(ours, axes, strict=True))
        if values[cut].shape != ours:
            raise ValueError(f"{part} has shape {values.shape} where {ours} is expected")
        return values[cut]


def first_refusal(config: Config, layout: str, allowed: Mapping[str, Any]) -> str | None:
    """The first key of a config (`model.bias`) whose value is not the one allowed, or not among those in a tuple.

    No published layout has the multipliers of muP.
    """
    for key, wanted in {"model.parametrisation.kind": "standard", **allowed}.items():
        value = reduce(getattr, key.split("."), config)
        if value not in (wanted if isinstance(wanted, tuple) else (wanted,)):
            needed = " or ".join(str(each) for each in wanted) if isinstance(wanted, tuple) else wanted
            return f"{key} is {value}; the {layout} layout has {needed}"
    return None
