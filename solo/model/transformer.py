"""A decoder-only transformer over text tokens and raw image patches.

SOLO (arXiv 2407.06438) shares all weights between the modalities; Mono-InternVL (arXiv 2410.08202) gives patches their
own FFN in every layer; EVEv2 (arXiv 2502.06788) separates all norms and projections. `ModelConfig.experts` selects one
of these designs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from solo.batch import Batch
from solo.config import ImageConfig, ModelConfig
from solo.model.attention.dense import dense_weights
from solo.model.declare import normal, set_region
from solo.model.kv_cache import KVCache, of_type, with_type
from solo.model.layer import Context, Layer, hidden_norm
from solo.model.layers import attend_of, each_layer, layer_type, scan_layers, stack_layers
from solo.model.parametrisation import logits_multiplier
from solo.model.patch_embed import EMBEDDERS
from solo.model.placement import Placement
from solo.model.regions import Regions, live_slots
from solo.model.remat import LAYER_INPUT, named
from solo.model.rotary import rotary_angles, spans

_NO_PROBABILITY = -1e30  # finite, so that its product with zero is not NaN


class Output(NamedTuple):
    """The network's output for a batch.

    hidden      final hidden states [B, P, D] and [B, T, D]
    cache       the extended KV cache, if one was given
    auxiliary   float32 [], load-balancing loss of a learned router, mean over the layers; 0 without a router
    probed      outputs of the probe, stacked over layers along the first axis, if one was given
    """

    hidden: Regions
    cache: KVCache | None
    auxiliary: jax.Array
    probed: Any = None


class Transformer(nnx.Module):
    """The transformer. Parameters are float32; the computation runs in `config.compute_dtype`."""

    def __init__(self, config: ModelConfig, image: ImageConfig, vocab_size: int, rngs: nnx.Rngs):
        self.config, self.image, self.vocab_size = config, image, vocab_size
        std, width = config.init_std, config.width
        vocab = padded_vocab(vocab_size, config)
        self.patch_embed = set_region(EMBEDDERS[config.patch_embed.kind](config, image, rngs), "patches")
        self.text_embed = normal(
            rngs, (vocab, width), ("vocab", "embed"), std, "text_embed", "embedding", region="text"
        )
        self.layers = stack_layers(config, rngs)
        self.final_norm = hidden_norm(config)
        head = None
        if not config.tied_head:
            head = normal(rngs, (width, vocab), ("embed", "vocab"), std, "head", "head", region="targets")
        self.head = head

    def hidden(
        self,
        batch: Batch,
        placement: Placement | None = None,
        cache: KVCache | None = None,
        probe: Callable[[Regions], Any] | None = None,
        layers: Sequence[Layer] | None = None,
    ) -> Output:
        """Compute the final hidden states of a batch.

        With a cache, the rows of the batch continue those in the cache: `attend` counts from the first slot of the
        cache, and `positions` from the beginning of the row. `probe` is applied to the hidden states after every layer.
        With `layers`, those are applied one by one, with a cache of separate layers, instead of a scan over this
        model's layers.
        """
        placement, config = placement or Placement(), self.config
        axes = ("rows", "slots", None)
        x = self.embed(batch.patches, batch.patch_grid, batch.text, placement)
        x = x.map(lambda part: placement.constrain(part, axes))
        if layers is not None:
            contexts, auxiliaries = make_contexts(batch, placement, config), []
            for number, layer in enumerate(layers):
                x, cache, auxiliary = layer(x, contexts[layer_type(config, number)], cache, number)
                auxiliaries.append(auxiliary)
            return Output(self.final_norm(x), cache, jnp.stack(auxiliaries).mean())
        # With the same weights for both regions, every product is computed once for both.
        united = placement.unites and cache is None and all(each == "shared" for _, each in config.experts)
        x = Regions.unite(x.join()) if united else x
        contexts = make_contexts(batch, placement, config, united)

        def in_regions(x: Regions) -> Regions:
            return Regions.split(x.join(), batch.patches.shape[1]) if united else x

        def apply(
            kind: str | None, layer: Layer, carry: tuple[Regions, KVCache | None], number: jax.Array
        ) -> tuple[Any, Any]:
            x, cache = carry
            own = None if cache is None else of_type(cache, kind)
            out = layer(named(x, LAYER_INPUT), contexts[kind], own, number)
            x = out.x.map(lambda part: placement.constrain(part, axes))
            cache = None if cache is None or out.cache is None else with_type(cache, kind, out.cache)
            return (x, cache), (out.auxiliary, probe(in_regions(x)) if probe else None)

        (x, cache), (auxiliary, probed) = scan_layers(self.layers, config, apply, (x, cache))
        return Output(in_regions(self.final_norm(x)), cache, auxiliary.mean(), probed)

    def embed(
        self, patches: jax.Array, patch_grid: jax.Array, text_BT: jax.Array, placement: Placement | None = None
    ) -> Regions:
        """Maps pixels [B, P, p*p*3], grid positions [B, P, 2] and token ids [B, T] to hidden states of both regions."""
        dtype, config = jnp.dtype(self.config.compute_dtype), self.config
        x_BPD = self.patch_embed(self.normalise(patches).astype(dtype), patch_grid)
        table = self.text_embed[...]
        # Rounded as in the published code, which keeps the factor in the dtype of the weights.
        scale = 1 if config.embedding_scale == "none" else jnp.asarray(config.width**0.5, dtype)
        if config.patch_embed.token_id is not None:
            x_BPD = x_BPD + table[config.patch_embed.token_id].astype(dtype) * scale
        # If the table is sharded over its width, the looked-up rows are constrained to the same sharding, so that
        # an all-to-all exchanges rows for width. Otherwise the partitioner copies all rows to every device.
        # The cast comes after the lookup, so that a token's gradients are summed in float32.
        x_BTD = (placement or Placement()).constrain(table[text_BT], ("whole_rows", "slots", "embed")).astype(dtype)
        x_BTD = x_BTD if config.embedding_scale == "none" else x_BTD * scale
        if config.frozen_embedding_id is not None:
            frozen = (text_BT == config.frozen_embedding_id)[..., None]
            x_BTD = jnp.where(frozen, jax.lax.stop_gradient(x_BTD), x_BTD)
        return Regions(x_BPD, x_BTD)

    def normalise(self, patches: jax.Array) -> jax.Array:
        """Maps raw uint8 pixels to (value / 255 - mean) / std, float32. Float inputs are already normalised."""
        image = self.image
        if patches.dtype != jnp.uint8:
            return patches
        mean, std = (
            jnp.repeat(jnp.asarray(values, jnp.float32), image.patch_size**2) for values in (image.mean, image.std)
        )
        normalised = (patches.astype(jnp.float32) / 255 - mean) / std
        return normalised.astype(jnp.float16).astype(jnp.float32) if image.stored_as_float16 else normalised

    def head_kernel(self) -> jax.Array:
        """Returns the output projection [D, V], float32."""
        return self.text_embed[...].T if self.head is None else self.head[...]

    def logits(self, x: jax.Array, placement: Placement | None = None, kernel_DV: jax.Array | None = None) -> jax.Array:
        """Maps final hidden states [..., D] to float32 logits [..., V], V padded (`padded_vocab`).

        Padding rows and `appended_rows` have probability zero, so the loss does not depend on them.

        Args:
            x: final hidden states.
            placement: placement of the product on devices.
            kernel_DV: the output projection, if it is already gathered.
        """
        logits = (placement or Placement()).head(x, self.head_kernel() if kernel_DV is None else kernel_DV)
        logits = logits * logits_multiplier(self.config)
        if (cap := self.config.logit_softcap) is not None:
            logits = cap * jnp.tanh(logits / cap)
        predicted = self.vocab_size - self.config.appended_rows
        return jnp.where(np.arange(logits.shape[-1]) < predicted, logits, _NO_PROBABILITY)

    def residual_stream(self, batch: Batch) -> list[Regions]:
        """Returns the L + 1 hidden states before, between and after the layers, on one device, for inspection."""
        contexts = make_contexts(batch, Placement(), self.config)
        found = [self.embed(batch.patches, batch.patch_grid, batch.text)]
        for kind, layer in each_layer(self.layers, self.config):
            found.append(layer(found[-1], contexts[kind]).x)
        return found

    def attention_weights(
        self, batch: Batch, queries_A: jax.Array, layer: jax.Array, placement: Placement | None = None
    ) -> jax.Array:
        """Compute the attention weights of some slots in one layer, for inspection.

        Args:
            batch: B rows.
            queries_A: int32, the slots whose weights are returned; patches come before text.
            layer: int32 [], number of the layer.
            placement: placement of the computation on devices.

        Returns:
            float32 [B, A, H, S], which sum to 1 over S.
        """
        placement = placement or Placement()
        contexts, num_patches = make_contexts(batch, placement, self.config), batch.patches.shape[1]
        shape = (len(batch.text), len(queries_A), self.config.heads, batch.attend.shape[1])

        def apply(
            kind: str | None, of_layer: Layer, carry: tuple[Regions, jax.Array, jax.Array], _: jax.Array
        ) -> tuple[Any, None]:
            (x, kept, number), context = carry, contexts[kind]
            found = []

            def attention(q: Regions, k: Regions, v: Regions) -> Regions:
                chosen = q.join()[:, queries_A], k.join(), attend_of(batch, self.config, kind)[:, queries_A]
                found.append(dense_weights(*chosen, num_patches, self.config.of_type(kind).scale))
                return context.attention(q, k, v)

            x = of_layer(x, context._replace(attention=attention)).x
            return (x, jnp.where(number == layer, found[0], kept), number + 1), None

        x = self.embed(batch.patches, batch.patch_grid, batch.text, placement)
        start = x, jnp.zeros(shape), jnp.zeros((), jnp.int32)
        plain = self.config.model_copy(update={"remat": "none", "scan_layers": True})
        return scan_layers(self.layers, plain, apply, start)[0][1]


def make_contexts(
    batch: Batch, placement: Placement, config: ModelConfig, united: bool = False
) -> dict[str | None, Context]:
    """Returns `make_context` for the layers of each type; the key is None if all layers are alike."""
    return {kind: make_context(batch, placement, config, united, kind) for kind in config.layers_by_type}


def make_context(
    batch: Batch, placement: Placement, config: ModelConfig, united: bool = False, kind: str | None = None
) -> Context:
    """Returns the arguments of every layer of a type for a batch. With `united`, they get both regions as one."""
    attend, config = attend_of(batch, config, kind), config.of_type(kind)
    split = partial(Regions.split, num_patches=batch.patches.shape[1])
    arrange = Regions.unite if united else split
    angles = arrange(rotary_angles(batch.positions, config))
    widths = tuple(span.width for span in spans(config))

    def rotate(x: Regions) -> Regions:
        return x.map(lambda part, angles: placement.rotate(part, angles, widths), angles)

    def attention(q: Regions, k: Regions, v: Regions) -> Regions:
        if united:  # the compiler removes the splits that are joined again
            q, k, v = (split(each.join()) for each in (q, k, v))
        out = placement.attention(q, k, v, attend, config)
        return Regions.unite(out.join()) if united else out

    live = arrange(live_slots(batch.attend))
    return Context(placement.dense, rotate, attention, placement.routed_ffn, live, placement.append)


def padded_vocab(vocab_size: int, config: ModelConfig) -> int:
    """Returns V, the vocabulary size rounded up to `vocab_multiple`. Padding ids are never inputs or targets."""
    return -(-vocab_size // config.vocab_multiple) * config.vocab_multiple
