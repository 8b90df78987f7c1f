"""Weights of a repository, tensor by tensor, as our parameters."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from solo.interop.layout import Layout, LayoutError, Part, TensorRule
from solo.interop.layouts import recognise
from solo.interop.tensor_files import TensorReader
from solo.model.declare import ParameterSpec
from solo.model.parameters import ModelDefinition, Parameters
from solo.sharding.mesh import parameter_shardings, partition

# Computed from the config, and stored by older versions of transformers all the same.
_BUFFERS = re.compile(r"\.rotary_emb\.inv_freq$")
_ROWS_COMPARED = 4096


def read_config_json(folder: str | Path) -> dict[str, Any]:
    """A repository's config.json. Raises LayoutError where there is none that can be read."""
    path = Path(folder) / "config.json"
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise LayoutError(f"{folder} is no repository of a model: cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise LayoutError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise LayoutError(f"{path} holds no mapping of keys")
    return found


def load_parameters(
    folder: str | Path, definition: ModelDefinition, mesh: Mesh, *, without_images: bool = False
) -> Parameters:
    """All parameters of a model from a repository of any layout that can hold them, float32, sharded over a mesh.

    A tensor is read, turned, and sent to the devices, each of which gets its slice of it; then the next. The host holds
    one at a time. Every process reads all files.

    Args:
        folder: with config.json and safetensors, such as `solo import` and `solo export` write.
        definition: of the model.
        mesh: where the parameters should lie, as `parameter_shardings` says.
        without_images: take a text model too, to be asked about text alone: its embedder of patches is zero.

    Raises:
        LayoutError: no known layout, or tensors that are missing, left over, or of other shapes; all are named.
        TensorFileError: damaged files.
    """
    layout = recognise(read_config_json(folder), str(Path(folder) / "config.json"))
    with TensorReader(folder) as reader:
        rules = matched(reader, layout, definition, str(folder))
        check_complete(rules.values(), definition, layout, without_images)
        shardings = parameter_shardings(definition.specs, mesh)
        parameters = {path: _zeros(spec, shardings[path]) for path, spec in definition.specs.items()}
        for name, rule in rules.items():
            for part, values in zip(rule.parts, rule.split(reader.read(name)), strict=True):
                spec = definition.specs[part.path]
                placed = _place(values, spec.axes[part.layer is not None :], mesh)
                update = _updater(shardings[part.path])
                parameters[part.path] = update(parameters[part.path], placed, part.layer or 0)
                # What is under way would hold its tensors in the host's memory.
                parameters[part.path].block_until_ready()
    return parameters


def matched(reader: TensorReader, layout: Layout, definition: ModelDefinition, origin: str) -> dict[str, TensorRule]:
    """Stored name -> rule, of every tensor of a repository.

    Raises:
        LayoutError: tensors are missing, left over, of other shapes, there under two names, or not of numbers that
            parameters are made of; all are named. Or a copy differs from what it should be a copy of.
    """
    rules = {rule.name: rule for rule in layout.tensors(definition)}
    copies = layout.copies(definition)
    found: dict[str, str] = {}
    lines = []
    for name in reader:
        canonical = layout.canonical(name)
        if canonical in found:
            lines.append(f"there twice: {found[canonical]} and {name}")
        if not _BUFFERS.search(name):
            found[canonical] = name
    lines += [f"missing: {name} {rules[name].shape}" for name in rules if name not in found]
    lines += [
        f"left over: {found[name]} {reader[found[name]].shape}" for name in found if name not in {*rules, *copies}
    ]
    for name in rules.keys() & found.keys():
        info = reader[found[name]]
        if info.shape != rules[name].shape:
            lines.append(f"wrong shape: {info.name} is {info.shape}; this model has {rules[name].shape}")
        if not jnp.issubdtype(info.dtype, jnp.floating):
            lines.append(f"wrong dtype: {info.name} is {info.dtype}; parameters are floating-point numbers")
    if lines:
        raise LayoutError(f"{origin} does not fit the model; nothing was loaded:\n{_shown(lines)}")
    for copy, original in copies.items():
        if copy in found:
            _compare(reader, found[copy], found[original])
    return {stored: rules[name] for name, stored in found.items() if name in rules}


def check_complete(
    rules: Iterable[TensorRule], definition: ModelDefinition, layout: Layout, without_images: bool = False
) -> None:
    """Raise LayoutError where a layout does not hold all of a model, such as a text layout of one that sees images."""
    covered = {part for rule in rules for part in rule.parts}
    missing = [
        str(part)
        for part in every_part(definition.specs)
        if part not in covered and not (without_images and definition.specs[part.path].component == "patch_embed")
    ]
    if missing:
        raise LayoutError(
            f"a {layout.name} repository does not hold all of this model (`solo import` can grow one from it):\n"
            + _shown([f"missing: {part}" for part in missing])
        )


def every_part(specs: Mapping[str, ParameterSpec]) -> Iterator[Part]:
    """All parameters: layer by layer where they are stacked."""
    for path, spec in specs.items():
        if spec.axes[0] == "layers":
            yield from (Part(path, layer) for layer in range(spec.shape[0]))
        else:
            yield Part(path)


def tensor_of(rule: TensorRule, parameters: Mapping[str, Any], dtype: Any) -> np.ndarray:
    """A repository's tensor from our parameters, gathered from the devices and rounded to a dtype."""
    values = [parameters[part.path] for part in rule.parts]
    layers = [part.layer for part in rule.parts]
    chosen = [value if layer is None else value[layer] for value, layer in zip(values, layers, strict=True)]
    return rule.join([np.asarray(value).astype(dtype) for value in chosen])


def _zeros(spec: ParameterSpec, sharding: NamedSharding) -> jax.Array:
    return jax.jit(partial(jnp.zeros, spec.shape, jnp.float32), out_shardings=sharding)()


def _place(values: np.ndarray, axes: Sequence[str], mesh: Mesh) -> jax.Array:
    """On the devices, in its own dtype, each with its slice."""
    sharding = NamedSharding(mesh, partition(axes, values.shape, mesh))
    return jax.make_array_from_callback(values.shape, sharding, lambda index: np.ascontiguousarray(values[index]))


@lru_cache
def _updater(sharding: NamedSharding) -> Callable[[jax.Array, jax.Array, int], jax.Array]:
    """Put values into a layer of a parameter, or at its beginning where they are the whole of it; in its memory."""

    def update(parameter: jax.Array, values: jax.Array, layer: jax.Array) -> jax.Array:
        stacked = values.ndim < parameter.ndim
        values = values.astype(parameter.dtype)
        start: list[Any] = [layer, *[0] * values.ndim] if stacked else [0] * parameter.ndim
        return jax.lax.dynamic_update_slice(parameter, values[None] if stacked else values, start)

    return jax.jit(update, donate_argnums=0, out_shardings=sharding)


def _compare(reader: TensorReader, copy: str, original: str) -> None:
    """Some rows at a time: these are the largest tensors that there are."""
    if (reader[copy].shape, reader[copy].dtype) != (reader[original].shape, reader[original].dtype):
        raise LayoutError(f"{copy} should be the same as {original}, and has another shape or dtype")
    rows = reader[copy].shape[0]
    for start in range(0, rows, _ROWS_COMPARED):
        stop = min(start + _ROWS_COMPARED, rows)
        if reader.read(copy, start, stop).tobytes() != reader.read(original, start, stop).tobytes():
            raise LayoutError(
                f"config.json ties {copy} to {original}, but they differ; set tie_word_embeddings to false"
            )


def _shown(lines: Sequence[str], most: int = 40) -> str:
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join(f"  {line}" for line in [*lines[:most], *more])
