"""Parameters of an upcycled model that its source does not have: experts, vocabulary rows, a patch embedding.

The upcycled model gives the same logits for text as its source: experts of patches are copies that text never uses,
existing vocabulary rows stay as they are, and new rows belong to new tokens.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Literal

import numpy as np

from solo.interop.tensor_rules import ParameterSlice
from solo.model.declare import ParameterSpec

NewTokens = Literal["mean", "normal"]
_ROWS_SUMMED = 4096


def origins(slice_: ParameterSlice, spec: ParameterSpec) -> Iterator[ParameterSlice]:
    """Yields the slices of the source that a slice may be copied from, best first: itself, or the shared weights."""
    yield slice_
    if spec.in_layers and spec.region in ("patches", "text"):
        yield ParameterSlice(slice_.path.replace(f"/{spec.region}/", "/shared/"), slice_.layer)


def draw(slice_: ParameterSlice, spec: ParameterSpec, dtype: np.dtype, std: float, seed: int) -> np.ndarray:
    """Returns the initial value of a parameter: norm scales are one, biases zero, and the rest is N(0, std^2).

    It is a pure function of the seed and the parameter.
    """
    if spec.role == "norm":
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
