"""The learning rate: a pure function of the state, over the steps or the tokens of a stage."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from solo.batch import Batch
from solo.config import OptimizerConfig, StageConfig
from solo.model.regions import live_slots

_LIMB = 30


class TokenCount(NamedTuple):
    """A count of tokens, high * 2^30 + low, int32 [] each: exact up to 2^61."""

    high: jax.Array
    low: jax.Array

    def add(self, tokens: jax.Array) -> TokenCount:
        """Adds int32 [], less than 2^30."""
        low = self.low + tokens
        return TokenCount(self.high + (low >> _LIMB), low & (2**_LIMB - 1))

    def since(self, start: int) -> jax.Array:
        """Returns the number of tokens after the first `start`, float32 []. The exact difference is rounded once."""
        high, low = self.high - (start >> _LIMB), self.low - (start & (2**_LIMB - 1))
        return high.astype(jnp.float32) * 2.0**_LIMB + low.astype(jnp.float32)


def no_tokens() -> TokenCount:
    """Returns a count of zero."""
    return TokenCount(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def tokens_of(batch: Batch) -> jax.Array:
    """Returns the patches and text tokens of a batch, int32 []."""
    return live_slots(batch.attend).sum(dtype=jnp.int32)


def learning_rate(config: OptimizerConfig, num_steps: int, step: jax.Array) -> jax.Array:
    """Returns the learning rate of step 0, 1, ... of a stage of `num_steps`.

    Warm-up is linear: the first step's rate is peak / warmup_steps, and step `warmup_steps` - 1 has the peak. With
    `start_at_zero` the schedule is one step late, as in Megatron: the first rate is 0, and the last step does not reach
    the final rate.
    """
    step = step.astype(jnp.float32) - config.start_at_zero
    decay = _decay(config, num_steps, config.warmup_steps, config.decay_steps)
    if config.schedule == "inverse_sqrt":
        return _inverse_sqrt(config, (step + 1) / config.warmup_steps)
    done = jnp.clip((step + 1 - (num_steps - decay)) / max(decay, 1), 0.0, 1.0)
    return _decayed(config, done) * jnp.minimum(1.0, (step + 1) / max(config.warmup_steps, 1))


def learning_rate_over_tokens(
    config: OptimizerConfig, num_tokens: int, before: TokenCount, after: TokenCount
) -> jax.Array:
    """Returns the learning rate of a step of a stage of `num_tokens`.

    The schedule is the same as over steps, but counts tokens: the rate of a step is that of its last token, or with
    `start_at_zero` that of the last token before it. Beyond `num_tokens`, the rate is the final one.

    Args:
        config: the schedule, with `warmup_tokens` and `decay_tokens`.
        num_tokens: length of the stage.
        before: tokens of the stage before the step.
        after: tokens of the stage including the step.
    """
    count, warmup = before if config.start_at_zero else after, config.warmup_tokens or 0
    decay = _decay(config, num_tokens, warmup, config.decay_tokens)
    if config.schedule == "inverse_sqrt":
        return _inverse_sqrt(config, count.since(0) / float(warmup))
    done = jnp.clip(count.since(num_tokens - decay) / float(max(decay, 1)), 0.0, 1.0)
    return _decayed(config, done) * jnp.minimum(1.0, count.since(0) / float(max(warmup, 1)))


def _decay(config: OptimizerConfig, length: int, warmup: int, decay: int | None) -> int:
    """Returns the length of the decay, at the end of a stage."""
    rest = length - warmup
    return min(rest, decay or max(1, length // 5)) if config.schedule == "wsd" else rest


def _inverse_sqrt(config: OptimizerConfig, warmups: jax.Array) -> jax.Array:
    """Returns the rate after a number of times the warm-up."""
    return config.learning_rate * jnp.minimum(warmups, jax.lax.rsqrt(jnp.maximum(warmups, 1.0)))


def _decayed(config: OptimizerConfig, done: jax.Array) -> jax.Array:
    """Returns the rate after a share of the decay, without the warm-up."""
    peak, final = config.learning_rate, config.learning_rate * config.final_fraction
    if config.schedule == "constant":
        return jnp.full_like(done, peak)
    if config.schedule == "cosine":
        return final + (peak - final) * 0.5 * (1 + jnp.cos(jnp.pi * done))
    if config.decay_shape == "1-sqrt":
        return final + (peak - final) * (1 - jnp.sqrt(done))
    return final + (peak - final) * (1 - done)


def schedule_notes(stage: StageConfig, num_steps: int) -> list[str]:
    """Returns notes about the schedule of a stage that the user should know before training."""
    config, where = stage.optimizer, f"stage {stage.name}"
    if config.schedule in ("constant", "inverse_sqrt") and config.final_fraction != 0.1:
        unused = f"{where}: final_fraction is not used, because schedule {config.schedule} does not end at a fraction"
        return [unused, *_length_notes(stage, num_steps)]
    return _length_notes(stage, num_steps)


def _length_notes(stage: StageConfig, num_steps: int) -> list[str]:
    config, where = stage.optimizer, f"stage {stage.name}"
    unit, length, warmup, decay = "steps", num_steps, config.warmup_steps, config.decay_steps
    if stage.tokens is not None:
        unit, length, warmup, decay = "tokens", stage.tokens, config.warmup_tokens or 0, config.decay_tokens
    if warmup > length:
        reached = config.learning_rate * length / warmup
        return [
            f"{where}: the warm-up of {warmup:,} {unit} is longer than the stage, which has {length:,}: the learning"
            f" rate reaches {reached:.3g} of its peak of {config.learning_rate:.3g}"
        ]
    if config.schedule == "wsd" and decay is not None and decay > length - warmup:
        return [
            f"{where}: the decay of {decay:,} {unit} is shortened to the {length - warmup:,} that the warm-up of"
            f" {warmup:,} leaves of the stage's {length:,}"
        ]
    return []
