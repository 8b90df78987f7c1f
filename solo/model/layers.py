"""The decoder's layers: stacked by type, and applied in the order of the pattern.

Layers that are alike are one module whose parameters are stacked along a first axis, and one scan applies them. With
`ModelConfig.layer_types`, each type has its own stack. A scan over the repetitions of `layer_pattern` then applies the
runs of the pattern, such as five sliding layers and a full one, and each run is a scan too: every type is compiled once
for each of its runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from solo.batch import Batch
from solo.config import ModelConfig
from solo.model.layer import Layer
from solo.model.remat import rematerialised

# (type, layer, carry, number of the layer within its type) -> (carry, output)
Apply = Callable[[str | None, Layer, Any, jax.Array], tuple[Any, Any]]


class LayerTypes(nnx.Module):
    """A stack of layers for each type, so that parameter paths are `layers/TYPE/...`."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        for name, count in config.layers_by_type.items():
            assert name is not None
            setattr(self, name, _stack(config.of_type(name), count, rngs))


def stack_layers(config: ModelConfig, rngs: nnx.Rngs) -> Layer | LayerTypes:
    """Returns all layers of a model."""
    return LayerTypes(config, rngs) if config.layer_types else _stack(config, config.layers, rngs)


def _stack(config: ModelConfig, count: int, rngs: nnx.Rngs) -> Layer:
    make = nnx.vmap(partial(Layer, config), in_axes=0, out_axes=0)
    stacked: Layer = nnx.split_rngs(splits=count)(make)(rngs)
    return stacked


def layer_type(config: ModelConfig, number: int) -> str | None:
    """Returns the type of a layer; None if all layers are alike."""
    return config.type_of_each_layer[number] if config.layer_types else None


def attend_of(batch: Batch, config: ModelConfig, kind: str | None) -> Any:
    """Returns `Batch.attend` for the layers of a type, int32 [B, S, 4]."""
    if batch.attend.ndim == 3:
        return batch.attend
    return batch.attend[:, :, list(config.layers_by_type).index(kind)]


def each_layer(layers: Layer | LayerTypes, config: ModelConfig) -> Iterator[tuple[str | None, Layer]]:
    """Yields the type of every layer, and the layer, in the order of the model."""
    split, seen = _split(layers, config), dict.fromkeys(config.layers_by_type, 0)
    for number in range(config.layers):
        kind = layer_type(config, number)
        graph, stacked = split[kind]
        at = seen[kind]
        yield kind, nnx.merge(graph, jax.tree.map(lambda leaf, at=at: leaf[at], stacked))
        seen[kind] += 1


def scan_layers(layers: Layer | LayerTypes, config: ModelConfig, apply: Apply, carry: Any) -> tuple[Any, Any]:
    """Applies all layers in order, with the rematerialisation of `config`.

    Returns:
        The last carry, and the outputs of all layers, stacked along a first axis of size L.
    """
    split = _split(layers, config)
    if not config.layer_types:
        return _scan_run(split, config, apply, None, carry, split[None][1], jnp.arange(config.layers))
    pattern = config.layer_pattern[: config.layers]
    periods, rest = divmod(config.layers, len(pattern))
    numbered = {kind: (stacked, jnp.arange(config.layers_by_type[kind])) for kind, (_, stacked) in split.items()}
    whole, left = {}, {}
    for kind, stack in numbered.items():
        count = pattern.count(kind or "")
        whole[kind] = jax.tree.map(
            lambda leaf, count=count: leaf[: periods * count].reshape(periods, count, *leaf.shape[1:]), stack
        )
        left[kind] = jax.tree.map(lambda leaf, count=count: leaf[periods * count :], stack)

    def period(carry: Any, stacks: Any) -> tuple[Any, Any]:
        return _apply_runs(split, config, apply, carry, stacks, pattern)

    carry, outputs = jax.lax.scan(period, carry, whole, unroll=1 if config.scan_layers else periods)
    outputs = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), outputs)
    if rest:
        carry, last = _apply_runs(split, config, apply, carry, left, pattern[:rest])
        outputs = _concatenated([outputs, last])
    return carry, outputs


def _apply_runs(
    split: dict[str | None, Any], config: ModelConfig, apply: Apply, carry: Any, stacks: Any, pattern: tuple[str, ...]
) -> tuple[Any, Any]:
    """Applies the layers of a pattern, whose stacks hold just these layers, run by run."""
    seen, outputs = dict.fromkeys(split, 0), []
    for kind, run in groupby(pattern):
        start, count = seen[kind], len(list(run))
        state, numbers = jax.tree.map(lambda leaf, start=start, count=count: leaf[start : start + count], stacks[kind])
        carry, found = _scan_run(split, config, apply, kind, carry, state, numbers)
        outputs.append(found)
        seen[kind] += count
    return carry, _concatenated(outputs)


def _scan_run(
    split: dict[str | None, Any],
    config: ModelConfig,
    apply: Apply,
    kind: str | None,
    carry: Any,
    stacked: Any,
    numbers: jax.Array,
) -> tuple[Any, Any]:
    """Applies layers of one type, whose parameters are stacked, one after the other."""
    graph = split[kind][0]

    def step(carry: Any, layer: tuple[Any, jax.Array]) -> tuple[Any, Any]:
        state, number = layer
        return apply(kind, nnx.merge(graph, state), carry, number)

    unroll = 1 if config.scan_layers else len(numbers)
    return jax.lax.scan(rematerialised(step, config), carry, (stacked, numbers), unroll=unroll)


def _split(layers: Layer | LayerTypes, config: ModelConfig) -> dict[str | None, Any]:
    """Returns type -> (graph of one layer, stacked state)."""
    if not config.layer_types:
        return {None: nnx.split(layers)}
    return {name: nnx.split(getattr(layers, name or "")) for name in config.layers_by_type}


def _concatenated(outputs: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *outputs)
