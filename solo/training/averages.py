"""Exponential moving averages of the trained weights, in float32, sharded like them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from solo.config import AverageConfig, StageConfig
from solo.model.parameters import Parameters
from solo.training.groups import trainable_paths


class Average(NamedTuple):
    """An average of the weights.

    weights  path -> float32 average; before the first update, the weights themselves
    updates  int32 []: number of updates
    step     int32 []: steps of the run
    """

    weights: Parameters
    updates: jax.Array
    step: jax.Array


def averaged_paths(stages: Iterable[StageConfig], stage: StageConfig, paths: Iterable[str]) -> list[str]:
    """Returns the paths that averages hold in a stage, sorted: those trained in it or in a stage before it.

    All other parameters have not changed since the run began, so their average is their value.
    """
    paths, found = list(paths), set(trainable_paths(paths, stage))
    for before in stages:
        if before.name == stage.name:
            break
        found |= set(trainable_paths(paths, before))
    return sorted(found)


def begin(configs: Mapping[str, AverageConfig], weights: Parameters) -> dict[str, Average]:
    """Returns averages before the first step."""
    zero = jnp.zeros((), jnp.int32)
    # A step donates its state, so no array may occur in it twice.
    return {name: Average({path: jnp.copy(value) for path, value in weights.items()}, zero, zero) for name in configs}


def update(config: AverageConfig, average: Average, weights: Parameters, good: jax.Array) -> Average:
    """Returns an average after a step.

    Args:
        config: config of the average.
        average: the average before the step.
        weights: path -> weights after the step, including the paths of the average.
        good: bool []: whether the step changed the weights.
    """
    step = average.step + 1
    due = good & (step >= config.start_step) & (step % config.every_steps == 0)
    updates = average.updates + due
    # (1 - decay) / (1 - decay ** updates), which loses no digits if the decay is near 1.
    log = jnp.float32(math.log(config.decay) if config.decay else -math.inf)
    share = jnp.where(due, jnp.expm1(log) / jnp.expm1(log * jnp.maximum(updates, 1)), 0.0)

    def moved(mean: jax.Array, value: jax.Array) -> jax.Array:
        # Not (1 - share) * mean + share * value: rounding 1 - share would shift the mean by up to 0.03%.
        return jnp.where(average.updates == 0, value, mean + share * (value - mean))

    return Average({path: moved(mean, weights[path]) for path, mean in average.weights.items()}, updates, step)


def carry(fresh: Mapping[str, Average], before: Mapping[str, Average]) -> dict[str, Average]:
    """Returns the averages with which a stage begins, from its `begin` and the averages of the stage before.

    Parameters that were not trained before start with their value, which is their average so far.
    """
    return {
        name: before[name]._replace(
            weights={path: before[name].weights.get(path, value) for path, value in new.weights.items()}
        )
        if name in before
        else new
        for name, new in fresh.items()
    }
