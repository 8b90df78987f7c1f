"""One decoder-only transformer over text tokens and raw image patches.

SOLO (arXiv 2407.06438) shares all weights between the modalities; Mono-InternVL (arXiv 2410.08202) gives
patches their own FFN in every layer. Both are settings of `ModelConfig.experts`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from solo.batch import Batch
from solo.config import ImageConfig, ModelConfig
from solo.model.attention import SAVED, interval_attention
from solo.model.modules import QKV, Out, PerRegion, Regions, RMSNorm, SwiGLU, normal, rotary_angles, rotate


class Attention(Protocol):
    """Attention of the queries of both regions over the keys of both, within the intervals of `attend`."""

    def __call__(self, q: Regions, k: Regions, v: Regions, attend_BS4: jax.Array, config: ModelConfig) -> Regions:
        """Return the heads' outputs, shaped as `q`."""
        ...


def local_attention(q: Regions, k: Regions, v: Regions, attend_BS4: jax.Array, config: ModelConfig) -> Regions:
    """Attention on one device."""
    out = interval_attention(
        q.join(),
        k.join(),
        v.join(),
        attend_BS4,
        num_patches=k.patches.shape[1],
        implementation=config.attention,
        block=config.attention_block,
    )
    return Regions.split(out, q.patches.shape[1])


class Placement(NamedTuple):
    """How a computation is laid over devices; the default is one device and no constraint.

    constrain   (array, logical axes) -> array, pinned to the mesh
    attention   attention over the mesh
    """

    constrain: Callable[[jax.Array, tuple[str | None, ...]], jax.Array] = lambda x, axes: x
    attention: Attention = local_attention


class Memory(NamedTuple):
    """Keys and values of what has been read: [L, B, slots, K, C] in each region, or one layer of it.

    length   int32 [B, 2]   patches and text tokens read so far, per row
    """

    k: Regions
    v: Regions
    length: jax.Array


class Layer(nnx.Module):
    """x + out(attention(norm x)), then x + ffn(norm x)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        dim, std = config.dim_per_head, config.init_std
        # Residual outputs start smaller, so that the sum over 2 L of them keeps its scale (GPT-2).
        residual_std = std / (2 * config.layers) ** 0.5
        experts = config.experts
        self.attention_norm = PerRegion(experts.norms, lambda: RMSNorm(config.width, config.norm_eps))
        self.qkv = PerRegion(experts.qkv, lambda: QKV(config.width, config.heads, config.kv_heads, dim, std, rngs))
        self.out = PerRegion(experts.out, lambda: Out(config.width, config.heads, dim, residual_std, rngs))
        self.ffn_norm = PerRegion(experts.norms, lambda: RMSNorm(config.width, config.norm_eps))
        self.ffn = PerRegion(experts.ffn, lambda: SwiGLU(config.width, config.ffn_width, std, residual_std, rngs))

    def __call__(
        self, x: Regions, angles: Regions, attention: Callable[..., Regions], memory: Memory | None
    ) -> tuple[Regions, Memory | None]:
        """Hidden states [B, ., D] in, the same out, with the layer's part of the memory extended."""
        qkv = self.qkv(self.attention_norm(x))
        q, k, v = (Regions(qkv.patches[i], qkv.text[i]) for i in range(3))
        q, k = q.map(rotate, angles), k.map(rotate, angles)
        if memory is not None:
            memory = _remember(memory, k, v)
            k, v = memory.k, memory.v
        x = x.map(jnp.add, self.out(attention(q, k, v)))
        return x.map(jnp.add, self.ffn(self.ffn_norm(x))), memory


def _remember(memory: Memory, k: Regions, v: Regions) -> Memory:
    """Write new keys and values behind what each row has read. What does not fit is dropped by the scatter."""

    def write(old: jax.Array, new: jax.Array, start_B: jax.Array) -> jax.Array:
        rows = jnp.arange(old.shape[0])[:, None]
        return old.at[rows, start_B[:, None] + jnp.arange(new.shape[1])].set(new.astype(old.dtype), mode="drop")

    starts = Regions(memory.length[:, 0], memory.length[:, 1])
    return memory._replace(k=memory.k.map(write, k, starts), v=memory.v.map(write, v, starts))


class Transformer(nnx.Module):
    """The whole network. Parameters are float32; the computation runs in `config.compute_dtype`."""

    def __init__(self, config: ModelConfig, image: ImageConfig, vocab_size: int, rngs: nnx.Rngs):
        self.config, self.image = config, image
        std, width, pixels = config.init_std, config.width, image.patch_size**2 * 3
        vocab = padded_vocab(vocab_size, config)
        self.patch_embed = normal(rngs, (pixels, width), ("pixels", "embed"), std)
        self.patch_bias = nnx.Param(jnp.zeros((width,)), axes=("norm",)) if config.patch_embed.bias else None
        self.patch_token = normal(rngs, (width,), ("norm",), std) if config.patch_embed.token_id else None
        self.text_embed = normal(rngs, (vocab, width), ("vocab", "embed"), std)

        @nnx.split_rngs(splits=config.layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stack(rngs: nnx.Rngs) -> Layer:
            return Layer(config, rngs)

        self.layers = stack(rngs)
        self.final_norm = RMSNorm(width, config.norm_eps)
        self.head = None if config.tied_head else normal(rngs, (width, vocab), ("embed", "vocab"), std)

    def embed(self, patches: jax.Array, text_BT: jax.Array) -> Regions:
        """Raw pixels uint8 [B, P, p*p*3] and token ids [B, T] to hidden states [B, P, D], [B, T, D]."""
        dtype = jnp.dtype(self.config.compute_dtype)
        per_channel = self.image.patch_size**2
        mean = jnp.repeat(jnp.asarray(self.image.mean, jnp.float32), per_channel)
        std = jnp.repeat(jnp.asarray(self.image.std, jnp.float32), per_channel)
        pixels = ((patches.astype(jnp.float32) / 255 - mean) / std).astype(dtype)
        x_BPD = pixels @ self.patch_embed[...].astype(dtype)
        for extra in (self.patch_bias, self.patch_token):
            if extra is not None:
                x_BPD = x_BPD + extra[...].astype(dtype)
        return Regions(x_BPD, self.text_embed[...].astype(dtype)[text_BT])

    def hidden(
        self, batch: Batch, placement: Placement | None = None, memory: Memory | None = None
    ) -> tuple[Regions, Memory | None]:
        """Final hidden states of a batch, [B, P, D] and [B, T, D], and the extended memory where one is given.

        With a memory, the batch's rows continue what each row has read: `attend` counts from the first slot
        the memory holds, `positions` go on from there.
        """
        placement, config = placement or Placement(), self.config
        num_patches = batch.patches.shape[1]
        axes = ("rows", "slots", None)
        x = self.embed(batch.patches, batch.text).map(lambda part: placement.constrain(part, axes))
        angles = Regions.split(rotary_angles(batch.positions, config.dim_per_head, config.rope_theta), num_patches)
        graph, stacked = nnx.split(self.layers)

        def attention(q: Regions, k: Regions, v: Regions) -> Regions:
            return placement.attention(q, k, v, batch.attend, config)

        def apply(x: Regions, scanned: tuple[Any, Any]) -> tuple[Regions, Any]:
            state, cached = scanned
            of_layer = None if memory is None else memory._replace(k=cached[0], v=cached[1])
            x, extended = nnx.merge(graph, state)(x, angles, attention, of_layer)
            x = x.map(lambda part: placement.constrain(part, axes))
            return x, None if extended is None else (extended.k, extended.v)

        cached = None if memory is None else (memory.k, memory.v)
        x, extended = jax.lax.scan(
            _remat(apply, config), x, (stacked, cached), unroll=1 if config.scan_layers else config.layers
        )
        x = x.map(self.final_norm)
        return x, None if memory is None else memory._replace(k=extended[0], v=extended[1])

    def head_kernel(self) -> jax.Array:
        """The output projection [D, V], float32."""
        return self.text_embed[...].T if self.head is None else self.head[...]

    def logits(self, x: jax.Array) -> jax.Array:
        """Final hidden states [..., D] to float32 logits [..., V], V padded (`padded_vocab`)."""
        return jnp.matmul(x, self.head_kernel().astype(x.dtype), preferred_element_type=jnp.float32)


def padded_vocab(vocab_size: int, config: ModelConfig) -> int:
    """V: the tokenizer's pieces, rounded up to `vocab_multiple`. Padding ids never occur as inputs or targets."""
    return -(-vocab_size // config.vocab_multiple) * config.vocab_multiple


def _remat(function: Callable[..., Any], config: ModelConfig) -> Callable[..., Any]:
    if config.remat == "none":
        return function
    # Attention's output is small and dear: always kept.
    policy = jax.checkpoint_policies.save_only_these_names(SAVED)
    if config.remat == "dots":
        dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        policy = jax.checkpoint_policies.save_from_both_policies(policy, dots)
    # The scan is a barrier already, so the one against common-subexpression elimination would only cost.
    return jax.checkpoint(function, prevent_cse=not config.scan_layers, policy=policy)
