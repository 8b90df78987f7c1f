"""Decoding settings, and answers from a prefilled KV cache."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from solo.data.text import Tokenizer
from solo.inference.prompt import bucket
from solo.inference.trained import TrainedModel
from solo.model.generate import Generated, Sampling, generate
from solo.model.kv_cache import KVCache
from solo.model.transformer import padded_vocab
from solo.sharding.axes import ROW_AXES


class Answer(NamedTuple):
    """An answer of a model.

    text    the answer without its stop token
    tokens  the generated tokens, including the stop token
    cut     whether the answer was cut off by `max_new_tokens` instead of ending with a stop token
    """

    text: str
    tokens: int
    cut: bool


def check_count(name: str, value: Any) -> None:
    """Raises ValueError if a setting is not a positive integer."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"{name} is {value!r}; it must be an integer")
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")


@dataclass(frozen=True)
class Decoding:
    """Decoding settings. An answer ends at a stop token of its template, or after `max_new_tokens`.

    temperature  0 selects the most likely token; above 0, tokens are sampled from softmax(logits / temperature)
    top_p        sample from the smallest set of most likely tokens whose probabilities sum to at least this
    prefill_chunk_size  the most patches and text tokens of a prompt that are read at once, per row; None reads the
                        whole prompt. An image that attends to all of itself is never split

    Raises:
        ValueError: a setting is out of range or of the wrong type.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    prefill_chunk_size: int | None = None

    def __post_init__(self) -> None:
        check_count("max_new_tokens", self.max_new_tokens)
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.prefill_chunk_size is not None:
            check_count("prefill_chunk_size", self.prefill_chunk_size)

    @property
    def slots(self) -> int:
        """The tokens that an answer has room for: `max_new_tokens` rounded up, so that few numbers are compiled."""
        return bucket(self.max_new_tokens)

    def decode(self, model: TrainedModel, cache: KVCache, logits_BV: jax.Array, keys_B: jax.Array) -> Generated:
        """Continue prefilled rows; see `solo.model.generate.generate`.

        Decoding only stops at the first of the template's `stops`; `answer_length` cuts the row at the others.
        """
        return generate(
            model.definition,
            model.generation.decode,
            model.parameters,
            cache,
            logits_BV,
            keys_B,
            self.sampling(model),
            np.int32(self.max_new_tokens),
            model.layers,
            slots=self.slots,
            greedy=self.temperature == 0,
            sliding_window=model.config.sequence.windows,
        )

    def sampling(self, model: TrainedModel) -> Sampling:
        """Returns the settings as numpy arrays, which are replicated over the devices."""
        definition, stops = model.definition, model.template.stops
        vocab = padded_vocab(definition.vocab_size, definition.config)
        return Sampling(
            temperature=np.float32(self.temperature or 1.0),
            top_p=np.float32(self.top_p),
            allowed=allowed_tokens(model.tokenizer, vocab, stops),
            stop=np.int32(stops[0]),
        )


def row_keys(mesh: Mesh, seed: int, numbers: np.ndarray) -> jax.Array:
    """Returns a PRNG key for each row, from the seed and the row's number, sharded like the rows."""
    return _key_maker(mesh)(np.asarray(jax.random.key_data(jax.random.key(seed))), numbers.astype(np.int32))


@cache
def _key_maker(mesh: Mesh) -> Any:
    def keys(seed: jax.Array, numbers: jax.Array) -> jax.Array:
        return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.wrap_key_data(seed), numbers)

    return jax.jit(keys, out_shardings=NamedSharding(mesh, PartitionSpec(ROW_AXES)))


def allowed_tokens(tokenizer: Tokenizer, padded_size: int, stops: Sequence[int]) -> np.ndarray:
    """Returns bool [V]: the tokens that an answer may contain, which are text and stop tokens."""
    allowed = np.arange(padded_size) < tokenizer.vocab_size
    allowed[list(tokenizer.special_ids)] = False
    allowed[list(stops)] = True
    return allowed


def answer_length(tokens: np.ndarray, stops: Collection[int]) -> int:
    """Returns the number of tokens up to and including the first stop token."""
    ends = np.flatnonzero(np.isin(tokens, list(stops)))
    return int(ends[0]) + 1 if len(ends) else len(tokens)
