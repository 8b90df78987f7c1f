"""The KV cache of generation: keys and values of the patches and text tokens of each row, by region."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from solo.batch import Batch
from solo.config import ModelConfig
from solo.model.regions import Regions


class KVCache(NamedTuple):
    """Keys and values [L, B, slots, K, C] of each region.

    length            int32 [B, 2]      number of cached patches and text tokens of each row
    next_position     int32 [B]         rotary position of the next text token
    patch_positions   int32 [B, slots]  rotary positions of the patches, for the sliding window
    """

    k: Regions
    v: Regions
    length: Any
    next_position: Any
    patch_positions: Any


def empty_cache(config: ModelConfig, rows: int, patch_slots: int, text_slots: int) -> KVCache:
    """Returns a cache in the model's compute dtype with room for this many patches and text tokens per row."""

    def zeros(slots: int) -> jax.Array:
        shape = (config.layers, rows, slots, config.kv_heads, config.dim_per_head)
        return jnp.zeros(shape, config.compute_dtype)

    keys, values = (Regions(zeros(patch_slots), zeros(text_slots)) for _ in range(2))
    length, next_position, patch_positions = (
        jnp.zeros(shape, jnp.int32) for shape in ((rows, 2), (rows,), (rows, patch_slots))
    )
    return KVCache(keys, values, length, next_position, patch_positions)


def resize(cache: KVCache, patch_slots: int, text_slots: int) -> KVCache:
    """Returns the cache with at least this many patch and text slots per row. It never shrinks."""

    def pad(x: jax.Array, slots: int) -> jax.Array:
        missing = max(0, slots - x.shape[2])
        return jnp.pad(x, ((0, 0), (0, 0), (0, missing), (0, 0), (0, 0)))

    slots = Regions(patch_slots, text_slots)
    missing = max(0, patch_slots - cache.patch_positions.shape[1])
    return cache._replace(
        k=cache.k.map(pad, slots),
        v=cache.v.map(pad, slots),
        patch_positions=jnp.pad(cache.patch_positions, ((0, 0), (0, missing))),
    )


def append(cache: KVCache, layer: jax.Array, k: Regions, v: Regions) -> KVCache:
    """Append a layer's new keys and values [B, ., K, C] to each row. Entries that do not fit are dropped.

    All layers share one buffer, which the scan over layers carries. Decoding a token therefore writes only that token
    and copies nothing else.
    """

    def write(old: jax.Array, new: jax.Array, start_B: jax.Array) -> jax.Array:
        if not new.shape[1]:
            return old
        rows = jnp.arange(old.shape[1])[:, None]
        return old.at[layer, rows, start_B[:, None] + jnp.arange(new.shape[1])].set(new.astype(old.dtype), mode="drop")

    starts = Regions(cache.length[:, 0], cache.length[:, 1])
    return cache._replace(k=cache.k.map(write, k, starts), v=cache.v.map(write, v, starts))


def keys_and_values(cache: KVCache, layer: jax.Array) -> tuple[Regions, Regions]:
    """Returns a layer's keys and values, [B, slots, K, C] of each region."""

    def read(part: jax.Array) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(part, layer, keepdims=False)

    return cache.k.map(read), cache.v.map(read)


def advance(cache: KVCache, chunk: Batch, counts_B2: jax.Array) -> KVCache:
    """Update the lengths and positions after all layers have appended their keys and values.

    counts_B2  int32, number of patches and of text tokens in each row of the chunk
    """
    num_patches = chunk.patches.shape[1]
    position_BS = chunk.positions if chunk.positions.ndim == 2 else chunk.positions.max(axis=-1)
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
