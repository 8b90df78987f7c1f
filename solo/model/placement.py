"""The operations that depend on the devices, for one device. `solo.sharding.placement` has those for a mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from solo.config import ModelConfig
from solo.model.attention.interval import interval_attention
from solo.model.attention.kernel import Kernel, local_kernel
from solo.model.attention.one_query import attend_once
from solo.model.dense import Dense, dense
from solo.model.kv_cache import KVCache, append
from solo.model.moe import RoutedFFN, routed_ffn
from solo.model.regions import Regions
from solo.model.rotary import rotate


class Attention(Protocol):
    """Attention of the queries of both regions over the keys of both, within the intervals of `attend`."""

    def __call__(self, q: Regions, k: Regions, v: Regions, attend_BS4: jax.Array, config: ModelConfig) -> Regions:
        """Return the heads' outputs: of as many heads as `q`, as wide as `v`."""
        ...


def local_attention(q: Regions, k: Regions, v: Regions, attend_BS4: jax.Array, config: ModelConfig) -> Regions:
    """Computes attention on one device of JAX's default platform."""
    return attention_with(local_kernel(config), q, k, v, attend_BS4, config)


def attention_with(
    kernel: Kernel, q: Regions, k: Regions, v: Regions, attend_BS4: jax.Array, config: ModelConfig
) -> Regions:
    """Computes attention on one device with a given kernel."""
    out = interval_attention(
        q.join(), k.join(), v.join(), attend_BS4,
        num_patches=k.patches.shape[1], scale=config.scale, **kernel._asdict(),
    )  # fmt: skip
    return Regions.split(out, q.patches.shape[1])


def one_query_attention(q: Regions, k: Regions, v: Regions, attend_BS4: jax.Array, config: ModelConfig) -> Regions:
    """Computes attention of one text token of each row on one device. A tiled kernel would compute a whole block."""
    no_patches = q.patches[..., : config.dim_per_value]  # of no slots
    return Regions(no_patches, attend_once(q.text, k, v, attend_BS4, config.scale))


def head_product(x: jax.Array, kernel_DV: jax.Array) -> jax.Array:
    """Multiplies hidden states [..., D] by the output projection on one device. Returns float32 [..., V]."""
    return jnp.matmul(x, kernel_DV.astype(x.dtype), preferred_element_type=jnp.float32)


class WithHead(Protocol):
    """Calls a function of hidden states, ids and the output projection (`Placement.with_head`)."""

    def __call__(
        self,
        function: Callable[[jax.Array, jax.Array, jax.Array], Any],
        x_BYD: jax.Array,
        ids_BY: jax.Array,
        kernel_DV: jax.Array,
        /,
    ) -> Any:
        """Return the function's arrays [B, Y]."""
        ...


def called_once(
    function: Callable[[jax.Array, jax.Array, jax.Array], Any],
    x_BYD: jax.Array,
    ids_BY: jax.Array,
    kernel_DV: jax.Array,
) -> Any:
    """Calls the function with whole arrays."""
    return function(x_BYD, ids_BY, kernel_DV)


class Placement(NamedTuple):
    """The operations that depend on the devices. The defaults are for one device.

    constrain   (array, logical axes) -> array, sharded over the mesh
    dense       multiplies by weights
    attention   computes attention
    routed_ffn  computes a mixture of experts
    rotate      applies rotary positions, (x [B, ., H, C], angles, widths of the rotated spans) -> the same shape
    append      writes a layer's new keys and values into the KV cache
    head        multiplies hidden states by the output projection
    with_head   calls a function of (x [B, Y, D], ids [B, Y], output projection [D, V]) that treats all slots alike:
                once, or on every device with its slots and the whole projection
    unites      whether both regions may be one array in layers that treat them alike; False where the slots of each
                region are sharded
    row_shards    number of devices that the rows of `with_head`'s function are sharded over
    vocab_shards  number of devices that its projection is sharded over
    """

    constrain: Callable[[jax.Array, tuple[str | None, ...]], jax.Array] = lambda x, axes: x
    dense: Dense = dense
    attention: Attention = local_attention
    routed_ffn: RoutedFFN = routed_ffn
    rotate: Callable[[jax.Array, jax.Array, tuple[int, ...]], jax.Array] = rotate
    append: Callable[[KVCache, Any, Regions, Regions], KVCache] = append
    head: Callable[[jax.Array, jax.Array], jax.Array] = head_product
    with_head: WithHead = called_once
    unites: bool = True
    row_shards: int = 1
    vocab_shards: int = 1


class Generating(NamedTuple):
    """The placements for generation. The defaults are for one device.

    prefill          for prompts, with many slots per row
    decode           for one new token per row
    separate_layers  whether each layer has its own arrays of weights and of cached keys and values; see
                     `solo.model.by_layer`
    """

    prefill: Placement = Placement()
    decode: Placement = Placement(attention=one_query_attention)
    separate_layers: bool = False
