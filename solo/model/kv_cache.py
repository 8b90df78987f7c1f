"""The KV cache of generation: keys and values of the patches and text tokens of each row, by region."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from solo.batch import TEXT_AXES, Batch
from solo.config import ModelConfig
from solo.model.regions import Regions


class KVCache(NamedTuple):
    """Keys and values of each region: arrays [L, B, K, slots, .], or tuples of L arrays [B, K, slots, .].

    The last axis is the width of a key, or of a value (`ModelConfig.dim_per_query`, `dim_per_value`). On a CPU,
    generation keeps an array per layer: XLA would copy a layer out of the stack for every product. With
    `ModelConfig.layer_types`, a region has a stack for each type, in a mapping by its name.

    length            int32 [B, 2]      number of cached patches and text tokens of each row
    next_position     int32 [B]         rotary position (the time) of the next text token
    patch_positions   int32 [B, slots]  rotary positions of the patches, for the sliding window
    """

    k: Regions
    v: Regions
    length: Any
    next_position: Any
    patch_positions: Any


def empty_cache(
    config: ModelConfig, rows: int, patch_slots: int, text_slots: int, separate_layers: bool = False
) -> KVCache:
    """Returns a cache in the model's compute dtype with room for this many patches and text tokens per row."""

    typed = {kind: config.of_type(kind) for kind in config.layers_by_type}

    def zeros(slots: int, dim: str) -> Any:
        def some(kind: str | None, *layers: int) -> jax.Array:
            own = typed[kind]
            return jnp.zeros((*layers, rows, own.kv_heads, slots, getattr(own, dim)), config.compute_dtype)

        if separate_layers:
            return tuple(some(kind) for kind in config.type_of_each_layer or [None] * config.layers)
        found = {kind: some(kind, count) for kind, count in config.layers_by_type.items()}
        return found if config.layer_types else found[None]

    keys, values = (
        Regions(zeros(patch_slots, dim), zeros(text_slots, dim)) for dim in ("dim_per_query", "dim_per_value")
    )
    length, next_position, patch_positions = (
        jnp.zeros(shape, jnp.int32) for shape in ((rows, 2), (rows,), (rows, patch_slots))
    )
    return KVCache(keys, values, length, next_position, patch_positions)


def of_type(cache: KVCache, kind: str | None) -> KVCache:
    """Returns the cache of the layers of one type, numbered from 0; all of it if layers are alike."""
    if kind is None:
        return cache
    return cache._replace(k=cache.k.map(lambda part: part[kind]), v=cache.v.map(lambda part: part[kind]))


def with_type(cache: KVCache, kind: str | None, own: KVCache) -> KVCache:
    """Returns the cache with that of the layers of one type replaced; see `of_type`."""
    if kind is None:
        return own

    def replaced(part: Any, new: Any) -> Any:
        return {**part, kind: new}

    return cache._replace(k=cache.k.map(replaced, own.k), v=cache.v.map(replaced, own.v))


def resize(cache: KVCache, patch_slots: int, text_slots: int) -> KVCache:
    """Returns the cache with at least this many patch and text slots per row. It never shrinks."""

    def pad(part: Any, slots: int) -> Any:
        def longer(x: jax.Array) -> jax.Array:
            missing = max(0, slots - x.shape[-2])
            return jnp.pad(x, ((0, 0),) * (x.ndim - 2) + ((0, missing), (0, 0)))

        return jax.tree.map(longer, part)

    slots = Regions(patch_slots, text_slots)
    missing = max(0, patch_slots - cache.patch_positions.shape[1])
    return cache._replace(
        k=cache.k.map(pad, slots),
        v=cache.v.map(pad, slots),
        patch_positions=jnp.pad(cache.patch_positions, ((0, 0), (0, missing))),
    )


def append(cache: KVCache, layer: Any, k: Regions, v: Regions) -> KVCache:
    """Append a layer's new keys and values [B, ., K, .] to each row. Entries that do not fit are dropped.

    All layers share one buffer, which the scan over layers carries, or each has its own. Decoding a token therefore
    writes only that token and copies nothing else.
    """

    def write(old: Any, new: jax.Array, start_B: jax.Array) -> Any:
        if not new.shape[1]:
            return old
        rows, slots = jnp.arange(len(new))[:, None], start_B[:, None] + jnp.arange(new.shape[1])
        if isinstance(old, tuple):
            # Head by head: a single row would become a dynamic update slice, which XLA fuses into each of its uses, and
            # for which it then copies the whole array.
            at = old[layer].at[rows[..., None], jnp.arange(new.shape[2]), slots[..., None]]
            return (*old[:layer], at.set(new.astype(old[layer].dtype), mode="drop"), *old[layer + 1 :])
        return old.at[layer, rows, :, slots].set(new.astype(old.dtype), mode="drop")

    starts = Regions(cache.length[:, 0], cache.length[:, 1])
    return cache._replace(k=cache.k.map(write, k, starts), v=cache.v.map(write, v, starts))


def keys_and_values(cache: KVCache, layer: Any) -> tuple[Regions, Regions]:
    """Returns a layer's keys and values, [B, slots, K, .] of each region."""

    def read(part: Any) -> jax.Array:
        found = part[layer] if isinstance(part, tuple) else jax.lax.dynamic_index_in_dim(part, layer, keepdims=False)
        return found.swapaxes(1, 2)

    return cache.k.map(read), cache.v.map(read)


def advance(cache: KVCache, chunk: Batch, counts_B2: jax.Array, config: ModelConfig) -> KVCache:
    """Update the lengths and positions after all layers have appended their keys and values.

    counts_B2  int32, number of patches and of text tokens in each row of the chunk
    """
    num_patches = chunk.patches.shape[1]
    axes = TEXT_AXES[config.positions]
    position_BS = chunk.positions if axes is None else (chunk.positions * jnp.array(axes)).max(axis=-1)
    real_BS = jnp.concatenate(
        [jnp.arange(num_patches) < counts_B2[:, :1], jnp.arange(chunk.text.shape[1]) < counts_B2[:, 1:]], axis=1
    )
    next_B = jnp.max(jnp.where(real_BS, position_BS + 1, 0), axis=1, initial=0)
    rows = jnp.arange(len(counts_B2))[:, None]
    columns = cache.length[:, :1] + jnp.arange(num_patches)
    return cache._replace(
        length=cache.length + counts_B2,
        next_position=jnp.maximum(cache.next_position, next_B),
        patch_positions=cache.patch_positions.at[rows, columns].set(position_BS[:, :num_patches], mode="drop"),
    )
