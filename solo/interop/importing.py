"""Importing: a repository of another layout, or a text model to grow out of, becomes one of our own.

Tensor by tensor, in the source's dtype: memory holds one or two of them. A tensor that our layout has in the same
orientation is not even turned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from solo.config import Config
from solo.data.text import Tokenizer, expand_tokens, extend_tokenizer, open_tokenizer
from solo.interop.agreement import check_agreement, source_image, source_model
from solo.interop.growing import NewTokens, drawn, is_new, more_rows, twins
from solo.interop.layout import Layout, LayoutError, Part, TensorRule
from solo.interop.layouts import recognise
from solo.interop.layouts.native import NATIVE
from solo.interop.tensor_files import MAX_SHARD_BYTES, TensorInfo, TensorReader, complete_folder, write_tensors
from solo.interop.weights import matched, read_config_json
from solo.model.parameters import ModelDefinition

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Imported:
    """What was done.

    layout      of the source
    tensors     written
    nbytes      of their values
    copied      parts that are a twin's copy: experts of patches
    drawn       parts that were drawn: the embedder of patches
    rows        of the vocabulary: in the source, and now
    tokenizer   tokens of the tokenizer that was written; None where the source has none
    notes       in what else the two differ, a line each
    """

    layout: str
    tensors: int
    nbytes: int
    copied: int
    drawn: int
    rows: tuple[int, int]
    tokenizer: int | None
    notes: list[str]

    def summary(self) -> list[str]:
        """What a user should know, a line each."""
        lines = [f"read as {self.layout}: {self.tensors:,} tensors, {self.nbytes / 1e9:.2f} GB written"]
        if self.copied:
            lines.append(f"experts of patches: {self.copied:,} tensors, copies of the text's")
        if self.drawn:
            lines.append(f"embedder of patches: {self.drawn:,} tensors, drawn")
        before, after = self.rows
        grown = f"{before:,} rows, and {after - before:,} for new tokens" if after > before else f"{after:,} rows"
        found = "no tokenizer: data.tokenizer.path must name one" if self.tokenizer is None else ""
        lines.append(f"vocabulary: {grown}; {found or f'{self.tokenizer:,} tokens in the tokenizer'}")
        return lines + [f"note: {note}" for note in self.notes]


def import_repository(
    source: str | Path,
    config: Config,
    out: str | Path,
    *,
    new_tokens: NewTokens = "mean",
    seed: int = 0,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> Imported:
    """Write a repository in our own layout; `solo.load` and `init_from` take its folder.

    Args:
        source: a folder with config.json and safetensors, of any layout in `solo.interop.layouts`.
        config: what the result should be. A source of the same model is converted; one that lacks visual experts,
            vocabulary rows or images altogether is grown. Tokens of `data.tokenizer.add_tokens` are appended.
        out: the folder to write; it is complete, or not there.
        new_tokens: rows of new tokens: the mean of the old ones, or N(0, init_std^2).
        seed: of what is drawn.
        max_shard_bytes: of values in one file.
        progress: called with (bytes written, all bytes) after every tensor.

    Raises:
        LayoutError: a source that is not known or does not fit; the message lists what differs, is missing, left over.
        TensorFileError: damaged files, pickles, or a disk without room.
        FileExistsError: `out` is there.
        ValueError: the tokenizer cannot be read, or the vocabulary is too small for it or for `patch_embed.token_id`.
    """
    source = Path(source)
    config_json = read_config_json(source)
    layout = recognise(config_json, str(source / "config.json"))
    sections = layout.config_from(config_json)
    notes = check_agreement(layout, sections, config, str(source))
    before = source_model(sections, config)
    old_rows = before.vocab_size or 0
    tokenizer = _tokenizer(source, config, old_rows)
    rows = config.model.vocab_size or max(old_rows, tokenizer.vocab_size if tokenizer else 0)
    if tokenizer and tokenizer.vocab_size > rows:
        found = f"the tokenizer has {tokenizer.vocab_size} tokens with data.tokenizer.add_tokens"
        raise ValueError(f"{found}, but model.vocab_size is {rows}")
    if (under := config.model.patch_embed.token_id) is not None and under >= rows:
        raise ValueError(f"model.patch_embed.token_id is {under}, but the vocabulary has {rows} rows")
    with TensorReader(source) as reader:
        theirs = ModelDefinition(before, source_image(sections, config), old_rows)
        ours = ModelDefinition(config.model, config.image, rows)
        made = _Source(reader, matched(reader, layout, theirs, str(source)), theirs, ours, new_tokens, seed)
        tensors = made.plan(layout, str(source))
        with complete_folder(out) as folder:
            write_tensors(folder, tensors, _reporting(made.value, tensors, progress), max_shard_bytes=max_shard_bytes)
            if tokenizer:
                tokenizer.save(folder)
            written = NATIVE.config_json(config, rows) | {"dtype": _common_dtype(tensors)}
            (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    return Imported(
        layout.name,
        len(tensors),
        sum(info.nbytes for info in tensors),
        made.copied,
        made.drawn,
        (old_rows, rows),
        tokenizer.vocab_size if tokenizer else None,
        notes,
    )


class _Source:
    """Values for our tensors out of a repository's."""

    def __init__(
        self,
        reader: TensorReader,
        matched: dict[str, TensorRule],
        theirs: ModelDefinition,
        ours: ModelDefinition,
        new_tokens: NewTokens,
        seed: int,
    ):
        self._reader, self._rules, self._ours = reader, matched, ours
        self._new_tokens, self._seed = new_tokens, seed
        self._homes = {part: (name, place) for name, rule in matched.items() for place, part in enumerate(rule.parts)}
        self._old_rows, self._rows = theirs.vocab_size, ours.vocab_size
        self._wanted: dict[str, TensorRule] = {}
        self._dtypes: dict[str, np.dtype] = {}
        self._last: tuple[str, list[np.ndarray]] | None = None
        self.copied = self.drawn = 0

    def plan(self, layout: Layout, origin: str) -> list[TensorInfo]:
        """Our tensors. Raises LayoutError where the source has less or more than they need."""
        used, missing = set(), []
        embedding = self._reader[self._homes[Part("text_embed")][0]]
        for rule in NATIVE.tensors(self._ours):
            (part,) = rule.parts
            home = self._home(part)
            if home is None and (layout.has_images or not is_new(self._ours.specs[part.path])):
                missing.append(f"missing: {part}")
            self.drawn += home is None
            self.copied += home is not None and home != part and self._ours.specs[part.path].region == "patches"
            used.add(home)
            self._wanted[rule.name] = rule
            stored = embedding if home is None else self._reader[self._homes[home][0]]
            self._dtypes[rule.name] = stored.dtype
        lines = missing + [f"left over: {part}" for part in self._homes if part not in used]
        if lines:
            raise LayoutError(f"{origin} cannot become this model:\n" + "\n".join(f"  {line}" for line in lines))
        return [TensorInfo(rule.name, rule.shape, self._dtypes[rule.name]) for rule in self._wanted.values()]

    def value(self, name: str) -> np.ndarray:
        """One of our tensors."""
        rule = self._wanted[name]
        (part,) = rule.parts
        home = self._home(part)
        if home is None:
            return self._draw(rule, part)
        values = self._read(home)
        axes = self._ours.specs[part.path].axes
        if "vocab" in axes and self._rows > self._old_rows:
            std = self._ours.config.init_std
            axis = axes.index("vocab")
            values = more_rows(values, self._rows, axis, part, self._new_tokens, std, self._seed)
        return rule.join([values])

    def _draw(self, rule: TensorRule, part: Part) -> np.ndarray:
        spec = self._ours.specs[part.path]
        return rule.join([drawn(part, spec, self._dtypes[rule.name], self._ours.config.init_std, self._seed)])

    def _home(self, part: Part) -> Part | None:
        return next((twin for twin in twins(part, self._ours.specs[part.path]) if twin in self._homes), None)

    def _read(self, part: Part) -> np.ndarray:
        """A part; the tensor it is in is kept until another is read, for the others in it (wqkv)."""
        name, place = self._homes[part]
        if self._last is None or self._last[0] != name:
            self._last = None
            self._last = (name, list(self._rules[name].split(self._reader.read(name))))
        return self._last[1][place]


def _tokenizer(source: Path, config: Config, rows: int) -> Tokenizer | None:
    """The source's, or the one that the config names; extended. None where there is neither."""
    files = [name for name in ("tokenizer.model", "tokenizer.json") if (source / name).is_file()]
    path = source if files else config.data.tokenizer.path
    if path is None:
        return None
    tokenizer = open_tokenizer(path)
    if tokenizer.vocab_size > rows and files:
        raise ValueError(f"the tokenizer of {source} has {tokenizer.vocab_size} tokens, but config.json {rows} rows")
    return extend_tokenizer(tokenizer, expand_tokens(config.data.tokenizer.add_tokens))


def _reporting(
    value: Callable[[str], np.ndarray], tensors: Iterable[TensorInfo], progress: Progress | None
) -> Callable[[str], np.ndarray]:
    if progress is None:
        return value
    sizes = {info.name: info.nbytes for info in tensors}
    total, done = sum(sizes.values()), 0

    def reported(name: str) -> np.ndarray:
        nonlocal done
        found = value(name)
        done += sizes[name]
        progress(done, total)
        return found

    return reported


def _common_dtype(tensors: Iterable[TensorInfo]) -> str:
    """The dtype of most numbers."""
    sizes: dict[str, int] = {}
    for info in tensors:
        sizes[info.dtype.name] = sizes.get(info.dtype.name, 0) + info.nbytes
    return max(sizes, key=lambda name: sizes[name])
