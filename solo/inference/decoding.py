"""How answers are written: the settings of `Monolith.generate` and `Session.say`, checked once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from solo.data.text import Tokenizer
from solo.data.text.templates import Template
from solo.model.generate import Generated, Sampling, generate
from solo.model.kv_cache import KVCache
from solo.model.parameters import ModelDefinition, Parameters
from solo.model.transformer import padded_vocab


@dataclass(frozen=True)
class Decoding:
    """An answer ends where its template says, or after `max_new_tokens`.

    temperature  0 takes the likeliest token; above, tokens are drawn from softmax(logits / temperature)
    top_p        draw from the fewest tokens whose probabilities reach this sum

    Raises:
        ValueError: a setting is out of range.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")

    def write(
        self,
        definition: ModelDefinition,
        parameters: Parameters,
        tokenizer: Tokenizer,
        template: Template,
        cache: KVCache,
        logits_BV: jax.Array,
        keys_B: jax.Array,
        sliding_window: int | None,
    ) -> Generated:
        """Continue rows that were read; see `solo.model.generate.generate`. `sliding_window` is as in `SequenceConfig`.

        It stops at the first of the template's `stops` alone: what a row holds behind another one is cut off by
        `answer_length`.
        """
        greedy = self.temperature == 0
        sampling = Sampling(
            temperature=jnp.float32(1.0 if greedy else self.temperature),
            top_p=jnp.float32(self.top_p),
            allowed=jnp.asarray(
                allowed_tokens(tokenizer, padded_vocab(definition.vocab_size, definition.config), template.stops)
            ),
            stop=jnp.int32(template.stops[0]),
        )
        return generate(
            definition,
            parameters,
            cache,
            logits_BV,
            keys_B,
            sampling,
            max_new_tokens=self.max_new_tokens,
            greedy=greedy,
            sliding_window=sliding_window,
        )


def allowed_tokens(tokenizer: Tokenizer, padded_size: int, stops: Sequence[int]) -> np.ndarray:
    """bool [V]: what an answer may hold: text and what ends it, but no other special token and no padding of V."""
    allowed = np.arange(padded_size) < tokenizer.vocab_size
    allowed[list(tokenizer.special_ids)] = False
    allowed[list(stops)] = True
    return allowed


def answer_length(tokens: np.ndarray, stops: Collection[int]) -> int:
    """How many of the tokens are the answer: up to the first that ends it, which counts."""
    ends = np.flatnonzero(np.isin(tokens, list(stops)))
    return int(ends[0]) + 1 if len(ends) else len(tokens)
