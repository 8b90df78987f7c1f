"""Weights of a repository, tensor by tensor, as our parameters."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from solo.interop.layout import Layout, LayoutError, Part, TensorRule
from solo.interop.layouts import recognise
from solo.interop.tensor_reader import TensorFileError, TensorReader
from solo.model.parameters import ModelDefinition, Parameters, ParameterSpec
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


def load_parameters(folder: str | Path, definition: ModelDefinition, mesh: Mesh) -> Parameters:
    """All parameters of a model from a repository of any layout that can hold them, float32, sharded over a mesh.

    A tensor is read, turned, and sent to the devices, each of which gets its slice of it; then the next. The host holds
    one at a time. Every process reads all files.

    Args:
        folder: with config.json and safetensors, such as `solo import` and `solo export` write.
        definition: of the model.
        mesh: where the parameters should lie, as `parameter_shardings` says.

    Raises:
        LayoutError: no known layout, or tensors that are missing, left over, or of other shapes; all are named.
        TensorFileError: damaged files.
    """
    layout = recognise(read_config_json(folder), str(Path(folder) / "config.json"))
    with TensorReader(folder) as reader:
        rules = matched(reader, layout, definition, str(folder))
        check_complete(rules.values(), definition, layout)
        shardings = parameter_shardings(definition.specs, mesh)
        parameters = {path: _zeros(spec, shardings[path]) for path, spec in definition.specs.items()}
        for name, rule in rules.items():
            for part, values in zip(rule.parts, rule.split(reader.read(name)), strict=True):
                spec = definition.specs[part.path]
                parameters[part.path] = _write(parameters[part.path], values, part, spec, mesh)
                del values
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


def check_complete(rules: Sequence[TensorRule] | Any, definition: ModelDefinition, layout: Layout) -> None:
    """Raise LayoutError where a layout does not hold all of a model, such as a text layout of one that sees images."""
    covered = {part for rule in rules for part in rule.parts}
    missing = [str(part) for part in every_part(definition.specs) if part not in covered]
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


def _write(parameter: jax.Array, values: np.ndarray, part: Part, spec: ParameterSpec, mesh: Mesh) -> jax.Array:
    """Put a part in its place; the parameter's memory is used again."""
    sharding = NamedSharding(mesh, partition(spec.axes[part.layer is not None :], values.shape, mesh))
    placed = jax.make_array_from_callback(values.shape, sharding, lambda index: np.ascontiguousarray(values[index]))
    return _updated(parameter, placed, 0 if part.layer is None else part.layer)


@partial(jax.jit, donate_argnums=0)
def _updated(parameter: jax.Array, values: jax.Array, layer: Any) -> jax.Array:
    if values.ndim == parameter.ndim:
        return jax.lax.dynamic_update_slice(parameter, values.astype(parameter.dtype), (0,) * parameter.ndim)
    start = (layer, *(0,) * values.ndim)
    return jax.lax.dynamic_update_slice(parameter, values.astype(parameter.dtype)[None], start)


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
