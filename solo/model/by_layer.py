"""Generation on one CPU device. Each layer has its own arrays for weights and for cached keys and values.

On a CPU, XLA copies a layer's weights out of the stacked array before each matmul, and a decoding step would spend most
of its time on these copies. The arrays here are views of the stack. A prefill calls one compiled function for every
layer but the last, so it compiles as fast as a scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from solo.batch import Batch
from solo.model.dense import Dense
from solo.model.kv_cache import KVCache, advance
from solo.model.layers import layer_type
from solo.model.parameters import ModelDefinition, Parameters
from solo.model.placement import Placement, head_product
from solo.model.regions import Regions
from solo.model.transformer import make_context

_STACKED = "layers/"
# A layer's cached keys and values.
_Own = tuple[Regions, Regions]


def split_layers(parameters: Parameters, sharding: Any, types: Sequence[str] = ()) -> tuple[Parameters, ...]:
    """Returns the parameters of each layer, on the CPU device of `sharding`.

    They share the memory of `parameters` if the values of each layer are aligned to 64 bytes.

    Args:
        parameters: all parameters of the model.
        sharding: where the result lies.
        types: `ModelConfig.type_of_each_layer`. Paths are those below `layers/`, or below `layers/TYPE/`.
    """
    stacked = {
        path.removeprefix(_STACKED): np.asarray(x) for path, x in parameters.items() if path.startswith(_STACKED)
    }

    def layer(number: int, mark: str) -> Parameters:
        own = {path.removeprefix(mark): x[number] for path, x in stacked.items() if path.startswith(mark)}
        return {path: jax.device_put(x, sharding) for path, x in own.items()}

    if not types:
        return tuple(layer(number, "") for number in range(len(next(iter(stacked.values())))))
    return tuple(layer(types[:at].count(kind), f"{kind}/") for at, kind in enumerate(types))


def joined(product: Dense) -> Dense:
    """Returns a `Dense` with one matmul for both regions where they share weights. Matmuls with few rows are slow."""

    def dense(x: Any, *weights: Any) -> Any:
        if not isinstance(x, Regions) or not x.patches.shape[1]:
            return product(x, *weights)
        return jax.tree.map(lambda y: Regions.split(y, x.patches.shape[1]), product(x.join(), *weights))

    return dense


def separate_head(x: jax.Array, kernel_DV: jax.Array) -> jax.Array:
    """`head_product`, not fused with the preceding norm: XLA would recompute the norm for every token."""
    return head_product(jax.lax.optimization_barrier(x), kernel_DV)


def prefill_by_layer(
    definition: ModelDefinition,
    where: Placement,
    parameters: Parameters,
    layers: tuple[Parameters, ...],
    cache: KVCache,
    chunk: Batch,
    counts_B2: jax.Array,
) -> tuple[KVCache, jax.Array]:
    """`solo.model.generate.prefill`, with separate parameters and a separate cache for each layer."""
    x = _embed(definition, where, parameters, chunk)
    own: list[_Own] = [
        (Regions(*keys), Regions(*values))
        for keys, values in zip(zip(*cache.k, strict=True), zip(*cache.v, strict=True), strict=True)
    ]
    rest = cache._replace(k=Regions((), ()), v=Regions((), ()))
    for number, weights in enumerate(layers[:-1]):
        kind = layer_type(definition.config, number)
        x, own[number] = _layer(definition, where, kind, weights, x, own[number], rest, chunk)
    rest, own[-1], logits_BV = _last_layer(
        definition, where, parameters, layers[-1], x, own[-1], rest, chunk, counts_B2
    )
    k, v = (Regions(*zip(*parts, strict=True)) for parts in zip(*own, strict=True))
    return rest._replace(k=k, v=v), logits_BV


@partial(jax.jit, static_argnames=("definition", "where"))
def _embed(definition: ModelDefinition, where: Placement, parameters: Parameters, chunk: Batch) -> Regions:
    return definition.bind(parameters).embed(chunk.patches, chunk.patch_grid, chunk.text, where)


@partial(jax.jit, static_argnames=("definition", "where", "kind"), donate_argnames=("x", "own"))
def _layer(
    definition: ModelDefinition,
    where: Placement,
    kind: str | None,
    weights: Parameters,
    x: Regions,
    own: _Own,
    rest: KVCache,
    chunk: Batch,
) -> tuple[Regions, _Own]:
    context = make_context(chunk, where, definition.config, kind=kind)
    out = definition.bind_layer(weights, kind)(x, context, _of_one_layer(own, rest), 0)
    return out.x, _own(out.cache)


@partial(jax.jit, static_argnames=("definition", "where"), donate_argnames="own")
def _last_layer(
    definition: ModelDefinition,
    where: Placement,
    parameters: Parameters,
    weights: Parameters,
    x: Regions,
    own: _Own,
    rest: KVCache,
    chunk: Batch,
    counts_B2: jax.Array,
) -> tuple[KVCache, _Own, jax.Array]:
    """Runs the last layer only for the last text token of each row, which alone predicts the next token."""
    config, patches = definition.config, chunk.patches.shape[1]
    last_B1 = jnp.maximum(counts_B2[:, 1:] - 1, 0)

    def at_last(x_BS: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x_BS, jnp.expand_dims(last_B1, tuple(range(2, x_BS.ndim))), axis=1)

    last = chunk._replace(
        patches=chunk.patches[:, :0],
        text=at_last(chunk.text),
        positions=at_last(chunk.positions[:, patches:]),
        attend=at_last(chunk.attend[:, patches:]),
    )
    kind = layer_type(config, config.layers - 1)
    contexts = (make_context(batch, where, config, kind=kind) for batch in (chunk, last))
    some = Regions(x.patches[:, :0], at_last(x.text))
    layer, model = definition.bind_layer(weights, kind), definition.bind(parameters)
    context, context_of_last = contexts
    out = layer.for_some(x, context, some, context_of_last, _of_one_layer(own, rest), 0)
    logits_BV = model.logits(model.final_norm(out.x.text)[:, 0], where)
    return advance(rest, chunk, counts_B2, config), _own(out.cache), logits_BV


def _of_one_layer(own: _Own, rest: KVCache) -> KVCache:
    k, v = (part.map(lambda x: (x,)) for part in own)
    return rest._replace(k=k, v=v)


def _own(cache: KVCache | None) -> _Own:
    assert cache is not None
    k, v = (part.map(lambda layers: layers[0]) for part in (cache.k, cache.v))
    return k, v
