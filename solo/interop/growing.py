"""What a model has that its source has not: experts, rows of the vocabulary, an embedder of patches.

With these the grown model says of text exactly what its source said: the experts of patches are copies that text never
meets, old rows keep their numbers, and new rows are other tokens' business.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Literal

import numpy as np

from solo.interop.layout import Part
from solo.model.declare import ParameterSpec

NewTokens = Literal["mean", "normal"]
_ROWS_SUMMED = 4096


def twins(part: Part, spec: ParameterSpec) -> Iterator[Part]:
    """Where a parameter's numbers may come from, best first: itself, or what both regions share."""
    yield part
    if spec.in_layers and spec.region in ("patches", "text"):
        yield Part(part.path.replace(f"/{spec.region}/", "/shared/"), part.layer)


def is_new(spec: ParameterSpec) -> bool:
    """Whether a source without images need not have it."""
    return spec.component == "patch_embed"


def drawn(part: Part, spec: ParameterSpec, dtype: np.dtype, std: float, seed: int) -> np.ndarray:
    """A parameter's first value, as the model itself would draw it: norms are one, biases zero, the rest N(0, std^2).

    A pure function of the seed and the parameter, whatever else is drawn.
    """
    if spec.role == "norm":
        return np.ones(spec.shape, dtype)
    if spec.role == "bias":
        return np.zeros(spec.shape, dtype)
    generator = _generator(seed, str(part))
    return (std * generator.standard_normal(spec.shape, np.float32)).astype(dtype)


def more_rows(
    values: np.ndarray, rows: int, axis: int, part: Part, new_tokens: NewTokens, std: float, seed: int
) -> np.ndarray:
    """Vocabulary rows up to `rows` along an axis.

    Args:
        values: the rows that there are, along `axis`.
        rows: how many there should be.
        axis: 0 for text_embed [V, D], 1 for head [D, V].
        part: which parameter it is.
        new_tokens: the mean of the rows that there are, or N(0, std^2).
        std: see there.
        seed: of the draws.
    """
    values = np.moveaxis(values, axis, 0)
    old, width = values.shape
    grown = np.empty((rows, width), values.dtype)
    grown[:old] = values
    if new_tokens == "mean":
        grown[old:] = _mean(values).astype(values.dtype)
    else:
        draws = _generator(seed, f"rows of {part}").standard_normal((rows - old, width), np.float32)
        grown[old:] = (std * draws).astype(values.dtype)
    return np.moveaxis(grown, 0, axis)


def _mean(rows: np.ndarray) -> np.ndarray:
    """Over the first axis, a block at a time: as float64 the whole would be four times as large."""
    total = np.zeros(rows.shape[1], np.float64)
    for start in range(0, len(rows), _ROWS_SUMMED):
        total += rows[start : start + _ROWS_SUMMED].astype(np.float32).sum(axis=0, dtype=np.float64)
    return total / len(rows)


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])
