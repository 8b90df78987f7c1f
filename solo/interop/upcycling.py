"""Parameters of an upcycled model that its source does not have: experts, vocabulary rows, layers, parts of heads.

The upcycled model gives the same logits for text as its source: experts of patches are copies that text never uses,
existing vocabulary rows stay as they are, new rows belong to new tokens, and the keys of rows and columns are zero.

New layers in front are the exception: NEO's pre-buffer begins with random weights (`from_pretrained` in
`neo/model/modeling_neo_qwen3.py` of EvolvingLMMs-Lab/NEO). With `PreLayers.silent`, their output projections are zero,
so that they change nothing at first.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from solo.interop.tensor_rules import ParameterSlice
from solo.model.declare import ParameterSpec

NewTokens = Literal["mean", "normal"]
_ROWS_SUMMED = 4096


@dataclass(frozen=True)
class PreLayers:
    """New layers in front of the source's.

    count   their number
    silent  their output projections are zero instead of random
    """

    count: int = 0
    silent: bool = False


@dataclass(frozen=True)
class Origin:
    """The slice of the source that a parameter is made from, and how."""

    slice_: ParameterSlice
    made: Callable[[np.ndarray], np.ndarray] = lambda values: values


def origins(slice_: ParameterSlice, spec: ParameterSpec, before: PreLayers) -> Iterator[Origin]:
    """Yields what a slice may be made from, best first: itself, the shared weights, or the weights that it is like."""
    path, layer = slice_.path, slice_.layer
    if spec.in_layers:
        if layer is None or layer < before.count:
            return
        layer -= before.count
    yield Origin(ParameterSlice(path, layer))
    if spec.in_layers and spec.region in ("patches", "text"):
        yield Origin(ParameterSlice(path.replace(f"/{spec.region}/", "/shared/"), layer))
    if path.endswith("/q_grid"):
        for main in dict.fromkeys((path, path.replace(f"/{spec.region}/", "/shared/"))):
            yield Origin(ParameterSlice(main.removesuffix("_grid"), layer), lambda q: _quarters(q, spec.shape[-1]))
    if path == "head":
        yield Origin(ParameterSlice("text_embed"), np.transpose)


def _quarters(q: np.ndarray, width: int) -> np.ndarray:
    """Returns queries [D, H, width] of rows and columns: each is quarters 1 and 3 of the main queries [D, H, C]."""
    first, _, third, _ = np.split(q, 4, axis=-1)
    return np.concatenate([first, third] * 2, axis=-1)[..., :width]


def is_zero_at_first(slice_: ParameterSlice, spec: ParameterSpec, before: PreLayers) -> bool:
    """Returns whether a new parameter begins at zero, so that what it belongs to changes nothing."""
    if not spec.in_layers or slice_.layer is None:
        return False
    if slice_.layer < before.count:
        return before.silent and spec.role == "residual"
    return slice_.path.endswith("/k_grid")


def draw(slice_: ParameterSlice, spec: ParameterSpec, dtype: np.dtype, std: float, seed: int) -> np.ndarray:
    """Returns the initial value of a parameter: one for norm scales and constants, zero for biases, else N(0, std^2).

    It is a pure function of the seed and the parameter.
    """
    if spec.role in ("norm", "constant"):
        return np.ones(spec.shape, dtype)
    if spec.role == "bias":
        return np.zeros(spec.shape, dtype)
    generator = _generator(seed, str(slice_))
    return (std * generator.standard_normal(spec.shape, np.float32)).astype(dtype)


def add_rows(
    values: np.ndarray, rows: int, axis: int, slice_: ParameterSlice, new_tokens: NewTokens, std: float, seed: int
) -> np.ndarray:
    """Returns a parameter with vocabulary rows appended.

    Args:
        values: the parameter, with the existing rows along `axis`.
        rows: number of rows of the result.
        axis: 0 for text_embed [V, D], 1 for head [D, V].
        slice_: which parameter it is.
        new_tokens: new rows are the mean of the existing ones, or N(0, std^2).
        std: see `new_tokens`.
        seed: seed of the draws.
    """
    values = np.moveaxis(values, axis, 0)
    old, width = values.shape
    found = np.empty((rows, width), values.dtype)
    found[:old] = values
    if new_tokens == "mean":
        found[old:] = _mean(values).astype(values.dtype)
    else:
        draws = _generator(seed, f"rows of {slice_}").standard_normal((rows - old, width), np.float32)
        found[old:] = (std * draws).astype(values.dtype)
    return np.moveaxis(found, 0, axis)


def _mean(rows: np.ndarray) -> np.ndarray:
    """Averages over the first axis in blocks: a float64 copy of the whole would be four times as large."""
    total = np.zeros(rows.shape[1], np.float64)
    for start in range(0, len(rows), _ROWS_SUMMED):
        total += rows[start : start + _ROWS_SUMMED].astype(np.float32).sum(axis=0, dtype=np.float64)
    return total / len(rows)


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])
