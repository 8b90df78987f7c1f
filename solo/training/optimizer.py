"""AdamW over the trainable parameters only: schedules, weight-decay mask, per-component learning rates."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from solo.config import ConfigError, ModelConfig, OptimizerConfig, StageConfig
from solo.model.declare import ParameterSpec
from solo.model.parameters import Parameters
from solo.model.parametrisation import eps_scale, step_scale


def trainable_paths(paths: Iterable[str], stage: StageConfig) -> list[str]:
    """Returns the paths that a stage trains, sorted. Raises ConfigError if a glob matches none."""
    paths = list(paths)
    chosen: set[str] = set()
    for pattern in stage.train:
        chosen |= set(_match(pattern, paths, f"stage {stage.name!r}, train"))
    return sorted(chosen)


def rate_scales(paths: Iterable[str], stage: StageConfig) -> dict[str, float]:
    """Returns the learning rate factor of every path; the last matching glob applies."""
    paths = list(paths)
    scales = dict.fromkeys(paths, 1.0)
    for pattern, factor in stage.learning_rate_scale.items():
        scales |= dict.fromkeys(_match(pattern, paths, f"stage {stage.name!r}, learning_rate_scale"), factor)
    return scales


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


def decays(spec: ParameterSpec, kind: Literal["matrices", "matrices_and_embeddings", "all"]) -> bool:
    """Returns whether weight decay applies to a parameter; see `OptimizerConfig.weight_decay_mask`."""
    return kind == "all" or spec.is_matrix or (kind == "matrices_and_embeddings" and spec.role == "embedding")


def make_optimizer(
    config: OptimizerConfig, specs: Mapping[str, ParameterSpec], model: ModelConfig, *, carries: bool = False
) -> optax.GradientTransformation:
    """Returns AdamW's update direction; the caller multiplies it by minus the learning rate.

    Gradients are first clipped by their global norm over the trainable parameters. Step sizes and eps follow the
    model's parametrisation. With `carries`, every parameter has its own Adam count, so that `carry_state` can mix
    parameters with different step counts.
    """
    mask = {path: decays(spec, config.weight_decay_mask) for path, spec in specs.items()}
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.eps)
    if carries:
        adam = _one_by_one(adam)
    if model.parametrisation.kind != "standard":
        # Adam on gradients divided by s is Adam with eps times s.
        clip = optax.chain(clip, _times({path: 1 / eps_scale(spec, model) for path, spec in specs.items()}))
        adam = optax.chain(adam, _times({path: step_scale(spec, model) for path, spec in specs.items()}))
    return optax.chain(
        clip,
        adam,
        optax.add_decayed_weights(config.weight_decay, lambda tree: {path: mask[path] for path in tree}),
    )


def _times(factors: Mapping[str, float]) -> optax.GradientTransformation:
    return optax.stateless(lambda tree, _: {path: value * factors[path] for path, value in tree.items()})


def _one_by_one(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns the same transformation with a count, and thus a bias correction, for each parameter."""

    def init(parameters: Parameters) -> optax.ScaleByAdamState:
        state = adam.init(parameters)
        return state._replace(count=dict.fromkeys(parameters, state.count))

    def update(
        gradients: Parameters, state: optax.ScaleByAdamState, parameters: Parameters | None = None
    ) -> tuple[Parameters, optax.ScaleByAdamState]:
        found = {
            path: adam.update(gradient, optax.ScaleByAdamState(state.count[path], state.mu[path], state.nu[path]))
            for path, gradient in gradients.items()
        }
        directions = {path: direction for path, (direction, _) in found.items()}
        return directions, optax.ScaleByAdamState(
            *({path: new[field] for path, (_, new) in found.items()} for field in range(3))
        )

    return optax.GradientTransformation(init, update)


def carry_state(fresh: optax.OptState, previous: optax.OptState) -> optax.OptState:
    """Carries Adam's moments and counts over to a new stage, for the parameters that the previous stage trained.

    Args:
        fresh: the new stage's initial state, of an optimizer made with `carries`.
        previous: the state that the previous stage ended with.

    Returns:
        `fresh`, in which parameters trained before keep their moments and count. The others start at zero with
        count 0: their bias correction is that of a first step.
    """
    (old,) = (node for node in jax.tree.leaves(previous, is_leaf=_is_adam) if _is_adam(node))
    if not isinstance(old.count, Mapping):
        # Each count needs its own buffer, because a step donates them all.
        old = old._replace(count={path: jnp.copy(old.count) for path in old.mu})

    def carry(node: Any) -> Any:
        if not _is_adam(node):
            return node
        return optax.ScaleByAdamState(
            *(
                {path: jax.device_put(before.get(path, leaf), leaf.sharding) for path, leaf in now.items()}
                for now, before in zip(node, old, strict=True)
            )
        )

    return jax.tree.map(carry, fresh, is_leaf=_is_adam)


def _is_adam(node: Any) -> bool:
    return isinstance(node, optax.ScaleByAdamState)


def subset(parameters: Parameters, paths: Iterable[str]) -> Parameters:
    """Returns the parameters at these paths."""
    return {path: parameters[path] for path in paths}


def _match(pattern: str, paths: list[str], where: str) -> list[str]:
    # A component's name stands for all of its parameters: patch_embed is patch_embed/*.
    found = [path for path in paths if fnmatch.fnmatch(path, pattern) or fnmatch.fnmatch(path, f"{pattern}/*")]
    if not found:
        raise ConfigError(f"{where}: {pattern!r} matches no parameter; parameters are {', '.join(paths)}")
    return found
