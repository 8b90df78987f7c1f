"""AdamW over the trainable parameters only: schedules, weight-decay mask, per-component learning rates."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from solo.config import ConfigError, ModelConfig, OptimizerConfig, StageConfig
from solo.model.parameters import Parameters, ParameterSpec
from solo.model.parametrisation import eps_scale, step_scale


def trainable_paths(paths: Iterable[str], stage: StageConfig) -> list[str]:
    """The parameters a stage trains. Raises ConfigError where a glob matches none."""
    paths = list(paths)
    chosen: set[str] = set()
    for pattern in stage.train:
        chosen |= set(_match(pattern, paths, f"stage {stage.name!r}, train"))
    return sorted(chosen)


def rate_scales(paths: Iterable[str], stage: StageConfig) -> dict[str, float]:
    """Factor on the learning rate of every path; the last glob that matches counts."""
    paths = list(paths)
    scales = dict.fromkeys(paths, 1.0)
    for pattern, factor in stage.learning_rate_scale.items():
        scales |= dict.fromkeys(_match(pattern, paths, f"stage {stage.name!r}, learning_rate_scale"), factor)
    return scales


def learning_rate(config: OptimizerConfig, num_steps: int, step: jax.Array) -> jax.Array:
    """Learning rate of step 0, 1, ... of a stage of `num_steps`. Warm-up reaches the peak at `warmup_steps`.

    The first step's rate is peak / warmup_steps, not 0: a step that does nothing helps nobody. `start_at_zero` is
    Megatron's count, where it is 0 and the last step's is not yet the final one (solo.md 2.1).
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


def decays(path: str, spec: ParameterSpec, kind: Literal["matrices", "matrices_and_embeddings", "all"]) -> bool:
    """Whether weight decay applies to a parameter; see `OptimizerConfig.weight_decay_mask`."""
    if kind == "all":
        return True
    is_matrix = len(spec.axes) - spec.axes.count("layers") > 1 and not path.endswith("bias")
    is_embedding = path in ("text_embed", "patch_embed/positions")
    return is_matrix and (kind == "matrices_and_embeddings" or not is_embedding)


def make_optimizer(
    config: OptimizerConfig, specs: Mapping[str, ParameterSpec], model: ModelConfig
) -> optax.GradientTransformation:
    """AdamW's direction; the caller multiplies it by minus the learning rate.

    Gradients are clipped by their global norm first, over the trainable parameters. Steps and eps follow the
    model's parametrisation.
    """
    mask = {path: decays(path, spec, config.weight_decay_mask) for path, spec in specs.items()}
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.eps)
    if model.parametrisation.kind != "standard":
        # Adam on gradients divided by s is Adam with eps times s.
        clip = optax.chain(clip, _times({path: 1 / eps_scale(path, spec.axes, model) for path, spec in specs.items()}))
        adam = optax.chain(adam, _times({path: step_scale(path, spec.axes, model) for path, spec in specs.items()}))
    return optax.chain(
        clip,
        adam,
        optax.add_decayed_weights(config.weight_decay, lambda tree: {path: mask[path] for path in tree}),
    )


def _times(factors: Mapping[str, float]) -> optax.GradientTransformation:
    return optax.stateless(lambda tree, _: {path: value * factors[path] for path, value in tree.items()})


def carry_state(fresh: optax.OptState, previous: optax.OptState) -> optax.OptState:
    """A new stage's optimizer state with the moments, by path, and the counts that the previous stage ended with."""
    key = jax.tree_util.keystr
    old = {key(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(previous)}

    def take(path: tuple[object, ...], leaf: jax.Array) -> jax.Array:
        return jax.device_put(old[key(path)], leaf.sharding) if key(path) in old else leaf

    return jax.tree_util.tree_map_with_path(take, fresh)


def subset(parameters: Parameters, paths: Iterable[str]) -> Parameters:
    """The parameters at these paths."""
    return {path: parameters[path] for path in paths}


def _match(pattern: str, paths: list[str], where: str) -> list[str]:
    # A component's name takes all of it: patch_embed is patch_embed/*.
    found = [path for path in paths if fnmatch.fnmatch(path, pattern) or fnmatch.fnmatch(path, f"{pattern}/*")]
    if not found:
        raise ConfigError(f"{where}: {pattern!r} matches no parameter; there are {', '.join(paths)}")
    return found
