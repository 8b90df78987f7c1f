"""The learning rate: a pure function of the state's step."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from solo.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, num_steps: int, step: jax.Array) -> jax.Array:
    """Returns the learning rate of step 0, 1, ... of a stage of `num_steps`.

    Warm-up is linear: the first step's rate is peak / warmup_steps, and step `warmup_steps` - 1 has the peak. With
    `start_at_zero` the schedule runs one step late, as Megatron's does: the first rate is 0, and the last step does not
    reach the final one.
    """
    peak, final = config.learning_rate, config.learning_rate * config.final_fraction
    step = step.astype(jnp.float32) - config.start_at_zero
    decay = num_steps - config.warmup_steps
    if config.schedule == "wsd":
        decay = min(decay, config.decay_steps or max(1, num_steps // 5))
    done = jnp.clip((step + 1 - (num_steps - decay)) / max(decay, 1), 0.0, 1.0)
    if config.schedule == "constant":
        rate = jnp.full_like(step, peak)
    elif config.schedule == "cosine":
        rate = final + (peak - final) * 0.5 * (1 + jnp.cos(jnp.pi * done))
    else:
        rate = final + (peak - final) * (1 - done)
    return rate * jnp.minimum(1.0, (step + 1) / max(config.warmup_steps, 1))
