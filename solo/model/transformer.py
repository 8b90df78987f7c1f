"""One decoder-only transformer over text tokens and raw image patches.

SOLO (arXiv 2407.06438) shares all weights between the modalities; Mono-InternVL (arXiv 2410.08202) gives
patches their own FFN in every layer; EVEv2 (arXiv 2502.06788) their own everything. All are settings of
`ModelConfig.experts`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from solo.batch import Batch
from solo.config import ImageConfig, ModelConfig
from solo.model.attention.interval import interval_attention
from solo.model.attention.kernel import Kernel, local_kernel
from solo.model.declare import normal, set_region
from solo.model.modules import (
    FFN,
    QKV,
    LayerNorm,
    Out,
    PerRegion,
    Project,
    Regions,
    RMSNorm,
    local_project,
    make_norm,
)
from solo.model.moe import Mixture, MoEFFN, local_mixture
from solo.model.parametrisation import logits_multiplier, query_multiplier, residual_multiplier
from solo.model.patch_embed import EMBEDDERS
from solo.model.remat import LAYER_INPUT, PROJECTION, named, rematerialised
from solo.model.rotary import rotary_angles, rotate

_NO_PROBABILITY = -1e30  # finite, so that nothing multiplied by zero becomes NaN


class Attention(Protocol):
    """Attention of the queries of both regions over the keys of both, within the intervals of `attend`."""

    def __call__(self, q: Regions, k: Regions, v: Regions, attend_BS4: jax.Array, config: ModelConfig) -> Regions:
        """Return the heads' outputs, shaped as `q`."""
        ...


def local_attention(q: Regions, k: Regions, v: Regions, attend_BS4: jax.Array, config: ModelConfig) -> Regions:
    """Attention on one device of jax's default platform."""
    return attention_by(local_kernel(config), q, k, v, attend_BS4)


def attention_by(kernel: Kernel, q: Regions, k: Regions, v: Regions, attend_BS4: jax.Array) -> Regions:
    """Attention on one device by one kernel."""
    out = interval_attention(
        q.join(), k.join(), v.join(), attend_BS4, num_patches=k.patches.shape[1], **kernel._asdict()
    )
    return Regions.split(out, q.patches.shape[1])


class Placement(NamedTuple):
    """How a computation is laid over devices; the default is one device and no constraint.

    constrain   (array, logical axes) -> array, pinned to the mesh
    project     products with weights over the mesh
    attention   attention over the mesh
    mixture     learned experts over the mesh
    rotate      rotary positions, as suits the devices
    """

    constrain: Callable[[jax.Array, tuple[str | None, ...]], jax.Array] = lambda x, axes: x
    project: Project = local_project
    attention: Attention = local_attention
    mixture: Mixture = local_mixture
    rotate: Callable[[jax.Array, jax.Array], jax.Array] = rotate


class Memory(NamedTuple):
    """Keys and values of what has been read: [L, B, slots, K, C] in each region, or one layer of it.

    length            int32 [B, 2]      patches and text tokens read so far, per row
    next_position     int32 [B]         rotary position of the text token that comes next
    patch_positions   int32 [B, slots]  rotary positions of the patches read; what a window counts by
    """

    k: Regions
    v: Regions
    length: jax.Array
    next_position: jax.Array
    patch_positions: jax.Array


class Output(NamedTuple):
    """What the network makes of a batch.

    hidden      final hidden states [B, P, D] and [B, T, D]
    memory      the extended memory, where one was given
    auxiliary   float32 [], load-balancing loss of learned experts, mean over the layers; 0 without them
    """

    hidden: Regions
    memory: Memory | None
    auxiliary: jax.Array


class Context(NamedTuple):
    """What every layer is told besides its input.

    placement   how it is laid over devices
    angles      of rotary positions [B, ., R/2]
    live        which slots hold something, bool [B, .]
    attention   the placement's, within the batch's intervals
    """

    placement: Placement
    angles: Regions
    live: Regions
    attention: Callable[[Regions, Regions, Regions], Regions]


class Layer(nnx.Module):
    """x + out(attention(norm x)), then x + ffn(norm x)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        # Residual outputs start smaller, so that the sum over 2 L of them keeps its scale (GPT-2).
        residual_std = config.init_std / (2 * config.layers) ** 0.5
        experts = config.experts
        self.query_multiplier, self.residual_multiplier = query_multiplier(config), residual_multiplier(config)
        self.attention_norm = PerRegion(experts.norms, lambda: _norm(config))
        self.qkv = PerRegion(experts.qkv, lambda: QKV(config, rngs))
        self.out = PerRegion(experts.out, lambda: Out(config, residual_std, rngs))
        self.ffn_norm = PerRegion(experts.norms, lambda: _norm(config))
        self.ffn: PerRegion | MoEFFN
        if experts.ffn == "moe":
            self.ffn = MoEFFN(config, residual_std, rngs)
        else:
            self.ffn = PerRegion(experts.ffn, lambda: FFN(config, residual_std, rngs))

    def __call__(self, x: Regions, context: Context, memory: Memory | None) -> tuple[Regions, Memory | None, jax.Array]:
        """Hidden states [B, ., D] in, the same out, with the layer's part of the memory extended, and its auxiliary."""
        project, rotate = context.placement.project, context.placement.rotate
        qkv = self.qkv.project(self.attention_norm(x), project)
        q, k, v = (Regions(qkv.patches[i], qkv.text[i]) for i in range(3))
        q, k = _times(q, self.query_multiplier).map(rotate, context.angles), k.map(rotate, context.angles)
        q, k, v = (named(part, PROJECTION) for part in (q, k, v))
        if memory is not None:
            memory = _remember(memory, k, v)
            k, v = memory.k, memory.v
        out = named(self.out.project(context.attention(q, k, v), project), PROJECTION)
        x = x.map(jnp.add, _times(out, self.residual_multiplier))
        normed = self.ffn_norm(x)
        auxiliary = jnp.zeros((), jnp.float32)
        if isinstance(self.ffn, MoEFFN):
            out, auxiliary = self.ffn.moe(normed, context.live, context.placement.mixture)
        else:
            out = self.ffn.project(normed, project)
        return x.map(jnp.add, _times(out, self.residual_multiplier)), memory, auxiliary


def _times(x: Regions, factor: float) -> Regions:
    return x if factor == 1 else x.map(lambda part: part * factor)


def _norm(config: ModelConfig) -> RMSNorm | LayerNorm:
    norm = make_norm(config.norm, config.width, config.norm_eps)
    assert norm is not None
    return norm


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
        self.config, self.image, self.vocab_size = config, image, vocab_size
        std, width = config.init_std, config.width
        vocab = padded_vocab(vocab_size, config)
        self.patch_embed = set_region(EMBEDDERS[config.patch_embed.kind](config, image, rngs), "patches")
        self.text_embed = normal(
            rngs, (vocab, width), ("vocab", "embed"), std, "text_embed", "embedding", region="text"
        )

        @nnx.split_rngs(splits=config.layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stack(rngs: nnx.Rngs) -> Layer:
            return Layer(config, rngs)

        self.layers = stack(rngs)
        self.final_norm = _norm(config)
        head = None
        if not config.tied_head:
            head = normal(rngs, (width, vocab), ("embed", "vocab"), std, "head", "head", region="targets")
        self.head = head

    def embed(
        self, patches: jax.Array, patch_grid: jax.Array, text_BT: jax.Array, placement: Placement | None = None
    ) -> Regions:
        """Pixels [B, P, p*p*3], places [B, P, 2] and token ids [B, T] to hidden states [B, P, D], [B, T, D]."""
        dtype, config = jnp.dtype(self.config.compute_dtype), self.config
        x_BPD = self.patch_embed(self.normalise(patches).astype(dtype), patch_grid)
        table = self.text_embed[...]
        if config.patch_embed.token_id is not None:
            x_BPD = x_BPD + table[config.patch_embed.token_id].astype(dtype)
        # Where the table's width is shared out over devices, so is what is looked up: it is then the rows that change
        # places with the width. Left alone, the partitioner copies the rows of all devices to each of them.
        # Cast afterwards: a token's gradients are summed in float32.
        x_BTD = (placement or Placement()).constrain(table[text_BT], ("whole_rows", "slots", "embed")).astype(dtype)
        if config.frozen_embedding_id is not None:
            frozen = (text_BT == config.frozen_embedding_id)[..., None]
            x_BTD = jnp.where(frozen, jax.lax.stop_gradient(x_BTD), x_BTD)
        return Regions(x_BPD, x_BTD)

    def normalise(self, patches: jax.Array) -> jax.Array:
        """Raw pixels, uint8, to (value / 255 - mean) / std, float32. Floats are taken as they are."""
        image = self.image
        if patches.dtype != jnp.uint8:
            return patches
        mean, std = (
            jnp.repeat(jnp.asarray(values, jnp.float32), image.patch_size**2) for values in (image.mean, image.std)
        )
        normalised = (patches.astype(jnp.float32) / 255 - mean) / std
        return normalised.astype(jnp.float16).astype(jnp.float32) if image.stored_as_float16 else normalised

    def hidden(self, batch: Batch, placement: Placement | None = None, memory: Memory | None = None) -> Output:
        """Read a batch.

        With a memory, the batch's rows continue what each row has read: `attend` counts from the first slot
        the memory holds, `positions` go on from there.
        """
        placement, config = placement or Placement(), self.config
        axes = ("rows", "slots", None)
        embedded = self.embed(batch.patches, batch.patch_grid, batch.text, placement)
        x = embedded.map(lambda part: placement.constrain(part, axes))
        context = self._context(batch, placement)
        graph, stacked = nnx.split(self.layers)

        def apply(x: Regions, scanned: tuple[Any, Any]) -> tuple[Regions, Any]:
            state, cached = scanned
            of_layer = None if memory is None else memory._replace(k=cached[0], v=cached[1])
            x, extended, auxiliary = nnx.merge(graph, state)(named(x, LAYER_INPUT), context, of_layer)
            x = x.map(lambda part: placement.constrain(part, axes))
            return x, (None if extended is None else (extended.k, extended.v), auxiliary)

        cached = None if memory is None else (memory.k, memory.v)
        x, (extended, auxiliary) = jax.lax.scan(
            rematerialised(apply, config), x, (stacked, cached), unroll=1 if config.scan_layers else config.layers
        )
        read = None if memory is None else memory._replace(k=extended[0], v=extended[1])
        return Output(x.map(self.final_norm), read, auxiliary.mean())

    def residual_stream(self, batch: Batch) -> list[Regions]:
        """Hidden states before the first layer and behind each, L + 1 of them, on one device: for looking at them."""
        context = self._context(batch, Placement())
        graph, stacked = nnx.split(self.layers)
        found = [self.embed(batch.patches, batch.patch_grid, batch.text)]
        for number in range(self.config.layers):
            layer = nnx.merge(graph, jax.tree.map(lambda leaf, number=number: leaf[number], stacked))
            found.append(layer(found[-1], context, None)[0])
        return found

    def _context(self, batch: Batch, placement: Placement) -> Context:
        num_patches = batch.patches.shape[1]

        def attention(q: Regions, k: Regions, v: Regions) -> Regions:
            return placement.attention(q, k, v, batch.attend, self.config)

        angles = Regions.split(rotary_angles(batch.positions, self.config), num_patches)
        return Context(placement, angles, Regions.split(live_slots(batch.attend), num_patches), attention)

    def head_kernel(self) -> jax.Array:
        """The output projection [D, V], float32."""
        return self.text_embed[...].T if self.head is None else self.head[...]

    def logits(self, x: jax.Array) -> jax.Array:
        """Final hidden states [..., D] to float32 logits [..., V], V padded (`padded_vocab`).

        Padding has no probability: a vocabulary that is padded gives the loss of one that is not.
        """
        logits = jnp.matmul(x, self.head_kernel().astype(x.dtype), preferred_element_type=jnp.float32)
        logits = logits * logits_multiplier(self.config)
        return jnp.where(np.arange(logits.shape[-1]) < self.vocab_size, logits, _NO_PROBABILITY)


def live_slots(attend_BS4: Any) -> Any:
    """bool [B, S]: slots that hold something; an empty one sees nothing."""
    return (attend_BS4[..., 1] > attend_BS4[..., 0]) | (attend_BS4[..., 3] > attend_BS4[..., 2])


def padded_vocab(vocab_size: int, config: ModelConfig) -> int:
    """V: the tokenizer's size, rounded up to `vocab_multiple`. Padding ids never occur as inputs or targets."""
    return -(-vocab_size // config.vocab_multiple) * config.vocab_multiple
