"""Import: converts or upcycles a repository of another layout to our own layout.

Tensors are converted one at a time in the source's dtype, so only one or two of them are in memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from solo.config import Config
from solo.data.text import Tokenizer, expand_tokens, extend_tokenizer, open_tokenizer
from solo.interop.agreement import check_agreement, source_image, source_model
from solo.interop.description import has_tokenizer, layout_of
from solo.interop.layout import Layout, LayoutError
from solo.interop.layouts import layout_named
from solo.interop.layouts.native import NATIVE
from solo.interop.tensor_files import MAX_SHARD_BYTES, TensorInfo, complete_folder, write_tensors
from solo.interop.tensor_rules import ParameterSlice, TensorRule
from solo.interop.upcycling import NewTokens, Origin, PreLayers, add_rows, draw, is_zero_at_first, origins
from solo.interop.weights import StoredParameters, listed
from solo.model.declare import ParameterSpec
from solo.model.parameters import ModelDefinition

Progress = Callable[[int, int], None]
# Parameters of the parts of heads for rows and columns.
_IS_PART = re.compile(r"/[qk](_grid|_norm_(row|column|grid)/scale)$")


@dataclass(frozen=True)
class Imported:
    """Summary of an import.

    Attributes:
        layout: layout of the source.
        tensors: number of tensors written.
        nbytes: size of their values.
        copied: number of tensors that are copies of text weights: visual experts.
        drawn: number of tensors that were initialised randomly: the patch embedding.
        grown: number of tensors of new layers in front of the source's.
        parts: number of tensors of the parts of heads for rows and columns.
        left_out: number of tensors of the source that only serve what our model does not do.
        rows: vocabulary rows of the source and of the result.
        tokenizer: number of tokens of the tokenizer that was written, or None if the source has no tokenizer.
        notes: other differences between source and result.
    """

    layout: str
    tensors: int
    nbytes: int
    copied: int
    drawn: int
    rows: tuple[int, int]
    tokenizer: int | None
    notes: list[str]
    grown: int = 0
    parts: int = 0
    left_out: int = 0

    def summary(self) -> list[str]:
        """Returns lines for the user."""
        lines = [f"read as {self.layout}: {self.tensors:,} tensors, {self.nbytes / 1e9:.2f} GB written"]
        if self.copied:
            lines.append(f"visual experts: {self.copied:,} tensors, copied from the text's")
        if self.drawn:
            lines.append(f"patch embedding: {self.drawn:,} tensors, initialised randomly")
        if self.grown:
            lines.append(f"layers in front: {self.grown:,} tensors, new")
        if self.parts:
            lines.append(f"rows and columns of heads: {self.parts:,} tensors; keys are zero, so they add nothing yet")
        if self.left_out:
            lines.append(f"left out: {self.left_out:,} tensors that {layout_named(self.layout).left_out_tensors}")
        before, after = self.rows
        rows = f"{before:,} rows, and {after - before:,} for new tokens" if after > before else f"{after:,} rows"
        tokens = "no tokenizer: data.tokenizer.path must name one"
        if self.tokenizer is not None:
            tokens = f"{self.tokenizer:,} tokens in the tokenizer"
        return [*lines, f"vocabulary: {rows}; {tokens}", *(f"note: {note}" for note in self.notes)]


def import_repository(
    source: str | Path,
    config: Config,
    out: str | Path,
    *,
    new_tokens: NewTokens = "mean",
    pre_layers: PreLayers = PreLayers(),  # noqa: B008 - frozen
    seed: int = 0,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> Imported:
    """Writes a repository in our own layout, which `solo.load` and `init_from` accept.

    Args:
        source: a folder with config.json and safetensors, of any layout in `solo.interop.layouts`.
        config: describes the result. A source of the same model is converted; one that lacks visual experts, parts
            of heads, a head of its own, vocabulary rows or images is upcycled. The tokens of
            `data.tokenizer.add_tokens` are appended.
        out: the folder to write. Writing is atomic.
        new_tokens: rows of new tokens are the mean of the existing ones, or N(0, init_std^2).
        pre_layers: layers of the result in front of the source's (NEO's pre-buffer).
        seed: seed for random initialisation.
        max_shard_bytes: limit on the values in a file.
        progress: called with (bytes written, total bytes) for every tensor.

    Raises:
        LayoutError: the source is of no known layout or does not fit; the message lists the differences.
        TensorFileError: a file is damaged or a pickle, or the disk has too little space.
        FileExistsError: `out` exists.
        ValueError: the tokenizer cannot be read, the vocabulary is too small for it or for `patch_embed.token_id`, or
            the seed or the number of layers in front is negative.
    """
    if seed < 0 or pre_layers.count < 0:
        raise ValueError(f"the seed is {seed}, the layers in front {pre_layers.count}; neither may be negative")
    source = Path(source)
    layout, config_json = layout_of(source)
    sections = layout.config_from(config_json)
    notes = check_agreement(layout, sections, config, str(source), pre_layers.count)
    before = source_model(sections, config)
    theirs = ModelDefinition(before, source_image(sections, config), before.vocab_size or 0)
    if not has_tokenizer(source) and (source / "vocab.json").is_file():
        notes.append(
            "vocab.json and merges.txt are not read; AutoTokenizer.from_pretrained(...).save_pretrained(...) of"
            " transformers makes a tokenizer.json of them"
        )
    tokenizer = _tokenizer(source, config, theirs.vocab_size)
    ours = ModelDefinition(config.model, config.image, _rows(config, theirs.vocab_size, tokenizer))
    with StoredParameters(source, layout, theirs) as stored:
        conversion = _Conversion(stored, theirs, ours, new_tokens, pre_layers, seed)
        tensors = conversion.plan(layout, str(source))
        with complete_folder(out) as folder:
            values = _reporting(conversion.value, tensors, progress)
            write_tensors(folder, tensors, values, max_shard_bytes=max_shard_bytes)
            if tokenizer:
                tokenizer.save(folder)
            written = NATIVE.config_json(config, ours.vocab_size) | {"dtype": _common_dtype(tensors)}
            (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    return Imported(
        layout.name,
        len(tensors),
        sum(info.nbytes for info in tensors),
        conversion.copied,
        conversion.drawn,
        (theirs.vocab_size, ours.vocab_size),
        tokenizer.vocab_size if tokenizer else None,
        notes,
        conversion.grown,
        conversion.parts,
        stored.left_out,
    )


class _Conversion:
    """Makes our tensors from those of a repository."""

    def __init__(
        self,
        stored: StoredParameters,
        theirs: ModelDefinition,
        ours: ModelDefinition,
        new_tokens: NewTokens,
        pre_layers: PreLayers,
        seed: int,
    ):
        self._stored, self._ours = stored, ours
        self._new_tokens, self._std, self._seed = new_tokens, ours.config.init_std, seed
        self._adds_rows, self._before = ours.vocab_size > theirs.vocab_size, pre_layers
        # Tensor -> its rule, and what it is made from; None: it is new.
        self._planned: dict[str, tuple[TensorRule, Origin | None]] = {}
        self._dtypes: dict[str, np.dtype] = {}
        self.copied = self.drawn = self.grown = self.parts = 0

    def plan(self, layout: Layout, origin: str) -> list[TensorInfo]:
        """Returns our tensors. Raises LayoutError if the source lacks a parameter or has an additional one."""
        reader, tensors = self._stored.reader, self._stored.tensors
        embedding = tensors[ParameterSlice("text_embed")]
        missing = []
        for rule in NATIVE.tensors(self._ours):
            (slice_,) = rule.slices
            spec = self._ours.specs[slice_.path]
            found = next((each for each in origins(slice_, spec, self._before) if each.slice_ in tensors), None)
            is_new_layer = spec.in_layers and (slice_.layer or 0) < self._before.count
            is_part = not layout.has_images and not is_new_layer and _IS_PART.search(slice_.path) is not None
            if found is None and not (is_new_layer or is_part):
                if layout.has_images or spec.component != "patch_embed":
                    missing.append(f"missing: {slice_}")
                self.drawn += 1
            self.grown, self.parts = self.grown + is_new_layer, self.parts + is_part
            self.copied += found is not None and found.slice_.path != slice_.path and spec.region == "patches"
            self._planned[rule.name] = rule, found
            self._dtypes[rule.name] = reader[tensors[found.slice_] if found else embedding].dtype
        used = {found.slice_ for _, found in self._planned.values() if found is not None}
        left_over = [f"left over: {slice_}" for slice_ in tensors if slice_ not in used]
        if missing or left_over:
            raise LayoutError(f"{origin} cannot become this model:\n{listed(missing, left_over)}")
        return [TensorInfo(name, rule.shape, self._dtypes[name]) for name, (rule, _) in self._planned.items()]

    def value(self, name: str) -> np.ndarray:
        """Returns the values of one of our tensors."""
        rule, found = self._planned[name]
        (slice_,) = rule.slices
        spec = self._ours.specs[slice_.path]
        if found is None:
            if is_zero_at_first(slice_, spec, self._before):
                return np.zeros(rule.shape, self._dtypes[name])
            return rule.join([self._drawn(slice_, spec, self._dtypes[name])])
        values = found.made(self._stored.read(found.slice_))
        if "vocab" in spec.axes and self._adds_rows:
            axis = spec.axes.index("vocab")
            values = add_rows(values, self._ours.vocab_size, axis, slice_, self._new_tokens, self._std, self._seed)
        return rule.join([values])

    def _drawn(self, slice_: ParameterSlice, spec: ParameterSpec, dtype: np.dtype) -> np.ndarray:
        of_layer = replace(spec, shape=spec.shape[1:], axes=spec.axes[1:]) if spec.in_layers else spec
        return draw(slice_, of_layer, dtype, self._std, self._seed)


def _rows(config: Config, old_rows: int, tokenizer: Tokenizer | None) -> int:
    """Returns the vocabulary rows of the result. Raises ValueError if the tokens do not fit."""
    tokens = tokenizer.vocab_size if tokenizer else 0
    rows = config.model.vocab_size or max(old_rows, tokens)
    if tokens > rows:
        raise ValueError(
            f"the tokenizer has {tokens} tokens with data.tokenizer.add_tokens, but model.vocab_size is {rows}"
        )
    if (added := config.model.patch_embed.token_id) is not None and added >= rows:
        raise ValueError(f"model.patch_embed.token_id is {added}, but the vocabulary has {rows} rows")
    return rows


def _tokenizer(source: Path, config: Config, rows: int) -> Tokenizer | None:
    """Returns the source's tokenizer, or the one that the config names, extended. None if there is neither."""
    is_own = has_tokenizer(source)
    path = source if is_own else config.data.tokenizer.path
    if path is None:
        return None
    tokenizer = open_tokenizer(path)
    if tokenizer.vocab_size > rows and is_own:
        raise ValueError(f"the tokenizer of {source} has {tokenizer.vocab_size} tokens, but config.json {rows} rows")
    return extend_tokenizer(tokenizer, expand_tokens(config.data.tokenizer.add_tokens))


def _reporting(
    value: Callable[[str], np.ndarray], tensors: Iterable[TensorInfo], progress: Progress | None
) -> Callable[[str], np.ndarray]:
    if progress is None:
        return value
    total, done = sum(info.nbytes for info in tensors), 0

    def reported(name: str) -> np.ndarray:
        nonlocal done
        found = value(name)
        done += found.nbytes
        progress(done, total)
        return found

    return reported


def _common_dtype(tensors: Iterable[TensorInfo]) -> str:
    """Returns the dtype that most values have."""
    sizes: dict[str, int] = {}
    for info in tensors:
        sizes[info.dtype.name] = sizes.get(info.dtype.name, 0) + info.nbytes
    return max(sizes, key=lambda name: sizes[name])
