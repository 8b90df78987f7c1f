"""Rules map the tensors of a repository to our parameters and back.

Values keep their dtype. Tensors hold the published rows of the vocabulary: `join` drops our padding rows. The caller of
`split` pads with zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from solo.config import ModelConfig
from solo.model.parameters import ModelDefinition


@dataclass(frozen=True, slots=True)
class ParameterSlice:
    """One layer of a stacked parameter, or a whole parameter if `layer` is None."""

    path: str
    layer: int | None = None

    def __str__(self) -> str:
        return self.path if self.layer is None else f"{self.path}[{self.layer}]"


@dataclass(frozen=True)
class TensorRule:
    """One tensor of a repository and the parameters it stores.

    Attributes:
        name: name of the tensor.
        shape: shape of the tensor.
        slices: the parameters that it stores.
        split: maps the tensor's values to those of `slices`, in their order. The results are views where possible.
        join: the inverse of `split`. It accepts vocabulary padding and drops it.
    """

    name: str
    shape: tuple[int, ...]
    slices: tuple[ParameterSlice, ...]
    split: Callable[[np.ndarray], Sequence[np.ndarray]]
    join: Callable[[Sequence[np.ndarray]], np.ndarray]


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
            prefix: prefix of the names.
            layer: its number in the model; see `stack_of`.
            region: text or patches.
            mark: replaces `{mark}` in the names.
        """
        stack, layer = self.stack_of(layer)
        paths = {
            prefix + name.format(mark=mark): stack + self._layer_path(component, region, last)
            for name, (component, last) in names.items()
            if region == "text" or not self._is_shared(component)
        }
        found = self.tensors(paths, layer)
        for name, lasts in packed_names.items():
            if region == "text" or not self._is_shared("qkv"):
                q, k, v = (stack + self._layer_path("qkv", region, last) for last in lasts)
                found.append(self.packed(prefix + name.format(mark=mark), (q, k, v), layer))
        return found

    def stack_of(self, layer: int) -> tuple[str, int]:
        """Returns the beginning of the paths of a layer's parameters, and the layer's number in their stacks."""
        types = self.config.type_of_each_layer
        return ("layers/", layer) if not types else (f"layers/{types[layer]}/", types[:layer].count(types[layer]))

    def _layer_path(self, component: str, region: str, last: str) -> str:
        return f"{component}/{'shared' if self._is_shared(component) else region}/{last}"

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
        (`out` [H, C, D]). Biases have one axis. All other parameters keep their shape. `shape` reshapes the result,
        for example to a convolution's (out, C, y, x).
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
        """Returns the rule of a tensor of `shape` (default `view`): reshaped to `view` and transposed, it is ours."""
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
        """Returns the rule of a tensor that packs q, k and v by key/value head: queries, then key, then value.

        InternLM2 has this as `wqkv`, and Persimmon as `query_key_value`, with one query per group.
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
