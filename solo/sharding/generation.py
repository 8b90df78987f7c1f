"""The model's operations for generation on a mesh, and the sharding of the KV cache."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from solo.config import ModelConfig
from solo.model.attention.kernel import choose_kernel
from solo.model.by_layer import joined, separate_head
from solo.model.kv_cache import KVCache, append, empty_cache
from solo.model.moe import ExpertWeights, Load
from solo.model.placement import Attention, Generating, attention_with, one_query_attention
from solo.model.regions import Regions
from solo.sharding.mesh import TABLE
from solo.sharding.placement import all_slots, placement, routed_ffn_on
from solo.sharding.stationary import stationary_dense_on, stationary_head_on

# A cache's keys or values [L, B, K, slots, C].
_CACHED = PartitionSpec(None, TABLE["rows"], TABLE["kv_heads"])


@cache
def generation(mesh: Mesh, config: ModelConfig) -> Generating:
    """Returns the operations of generation on a mesh.

    The parameters are sharded as in training. The KV cache is sharded over rows and key heads, and replicated over
    context. Prefill shards the slots of the prompts over context and gathers the weights of each layer. Decoding leaves
    the weights in place (`solo.sharding.stationary`) and is replicated over context. One CPU device has separate layers
    (`solo.model.by_layer`).

    Raises:
        ConfigError: see `placement`.
    """
    training = placement(mesh, config)
    device = mesh.devices.flat[0]
    if mesh.size == 1:
        decode = Generating().decode._replace(rotate=training.rotate)
        if device.platform != "cpu":
            return Generating(training, decode)
        prefill = training._replace(dense=joined(training.dense), head=separate_head)
        return Generating(prefill, decode._replace(head=separate_head), separate_layers=True)
    kernel = choose_kernel(config, device.platform, device.device_kind)

    def experts(x: Regions, live: Regions, weights: ExpertWeights, top_k: int) -> tuple[Regions, Load]:
        return routed_ffn_on(mesh, x, live, weights, top_k, None)

    common = training._replace(head=partial(stationary_head_on, mesh))
    return Generating(
        common._replace(
            attention=partial(_cached_attention_on, mesh, partial(attention_with, kernel), TABLE["slots"]),
            append=partial(_append_on, mesh, TABLE["slots"]),
        ),
        common._replace(
            dense=partial(stationary_dense_on, mesh),
            attention=partial(_cached_attention_on, mesh, one_query_attention, None),
            routed_ffn=experts,
            append=partial(_append_on, mesh, None),
        ),
    )


def cache_shardings(mesh: Mesh) -> KVCache:
    """Returns the shardings of a KV cache: rows over the row axes, key heads over tensor."""
    rows = NamedSharding(mesh, PartitionSpec(TABLE["rows"]))
    heads = NamedSharding(mesh, _CACHED)
    return KVCache(Regions(heads, heads), Regions(heads, heads), rows, rows, rows)


def make_cache(mesh: Mesh, config: ModelConfig, rows: int, patch_slots: int, text_slots: int) -> KVCache:
    """Returns an empty KV cache on the mesh; see `empty_cache`. `rows` are a multiple of the mesh's row shards."""
    return _cache_maker(mesh, config)(rows, patch_slots, text_slots)


@cache
def _cache_maker(mesh: Mesh, config: ModelConfig) -> Any:
    separate = generation(mesh, config).separate_layers
    shardings = cache_shardings(mesh) if not separate else NamedSharding(mesh, PartitionSpec())
    make = partial(empty_cache, config, separate_layers=separate)
    return jax.jit(make, static_argnums=(0, 1, 2), out_shardings=shardings)


def _cached_attention_on(
    mesh: Mesh,
    attention: Attention,
    slots: tuple[str, ...] | None,
    q: Regions,
    k: Regions,
    v: Regions,
    attend_BS4: jax.Array,
    config: ModelConfig,
) -> Regions:
    """Computes attention of each device's rows, heads and `slots` over all cached keys of the row."""
    queries = PartitionSpec(TABLE["rows"], slots, TABLE["heads"])
    keys = PartitionSpec(TABLE["rows"], None, TABLE["kv_heads"])
    spans = PartitionSpec(TABLE["rows"], slots)
    intervals = Regions.split(attend_BS4, q.patches.shape[1])
    return jax.shard_map(
        lambda q, k, v, intervals: attention(q, k, v, intervals.join(), config),
        mesh=mesh,
        in_specs=(Regions(queries, queries), Regions(keys, keys), Regions(keys, keys), Regions(spans, spans)),
        out_specs=Regions(queries, queries),
        check_vma=False,
    )(q, k, v, intervals)


def _append_on(
    mesh: Mesh, slots: tuple[str, ...] | None, cache: KVCache, layer: jax.Array, k: Regions, v: Regions
) -> KVCache:
    """`append` on each device for its rows and key heads, after gathering the new keys over `slots`."""
    new = PartitionSpec(TABLE["rows"], slots, TABLE["kv_heads"])
    rows = PartitionSpec(TABLE["rows"])
    cached = KVCache(Regions(_CACHED, _CACHED), Regions(_CACHED, _CACHED), rows, rows, rows)

    def local(cache: KVCache, layer: jax.Array, k: Regions, v: Regions) -> KVCache:
        if slots and mesh.shape["context"] > 1:
            k, v = all_slots(k, slots), all_slots(v, slots)
        return append(cache, layer, k, v)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(cached, PartitionSpec(), Regions(new, new), Regions(new, new)),
        out_specs=cached,
        check_vma=False,
    )(cache, layer, k, v)
