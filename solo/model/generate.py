"""Generation that reads everything once: keys and values of what was read are kept (`Memory`).

Pure functions of arrays. Reading takes chunks of any shape, generating takes one token at a time; a patch is
always in the patch region and a token in the text region, so each meets its own weights, in every turn.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from solo.batch import Batch
from solo.config import ModelConfig
from solo.model.attention.interval import interval_attention
from solo.model.modules import Regions
from solo.model.parameters import ModelDefinition, Parameters
from solo.model.transformer import Memory, Placement


class Sampling(NamedTuple):
    """How a token is drawn from the logits.

    temperature  float32 []   divides the logits; not used where decoding is greedy
    top_p        float32 []   draw from the fewest tokens whose probabilities reach this sum (arXiv 1904.09751)
    allowed      bool [V]     tokens that may be drawn
    stop         int32 []     the token that ends a row
    """

    temperature: jax.Array
    top_p: jax.Array
    allowed: jax.Array
    stop: jax.Array


class Generated(NamedTuple):
    """What `generate` wrote.

    tokens   int32 [B, N]   a row's tokens, the stop token included; stop tokens behind its end
    lengths  int32 [B]      tokens of a row, the stop token included
    memory   holds all of a row's tokens but the last, which nothing has read yet
    """

    tokens: jax.Array
    lengths: jax.Array
    memory: Memory


def empty_memory(definition: ModelDefinition, rows: int, patch_slots: int, text_slots: int) -> Memory:
    """A memory with room for so many patches and text tokens per row, in the model's compute dtype."""
    config = definition.config

    def zeros(slots: int) -> jax.Array:
        shape = (config.layers, rows, slots, config.kv_heads, config.dim_per_head)
        return jnp.zeros(shape, config.compute_dtype)

    keys, values = (Regions(zeros(patch_slots), zeros(text_slots)) for _ in range(2))
    count, next_position, patch_positions = (
        jnp.zeros(shape, jnp.int32) for shape in ((rows, 2), (rows,), (rows, patch_slots))
    )
    return Memory(keys, values, count, next_position, patch_positions)


def enlarge(memory: Memory, patch_slots: int, text_slots: int) -> Memory:
    """The same memory with room for at least so many patches and text tokens per row."""

    def grow(kept: jax.Array, slots: int) -> jax.Array:
        missing = max(0, slots - kept.shape[2])
        return jnp.pad(kept, ((0, 0), (0, 0), (0, missing), (0, 0), (0, 0)))

    room = Regions(patch_slots, text_slots)
    missing = max(0, patch_slots - memory.patch_positions.shape[1])
    return memory._replace(
        k=memory.k.map(grow, room),
        v=memory.v.map(grow, room),
        patch_positions=jnp.pad(memory.patch_positions, ((0, 0), (0, missing))),
    )


@partial(jax.jit, static_argnames=("definition", "where"), donate_argnames="memory")
def read(
    definition: ModelDefinition,
    where: Placement,
    parameters: Parameters,
    memory: Memory,
    chunk: Batch,
    counts_B2: jax.Array,
) -> tuple[Memory, jax.Array]:
    """Read what follows in each row.

    Args:
        definition: the model.
        where: how the computation is laid over devices.
        parameters: the model's values.
        memory: what the rows have read; its buffers are reused. There must be room: what does not fit is lost.
        chunk: B rows, real patches and tokens first in their regions. `attend` and `positions` count from the
            beginning of the row, not of the chunk.
        counts_B2: int32, real patches and text tokens of each row.

    Returns:
        The memory, and float32 logits [B, V] after each row's last text token (V padded).
    """
    return _read(definition, where, parameters, memory, chunk, counts_B2)


@partial(
    jax.jit, static_argnames=("definition", "max_new_tokens", "greedy", "sliding_window"), donate_argnames="memory"
)
def generate(
    definition: ModelDefinition,
    parameters: Parameters,
    memory: Memory,
    logits_BV: jax.Array,
    keys_B: jax.Array,
    sampling: Sampling,
    *,
    max_new_tokens: int,
    greedy: bool,
    sliding_window: int | None = None,
) -> Generated:
    """Continue every row until it stops, or for `max_new_tokens` >= 1 tokens.

    Args:
        definition: the model.
        parameters: its values.
        memory: what the rows have read, with room for `max_new_tokens` - 1 text tokens; its buffers are reused.
        logits_BV: float32, of each row's first new token, as `read` gives them.
        keys_B: a PRNG key per row: what a row draws does not depend on its neighbours.
        sampling: which tokens may come, and how they are drawn.
        max_new_tokens: N.
        greedy: always take the likeliest token.
        sliding_window: slots that a token sees, itself included, as in `SequenceConfig`; None: all.
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

    def advance(state: tuple[jax.Array, Generated]) -> tuple[jax.Array, Generated]:
        live_B, (tokens_BN, lengths_B, memory) = state
        number = lengths_B.max()
        memory, logits_BV = _read(
            definition,
            _ONE_QUERY,
            parameters,
            memory,
            _one_token(definition, sliding_window, memory, tokens_BN[:, number - 1]),
            jnp.stack([jnp.zeros_like(lengths_B), live_B.astype(jnp.int32)], axis=1),
        )
        token_B = jnp.where(live_B, pick(logits_BV, number), sampling.stop)
        written = Generated(tokens_BN.at[:, number].set(token_B), lengths_B + live_B, memory)
        return live_B & (token_B != sampling.stop), written

    token_B = pick(logits_BV, jnp.zeros((), jnp.int32))
    tokens_BN = jnp.full((rows, max_new_tokens), sampling.stop, jnp.int32).at[:, 0].set(token_B)
    start = Generated(tokens_BN, jnp.ones((rows,), jnp.int32), memory)
    _, written = jax.lax.while_loop(unfinished, advance, (token_B != sampling.stop, start))
    return written


def _read(
    definition: ModelDefinition,
    where: Placement,
    parameters: Parameters,
    memory: Memory,
    chunk: Batch,
    counts_B2: jax.Array,
) -> tuple[Memory, jax.Array]:
    model = definition.bind(parameters)
    hidden, extended, _ = model.hidden(chunk, where, memory)
    assert extended is not None
    last_B1 = jnp.maximum(counts_B2[:, 1:] - 1, 0)
    last_BD = jnp.take_along_axis(hidden.text, last_B1[..., None], axis=1)[:, 0]
    return _note_positions(extended, chunk, counts_B2), model.logits(last_BD)


def _note_positions(memory: Memory, chunk: Batch, counts_B2: jax.Array) -> Memory:
    """Count what was read: lengths, where the next text token stands, and where the patches stand."""
    num_patches = chunk.patches.shape[1]
    place_BS = chunk.positions if chunk.positions.ndim == 2 else chunk.positions.max(axis=-1)
    real_BS = jnp.concatenate(
        [jnp.arange(num_patches) < counts_B2[:, :1], jnp.arange(chunk.text.shape[1]) < counts_B2[:, 1:]], axis=1
    )
    behind_B = jnp.max(jnp.where(real_BS, place_BS + 1, 0), axis=1, initial=0)
    rows = jnp.arange(len(counts_B2))[:, None]
    columns = memory.length[:, :1] + jnp.arange(num_patches)
    return memory._replace(
        length=memory.length + counts_B2,
        next_position=jnp.maximum(memory.next_position, behind_B),
        patch_positions=memory.patch_positions.at[rows, columns].set(place_BS[:, :num_patches], mode="drop"),
    )


def _one_query_attention(q: Regions, k: Regions, v: Regions, attend_BS4: jax.Array, config: ModelConfig) -> Regions:
    """The block kernel would fill a whole block of queries with one."""
    out = interval_attention(
        q.join(), k.join(), v.join(), attend_BS4, num_patches=k.patches.shape[1], implementation="dense"
    )
    return Regions.split(out, q.patches.shape[1])


_ONE_QUERY = Placement(attention=_one_query_attention)


def _one_token(definition: ModelDefinition, sliding_window: int | None, memory: Memory, token_B: jax.Array) -> Batch:
    """The next text token of every row; it sees itself and its row's slots within the sliding window."""
    rows = token_B.shape[0]
    patches_B, text_B = memory.length[:, 0], memory.length[:, 1]
    hidden_patches_B = hidden_text_B = jnp.zeros_like(text_B)
    if sliding_window is not None:
        # The window counts in reading order: of the slots before it, so many are patches, the rest is text.
        before_B = jnp.maximum(memory.next_position + 1 - sliding_window, 0)
        read_BP = jnp.arange(memory.patch_positions.shape[1]) < patches_B[:, None]
        hidden_patches_B = jnp.sum(read_BP & (memory.patch_positions < before_B[:, None]), axis=1)
        hidden_text_B = before_B - hidden_patches_B
    positions_B1 = memory.next_position[:, None]
    nothing = jnp.zeros((rows, 0), jnp.int32)
    return Batch(
        patches=jnp.zeros((rows, 0, definition.image.patch_size**2 * 3), jnp.uint8),
        patch_grid=jnp.zeros((rows, 0, 2), jnp.int32),
        text=token_B[:, None],
        positions=positions_B1 if definition.config.rope_sections is None else jnp.stack([positions_B1] * 3, axis=-1),
        attend=jnp.stack([hidden_patches_B, patches_B, hidden_text_B, text_B + 1], axis=-1)[:, None],
        target_slots=nothing,
        target_ids=nothing,
        target_weights=nothing.astype(jnp.float32),
        target_source=nothing,
    )


def _draw(logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling) -> jax.Array:
    """A token per row, int32 [B], from the nucleus of the distribution at this temperature."""
    logits_BV = logits_BV / sampling.temperature
    descending_BV = -jnp.sort(-logits_BV, axis=-1)
    probabilities_BV = jax.nn.softmax(descending_BV, axis=-1)
    before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
    # The likeliest token always stays, also where top_p is so small that rounding would lose it.
    stays_BV = (before_BV < sampling.top_p).at[:, 0].set(True)
    least_B1 = jnp.min(jnp.where(stays_BV, descending_BV, jnp.inf), axis=-1, keepdims=True)
    nucleus_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys_B, nucleus_BV).astype(jnp.int32)
