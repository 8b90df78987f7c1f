"""Generation with a KV cache: prefill a batch of prompts, then decode token by token.

All functions are pure. A prefill takes chunks of any shape. On one CPU device, `solo.model.by_layer` prefills, and
decoding takes the parameters of each layer. Patches are always in the patch region and text tokens in
the text region, so each modality uses its own weights in every turn.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from solo.batch import TEXT_AXES, Batch
from solo.model.kv_cache import KVCache, advance
from solo.model.layers import layer_type
from solo.model.parameters import ModelDefinition, Parameters
from solo.model.placement import Placement

# A sliding window, or one for each type of layers (`SequenceConfig.windows`).
Windows = int | tuple[int | None, ...] | None


class Sampling(NamedTuple):
    """Settings for sampling a token from the logits.

    temperature  float32 []   divides the logits; ignored by greedy decoding
    top_p        float32 []   nucleus sampling: the smallest set of tokens whose probabilities reach this sum
                              (arXiv 1904.09751)
    allowed      bool [V]     tokens that may be drawn
    stop         int32 []     the token that ends a row
    """

    temperature: Any
    top_p: Any
    allowed: Any
    stop: Any


class Generated(NamedTuple):
    """The output of `generate`.

    tokens   int32 [B, N]   tokens of each row, including the stop token; padded with stop tokens; N is `slots`
    lengths  int32 [B]      number of tokens of each row, including the stop token
    cache    KV cache with all tokens of a row but the last, which has not been an input yet
    """

    tokens: jax.Array
    lengths: jax.Array
    cache: KVCache


@partial(jax.jit, static_argnames=("definition", "where"), donate_argnames="cache")
def prefill(
    definition: ModelDefinition,
    where: Placement,
    parameters: Parameters,
    cache: KVCache,
    chunk: Batch,
    counts_B2: jax.Array,
) -> tuple[KVCache, jax.Array]:
    """Read the next chunk of each row into the cache.

    Args:
        definition: the model.
        where: placement of the computation on devices.
        parameters: the model's values.
        cache: keys and values of earlier chunks. Its buffers are donated. Keys that do not fit are dropped.
        chunk: B rows, with padding at the end of each region. `attend` and `positions` count from the beginning of the
            row, not of the chunk.
        counts_B2: int32, number of patches and of text tokens in each row of the chunk.

    Returns:
        The extended cache, and float32 logits [B, V] after the last text token of each row (V padded).
    """
    return _forward(definition, where, parameters, cache, chunk, counts_B2)


@partial(
    jax.jit,
    static_argnames=("definition", "where", "slots", "greedy", "sliding_window"),
    donate_argnames="cache",
)
def generate(
    definition: ModelDefinition,
    where: Placement,
    parameters: Parameters,
    cache: KVCache,
    logits_BV: jax.Array,
    keys_B: jax.Array,
    sampling: Sampling,
    max_new_tokens: jax.Array,
    layers: tuple[Parameters, ...] | None = None,
    *,
    slots: int,
    greedy: bool,
    sliding_window: Windows = None,
) -> Generated:
    """Decode every row until it stops, or for `max_new_tokens` >= 1 tokens. Compiled once for each number of slots.

    Args:
        definition: the model.
        where: placement of the computation on devices (`Generating.decode`).
        parameters: the model's values.
        cache: keys and values of the prompts, with room for `max_new_tokens` text tokens. Its buffers are donated.
        logits_BV: float32 logits of the first new token of each row, as `prefill` returns them.
        keys_B: a PRNG key per row, so that samples do not depend on the other rows of the batch.
        sampling: which tokens are allowed, and how they are drawn.
        max_new_tokens: int32 [], at most `slots`.
        layers: the parameters of each layer (`solo.model.by_layer.split_layers`), if the cache has separate layers.
        slots: N, the tokens that a row has room for.
        greedy: always take the most likely token.
        sliding_window: see `SequenceConfig.windows`.
    """
    rows = logits_BV.shape[0]

    def pick(logits_BV: jax.Array, number: jax.Array) -> jax.Array:
        logits_BV = jnp.where(sampling.allowed, logits_BV, -jnp.inf)
        if greedy:
            return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)
        return _draw(logits_BV, keys, sampling)

    def unfinished(state: tuple[jax.Array, Generated]) -> jax.Array:
        live_B, written = state
        return live_B.any() & (written.lengths.max() < max_new_tokens)

    def decode(state: tuple[jax.Array, Generated]) -> tuple[jax.Array, Generated]:
        live_B, (tokens_BN, lengths_B, cache) = state
        number = lengths_B.max()
        cache, logits_BV = _forward(
            definition,
            where,
            parameters,
            cache,
            _one_token(definition, sliding_window, cache, tokens_BN[:, number - 1]),
            jnp.stack([jnp.zeros_like(lengths_B), live_B.astype(jnp.int32)], axis=1),
            layers,
        )
        token_B = jnp.where(live_B, pick(logits_BV, number), sampling.stop)
        written = Generated(tokens_BN.at[:, number].set(token_B), lengths_B + live_B, cache)
        return live_B & (token_B != sampling.stop), written

    token_B = pick(logits_BV, jnp.zeros((), jnp.int32))
    tokens_BN = jnp.full((rows, slots), sampling.stop, jnp.int32).at[:, 0].set(token_B)
    start = Generated(tokens_BN, jnp.ones((rows,), jnp.int32), cache)
    _, written = jax.lax.while_loop(unfinished, decode, (token_B != sampling.stop, start))
    return written


@partial(jax.jit, static_argnames=("definition", "where", "sliding_window"), donate_argnames="cache")
def decode_token(
    definition: ModelDefinition,
    where: Placement,
    parameters: Parameters,
    cache: KVCache,
    token_B: jax.Array,
    layers: tuple[Parameters, ...] | None = None,
    *,
    sliding_window: Windows = None,
) -> tuple[KVCache, jax.Array]:
    """Read one token of each row, int32 [B], into the cache. Returns the cache and the next token's logits [B, V]."""
    counts_B2 = jnp.stack([jnp.zeros_like(token_B), jnp.ones_like(token_B)], axis=1)
    chunk = _one_token(definition, sliding_window, cache, token_B)
    return _forward(definition, where, parameters, cache, chunk, counts_B2, layers)


def _forward(
    definition: ModelDefinition,
    where: Placement,
    parameters: Parameters,
    cache: KVCache,
    chunk: Batch,
    counts_B2: jax.Array,
    layers: tuple[Parameters, ...] | None = None,
) -> tuple[KVCache, jax.Array]:
    model = definition.bind(parameters)
    bound = None
    if layers is not None:
        bound = [definition.bind_layer(each, layer_type(definition.config, at)) for at, each in enumerate(layers)]
    output = model.hidden(chunk, where, cache, layers=bound)
    hidden, extended = output.hidden, output.cache
    assert extended is not None
    last_B1 = jnp.maximum(counts_B2[:, 1:] - 1, 0)
    last_BD = jnp.take_along_axis(hidden.text, last_B1[..., None], axis=1)[:, 0]
    logits_BV = where.constrain(model.logits(where.constrain(last_BD, ("rows", None)), where), ("rows", None))
    return advance(extended, chunk, counts_B2, definition.config), logits_BV


def _one_token(definition: ModelDefinition, sliding_window: Windows, cache: KVCache, token_B: jax.Array) -> Batch:
    """Returns a batch with one text token per row, which attends to itself and its row within the sliding window."""
    rows = token_B.shape[0]
    if isinstance(sliding_window, tuple):
        attend = jnp.stack([_span(cache, window) for window in sliding_window], axis=1)
    else:
        attend = _span(cache, sliding_window)
    axes, positions_B1 = TEXT_AXES[definition.config.positions], cache.next_position[:, None]
    nothing = jnp.zeros((rows, 0), jnp.int32)
    return Batch(
        patches=jnp.zeros((rows, 0, definition.image.patch_size**2 * 3), jnp.uint8),
        patch_grid=jnp.zeros((rows, 0, 2), jnp.int32),
        text=token_B[:, None],
        positions=positions_B1 if axes is None else positions_B1[..., None] * jnp.array(axes),
        attend=attend[:, None],
        target_slots=nothing,
        target_ids=nothing,
        target_weights=nothing.astype(jnp.float32),
        target_source=nothing,
    )


def _span(cache: KVCache, sliding_window: int | None) -> jax.Array:
    """Returns what the next text token of each row attends to, int32 [B, 4]."""
    patches_B, text_B = cache.length[:, 0], cache.length[:, 1]
    hidden_patches_B = hidden_text_B = jnp.zeros_like(text_B)
    if sliding_window is not None:
        # The window counts positions in reading order, so it covers patches as well as text.
        before_B = jnp.maximum(cache.next_position + 1 - sliding_window, 0)
        read_BP = jnp.arange(cache.patch_positions.shape[1]) < patches_B[:, None]
        hidden_patches_B = jnp.sum(read_BP & (cache.patch_positions < before_B[:, None]), axis=1)
        hidden_text_B = before_B - hidden_patches_B
    return jnp.stack([hidden_patches_B, patches_B, hidden_text_B, text_B + 1], axis=-1)


def _draw(logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling) -> jax.Array:
    """Sample a token per row, int32 [B], with temperature and top-p."""
    logits_BV = logits_BV / sampling.temperature
    descending_BV = -jnp.sort(-logits_BV, axis=-1)
    probabilities_BV = jax.nn.softmax(descending_BV, axis=-1)
    before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
    # Always keep the most likely token, even if top_p rounds to 0.
    stays_BV = (before_BV < sampling.top_p).at[:, 0].set(True)
    least_B1 = jnp.min(jnp.where(stays_BV, descending_BV, jnp.inf), axis=-1, keepdims=True)
    nucleus_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys_B, nucleus_BV).astype(jnp.int32)
