"""Reads the tensors of a repository as our parameters."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from solo.interop.description import layout_of
from solo.interop.layout import Layout, LayoutError
from solo.interop.tensor_files import TensorInfo, TensorReader
from solo.interop.tensor_rules import ParameterSlice, TensorRule
from solo.model.declare import ParameterSpec
from solo.model.parameters import ModelDefinition, Parameters
from solo.sharding.mesh import parameter_shardings, partition

# Computed from the config, but stored by older versions of transformers.
_BUFFERS = re.compile(r"\.rotary_emb\.inv_freq$")
_ROWS_COMPARED = 4096
_log = logging.getLogger(__name__)


def load_parameters(
    folder: str | Path, definition: ModelDefinition, mesh: Mesh, *, without_images: bool = False
) -> Parameters:
    """Loads all parameters of a model from a repository of any layout, as float32 arrays sharded over a mesh.

    Tensors are read one after the other, and each device receives its slice. The host holds one tensor at a time. Every
    process reads all files.

    Args:
        folder: a folder with config.json and safetensors, such as `solo import` and `solo export` write.
        definition: the model.
        mesh: devices; parameters are sharded over it according to `parameter_shardings`.
        without_images: accept a text model. Its patch embedding is zero.

    Raises:
        LayoutError: the layout is unknown, or tensors are missing, unexpected or of other shapes; all are named.
        TensorFileError: a file is damaged.
    """
    layout, _ = layout_of(Path(folder))
    with TensorReader(folder) as reader:
        rules = matched(reader, layout, definition, str(folder))
        if left_out := sum(map(layout.leaves_out, reader)):
            _log.warning("%s: %s tensors %s and are left out", folder, f"{left_out:,}", layout.left_out_tensors)
        _check_complete(rules.values(), definition, layout, without_images)
        shardings = parameter_shardings(definition.specs, mesh)
        parameters = {path: _zeros(spec, shardings[path]) for path, spec in definition.specs.items()}
        for name, rule in rules.items():
            for slice_, values in zip(rule.slices, rule.split(reader.read(name)), strict=True):
                path, layer = slice_.path, slice_.layer
                placed = _place(values, definition.specs[path].axes[layer is not None :], mesh)
                parameters[path] = _updater(shardings[path])(parameters[path], placed, layer or 0)
                # Pending transfers would keep their tensors in host memory.
                parameters[path].block_until_ready()
    return parameters


class StoredParameters:
    """The parameters of a repository, read one slice at a time. A context manager.

    Attributes:
        reader: the open files.
        tensors: parameter slice -> name of the tensor that stores it.
        left_out: number of tensors that the layout leaves out.

    Raises:
        LayoutError, TensorFileError: see `matched` and `TensorReader`.
    """

    def __init__(self, folder: Path, layout: Layout, definition: ModelDefinition):
        self.reader = TensorReader(folder)
        try:
            self._rules = matched(self.reader, layout, definition, str(folder))
        except BaseException:
            self.reader.close()
            raise
        self.left_out = sum(map(layout.leaves_out, self.reader))
        self.tensors = {slice_: name for name, rule in self._rules.items() for slice_ in rule.slices}
        self._last: tuple[str, dict[ParameterSlice, np.ndarray]] | None = None

    def read(self, slice_: ParameterSlice) -> np.ndarray:
        """Returns a slice in its stored dtype. The last tensor is cached, because some store several slices (wqkv)."""
        name = self.tensors[slice_]
        if self._last is None or self._last[0] != name:
            self._last = None  # frees it before the next tensor is read
            rule = self._rules[name]
            self._last = (name, dict(zip(rule.slices, rule.split(self.reader.read(name)), strict=True)))
        return self._last[1][slice_]

    def __enter__(self) -> StoredParameters:
        return self

    def __exit__(self, *error: object) -> None:
        self.reader.close()


def matched(reader: TensorReader, layout: Layout, definition: ModelDefinition, origin: str) -> dict[str, TensorRule]:
    """Returns the rule of every stored tensor, by the tensor's name in the repository.

    Raises:
        LayoutError: tensors are missing, unexpected, stored under two names, not floating-point, or of other shapes
            (all are named); or a copy differs from its original.
    """
    rules = {rule.name: rule for rule in layout.tensors(definition)}
    copies = layout.copies(definition)
    found: dict[str, str] = {}
    twice = []
    for name in reader:
        if layout.leaves_out(name):
            continue
        canonical = layout.canonical(name)
        if canonical in found:
            twice.append(f"stored twice: {found[canonical]} and {name}")
        if not _BUFFERS.search(name):
            found[canonical] = name
    for copy, original in copies.items():
        if copy in found and original not in found:
            found[original] = found.pop(copy)
    stored = [(rules[name], reader[found[name]]) for name in rules if name in found]
    faults = [
        twice,
        [
            f"wrong dtype: {info.name} is {info.dtype}; solo reads floating-point weights: dequantise the model first"
            for _, info in stored
            if not jnp.issubdtype(info.dtype, jnp.floating)
        ],
        [
            f"wrong shape: {info.name} is {info.shape}; this model has {rule.shape}"
            for rule, info in stored
            if info.shape != rule.shape
        ],
        [f"missing: {name} {rules[name].shape}" for name in rules if name not in found],
        [f"left over: {found[name]} {reader[found[name]].shape}" for name in found if name not in {*rules, *copies}],
    ]
    if any(faults):
        causes = [*_resized(stored, definition), *_without_head(found, rules)]
        raise LayoutError(
            "\n".join([f"{origin} does not fit the model; nothing was loaded:", *causes, listed(*faults)])
        )
    for copy, original in copies.items():
        if copy in found:
            _compare(reader, found[copy], found[original])
    return {found[name]: rule for name, rule in rules.items()}


def _resized(stored: Sequence[tuple[TensorRule, TensorInfo]], definition: ModelDefinition) -> Iterator[str]:
    """Yields the cause of wrong shapes if the vocabulary's tensors agree on another number of rows."""
    ours = definition.vocab_size
    of_tokens = [info for rule, info in stored if {slice_.path for slice_ in rule.slices} & {"text_embed", "head"}]
    rows = {info.shape[0] for info in of_tokens}
    if len(rows) == 1 and ours not in rows:
        yield (
            f"The vocabulary was resized: its tensors have {rows.pop():,} rows, and vocab_size of the language model in"
            f" config.json is {ours:,}. Write the number of rows into config.json"
        )


def _without_head(found: Mapping[str, str], rules: Mapping[str, TensorRule]) -> Iterator[str]:
    """Yields the cause of missing tensors if the repository is a base model that was saved without its head."""
    stem = "model."
    inner = {name.removeprefix(stem) for name in rules if name.startswith(stem)}
    if found and found.keys() <= inner:
        yield (
            "It is a base model (saved by AutoModel), which has no head for the next token. Open it with"
            " AutoModelForCausalLM and save it again, if its head was trained"
        )


def _check_complete(
    rules: Iterable[TensorRule], definition: ModelDefinition, layout: Layout, without_images: bool
) -> None:
    """Raises LayoutError if a repository does not hold all parameters, such as a text model without images."""
    stored = {slice_ for rule in rules for slice_ in rule.slices}
    missing = [
        f"missing: {slice_}"
        for slice_ in every_slice(definition.specs)
        if slice_ not in stored and not (without_images and definition.specs[slice_.path].component == "patch_embed")
    ]
    if missing:
        raise LayoutError(
            f"a {layout.name} repository does not hold all of this model (`solo import` can upcycle it):\n"
            + listed(missing)
        )


def every_slice(specs: Mapping[str, ParameterSpec]) -> Iterator[ParameterSlice]:
    """Yields all parameters, layer by layer if they are stacked."""
    for path, spec in specs.items():
        if spec.axes[0] == "layers":
            yield from (ParameterSlice(path, layer) for layer in range(spec.shape[0]))
        else:
            yield ParameterSlice(path)


def tensor_of(rule: TensorRule, parameters: Mapping[str, Any], dtype: Any) -> np.ndarray:
    """Returns a repository's tensor made of our parameters, gathered from the devices and cast to a dtype."""
    values = [parameters[slice_.path] for slice_ in rule.slices]
    layers = [slice_.layer for slice_ in rule.slices]
    chosen = [value if layer is None else value[layer] for value, layer in zip(values, layers, strict=True)]
    return rule.join([np.asarray(value).astype(dtype) for value in chosen])


def listed(*kinds: Sequence[str], most: int = 20) -> str:
    """Returns lines, indented, for an error message: at most `most` of each kind of fault."""
    found = []
    for lines in kinds:
        found += [*lines[:most], *([f"and {len(lines) - most} more"] if len(lines) > most else [])]
    return "\n".join(f"  {line}" for line in found)


def _zeros(spec: ParameterSpec, sharding: NamedSharding) -> jax.Array:
    return jax.jit(partial(jnp.zeros, spec.shape, jnp.float32), out_shardings=sharding)()


def _place(values: np.ndarray, axes: Sequence[str], mesh: Mesh) -> jax.Array:
    """Puts values on the devices in their own dtype, each device getting its slice."""
    sharding = NamedSharding(mesh, partition(axes, values.shape, mesh))
    return jax.make_array_from_callback(values.shape, sharding, lambda index: np.ascontiguousarray(values[index]))


@lru_cache
def _updater(sharding: NamedSharding) -> Callable[[jax.Array, jax.Array, int], jax.Array]:
    """Returns a function that writes values into one layer of a parameter, or at its start, in place."""

    def update(parameter: jax.Array, values: jax.Array, layer: jax.Array) -> jax.Array:
        stacked = values.ndim < parameter.ndim
        values = values.astype(parameter.dtype)
        start: list[Any] = [layer, *[0] * values.ndim] if stacked else [0] * parameter.ndim
        return jax.lax.dynamic_update_slice(parameter, values[None] if stacked else values, start)

    return jax.jit(update, donate_argnums=0, out_shardings=sharding)


def _compare(reader: TensorReader, copy: str, original: str) -> None:
    """Compares a few rows at a time: these are the largest tensors."""
    if (reader[copy].shape, reader[copy].dtype) != (reader[original].shape, reader[original].dtype):
        raise LayoutError(
            f"config.json ties {copy} to {original}, but it has another shape or dtype; remove one of the two, or set"
            " tie_word_embeddings to false"
        )
    rows = reader[copy].shape[0]
    for start in range(0, rows, _ROWS_COMPARED):
        stop = min(start + _ROWS_COMPARED, rows)
        if reader.read(copy, start, stop).tobytes() != reader.read(original, start, stop).tobytes():
            raise LayoutError(
                f"config.json ties {copy} to {original}, but they differ; set tie_word_embeddings to false"
            )
