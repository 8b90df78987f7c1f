"""What an export writes: which tensors, under which names, and their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np

from solo.config import Config
from solo.data.text import Tokenizer
from solo.interop.layout import Layout, Part, TensorRule
from solo.interop.source import Source
from solo.interop.tensor_files import TensorInfo
from solo.model.parameters import ModelDefinition

Dtype = Literal["float32", "bfloat16", "float16"]
_NUMPY: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


@dataclass(frozen=True)
class Plan:
    """An export before it is written.

    source, layout   from and to
    config           as it is published: with the placeholder, and the number of rows
    definition       of the model that it describes
    tokenizer        as it is published; None where the source has none
    rules            name -> rule of every tensor, in the order of writing
    dtype            of the weights
    left_out         parameters that the layout does not hold
    appended         the token that was appended to the vocabulary, to stand for a patch
    """

    source: Source
    layout: Layout
    config: Config
    definition: ModelDefinition
    tokenizer: Tokenizer | None
    rules: dict[str, TensorRule]
    dtype: Dtype
    left_out: Sequence[Part]
    appended: str | None

    @property
    def tensors(self) -> list[TensorInfo]:
        """Names, shapes and dtypes."""
        return [TensorInfo(rule.name, rule.shape, _NUMPY[self.dtype]) for rule in self.rules.values()]

    def value(self, name: str) -> np.ndarray:
        """A tensor's values."""
        rule = self.rules[name]
        return rule.join([self.read(part) for part in rule.parts])

    def read(self, part: Part) -> np.ndarray:
        """A parameter in the dtype and with the rows of the vocabulary that are published; new rows are zero."""
        values = self.source.read(part)
        axes = self.source.definition.specs[part.path].axes
        if "vocab" in axes:
            axis, rows = axes.index("vocab"), self.source.definition.vocab_size
            values = values[(slice(None),) * axis + (slice(rows),)]
            missing = self.definition.vocab_size - rows
            values = np.pad(values, [(0, missing if number == axis else 0) for number in range(values.ndim)])
        return values.astype(_NUMPY[self.dtype])
