"""How answers are written: the settings of `Monolith.generate` and `Session.say`, checked once."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from solo.data.tokenizer import SpecialTokens, Tokenizer
from solo.model.generate import Generated, Sampling, generate
from solo.model.parameters import ModelDefinition, Parameters
from solo.model.transformer import Memory, padded_vocab


@dataclass(frozen=True)
class Decoding:
    """An answer ends at `</s>`, or after `max_new_tokens`.

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
        memory: Memory,
        logits_BV: jax.Array,
        keys_B: jax.Array,
    ) -> Generated:
        """Continue rows that were read; see `solo.model.generate.generate`."""
        greedy = self.temperature == 0
        sampling = Sampling(
            temperature=jnp.float32(1.0 if greedy else self.temperature),
            top_p=jnp.float32(self.top_p),
            allowed=jnp.asarray(allowed_tokens(tokenizer, padded_vocab(definition.vocab_size, definition.config))),
            stop=jnp.int32(tokenizer.special.eos),
        )
        return generate(
            definition,
            parameters,
            memory,
            logits_BV,
            keys_B,
            sampling,
            max_new_tokens=self.max_new_tokens,
            greedy=greedy,
        )


def allowed_tokens(tokenizer: Tokenizer, padded_size: int) -> np.ndarray:
    """bool [V]: what an answer may hold: text and `</s>`, but no other special token and no padding of V."""
    allowed = np.arange(padded_size) < tokenizer.vocab_size
    allowed[[getattr(tokenizer.special, name) for name in SpecialTokens.__slots__]] = False
    allowed[tokenizer.special.eos] = True
    return allowed
