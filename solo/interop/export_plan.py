"""The plan of an export: names and values of its tensors, its config and its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

import ml_dtypes
import numpy as np

from solo.config import Config
from solo.data.text import Tokenizer, extend_tokenizer
from solo.interop.layout import Layout, LayoutError
from solo.interop.source import Source
from solo.interop.tensor_files import TensorInfo
from solo.interop.tensor_rules import ParameterSlice, TensorRule
from solo.interop.weights import every_slice
from solo.model.parameters import ModelDefinition

Dtype = Literal["float32", "bfloat16", "float16"]
_NUMPY: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
# Placeholder tokens for vocabularies without one. The first of these that is not in the vocabulary is appended.
_PLACEHOLDERS = ("<image>", "<image_patch>", "<|image_patch|>")


@dataclass(frozen=True)
class ExportPlan:
    """An export before it is written.

    Attributes:
        source: the model to export.
        layout: layout of the repository.
        config: the published config, with the placeholder and the number of vocabulary rows.
        definition: definition of the model that `config` describes.
        tokenizer: the published tokenizer, or None if the source has none.
        rules: name -> rule of every tensor, in the order of writing.
        dtype: dtype of the weights.
        left_out: parameters that the layout does not store.
        appended: the placeholder token that was appended to the vocabulary, or None.
    """

    source: Source
    layout: Layout
    config: Config
    definition: ModelDefinition
    tokenizer: Tokenizer | None
    rules: dict[str, TensorRule]
    dtype: Dtype
    left_out: Sequence[ParameterSlice]
    appended: str | None

    @property
    def tensors(self) -> list[TensorInfo]:
        """Names, shapes and dtypes."""
        return [TensorInfo(rule.name, rule.shape, _NUMPY[self.dtype]) for rule in self.rules.values()]

    def value(self, name: str) -> np.ndarray:
        """Returns the values of a tensor."""
        rule = self.rules[name]
        return rule.join([self.read(slice_) for slice_ in rule.slices])

    def read(self, slice_: ParameterSlice) -> np.ndarray:
        """Returns a parameter slice in the published dtype, with the published vocabulary rows.

        An appended row is the mean of the trained rows. Its logit is then the mean of theirs, so it is never the
        largest, and its probability is at most 1/V, even if the code that computes it cannot leave out the row.

        Raises ValueError if a value is infinite or not a number, or becomes infinite in the published dtype.
        """
        values = self.trained(slice_)
        if "vocab" not in (axes := self.source.definition.specs[slice_.path].axes):
            return values
        axis = axes.index("vocab")
        missing = self.definition.vocab_size - values.shape[axis]
        mean = values.mean(axis, np.float64, keepdims=True).astype(values.dtype)
        return np.concatenate([values, np.repeat(mean, missing, axis)], axis)

    def trained(self, slice_: ParameterSlice) -> np.ndarray:
        """Returns a parameter slice in the published dtype, without the vocabulary rows that were appended."""
        values = self.source.read(slice_)
        axes = self.source.definition.specs[slice_.path].axes
        if "vocab" in axes:
            rows = self.definition.vocab_size - self.config.model.appended_rows
            values = values[(slice(None),) * axes.index("vocab") + (slice(rows),)]
        with np.errstate(over="ignore"):
            found = values.astype(_NUMPY[self.dtype])
        if not np.isfinite(found.astype(np.float32)).all():
            self._refuse_infinite(slice_, values)
        return found

    def _refuse_infinite(self, slice_: ParameterSlice, values: np.ndarray) -> NoReturn:
        if np.isfinite(values.astype(np.float64)).all():
            most = np.abs(values.astype(np.float64)).max()
            raise ValueError(
                f"{slice_} has values up to {most:.3g}, which {self.dtype} cannot store; export as bfloat16 or float32"
            )
        raise ValueError(f"{slice_} of {self.source.folder} has values that are infinite or not a number")


def make_plan(source: Source, layout: Layout, dtype: Dtype) -> ExportPlan:
    """Plans an export. Raises LayoutError if the layout cannot store the model."""
    if refusal := layout.refusal(source.config):
        raise LayoutError(f"{source.folder} cannot be written as {layout.name}: {refusal}")
    tokenizer, placeholder = _with_placeholder(source, layout)
    rows = max(source.definition.vocab_size, tokenizer.vocab_size if tokenizer else 0)
    image = source.config.image
    if placeholder is not None:
        image = image.model_copy(update={"placeholder_token": placeholder})
    appended_rows = rows - source.definition.vocab_size + source.config.model.appended_rows
    model = source.config.model.model_copy(update={"vocab_size": rows, "appended_rows": appended_rows})
    config = source.config.model_copy(update={"model": model, "image": image})
    definition = ModelDefinition(model, image, rows)
    rules = source.in_reading_order(layout.tensors(definition))
    stored = {slice_ for rule in rules for slice_ in rule.slices}
    missing = [slice_ for slice_ in every_slice(definition.specs) if slice_ not in stored]
    if missing and layout.has_images:
        raise LayoutError(f"a {layout.name} repository cannot store {', '.join(paths_of(missing))}")
    appended = placeholder if tokenizer and source.tokenizer and tokenizer is not source.tokenizer else None
    return ExportPlan(
        source, layout, config, definition, tokenizer, {rule.name: rule for rule in rules}, dtype, missing, appended
    )


def paths_of(slices: Sequence[ParameterSlice]) -> list[str]:
    """Returns the sorted paths of parameters."""
    return sorted({slice_.path for slice_ in slices})


def _with_placeholder(source: Source, layout: Layout) -> tuple[Tokenizer | None, str | None]:
    """Returns the tokenizer to publish and its placeholder token for a patch, or None if the layout needs none."""
    tokenizer, wanted = source.tokenizer, source.config.image.placeholder_token
    if not layout.names_placeholder:
        return tokenizer, wanted
    if tokenizer is None:
        raise LayoutError(
            f"a {layout.name} repository needs a tokenizer, and {source.folder} has none: put a tokenizer.model or a"
            " tokenizer.json with its tokenizer_config.json there"
        )
    token = wanted or next(name for name in _PLACEHOLDERS if tokenizer.find(name) is None)
    return extend_tokenizer(tokenizer, [token]), token
