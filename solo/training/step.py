"""A training step: loss and gradients over micro-batches, a check, an update. Pure, and jitted once per stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from solo.batch import Batch
from solo.chips import OptionValue
from solo.config import AverageConfig, SafetyConfig, StageConfig
from solo.model.parameters import ModelDefinition, Parameters
from solo.sharding.axes import rows_per_shard
from solo.sharding.compiling import compiler_options
from solo.sharding.mesh import batch_shardings, parameter_shardings, shardings_like
from solo.sharding.placement import training_placement
from solo.training.averages import Average, begin, update
from solo.training.evaluators import TRAINED
from solo.training.groups import rate_scales, trainable_paths, trained_layers
from solo.training.losses import Measured, batch_loss, normalised_weights
from solo.training.norms import norms_if
from solo.training.optimizer import make_optimizer, subset
from solo.training.schedule import TokenCount, learning_rate, learning_rate_over_tokens, no_tokens, tokens_of

MEAN_DECAY = 0.98


class Health(NamedTuple):
    """State of the check for bad losses. It is on the devices and in checkpoints, so that runs resume exactly.

    mean      float32 []  running mean of good losses
    good      int32 []    good steps in this stage
    bad_run   int32 []    bad steps since the last good one
    """

    mean: jax.Array
    good: jax.Array
    bad_run: jax.Array


class TrainState(NamedTuple):
    """Trainable and frozen parameters, optimizer state, and `step`, the stage's step count, int32 [].

    `averages` holds averages of the weights by name.
    `tokens` counts the stage's tokens; it is empty unless the stage's schedule is over tokens.
    """

    trainable: Parameters
    frozen: Parameters
    optimizer: Any
    health: Health
    step: jax.Array
    averages: Mapping[str, Average] = {}
    tokens: TokenCount | tuple[()] = ()

    @property
    def parameters(self) -> Parameters:
        """All parameters by path."""
        return dict(sorted({**self.trainable, **self.frozen}.items()))

    @property
    def weights(self) -> dict[str, Parameters]:
        """All parameters by path, by the name of the weights: `TRAINED`, and every average."""
        trained = self.parameters
        return {TRAINED: trained, **{name: {**trained, **each.weights} for name, each in self.averages.items()}}


class Stage(NamedTuple):
    """A stage ready to run on a mesh.

    step       (TrainState, Batch) -> (TrainState, Measured), jitted; it donates the state. Measured holds what the
               loss terms report, `loss`, `grad_norm`, `learning_rate`, `applied` (whether the update was applied),
               and `bad_run` (consecutive bad steps); on request `norms`, see `solo.training.norms`
    start      Parameters -> TrainState with a fresh optimizer state, jitted
    abstract   the TrainState as `jax.ShapeDtypeStruct` with shardings, to restore checkpoints onto
    """

    step: Any
    start: Callable[[Parameters], TrainState]
    abstract: TrainState


def loss_and_grads(
    definition: ModelDefinition,
    stage: StageConfig,
    where: Any,
    trainable: Parameters,
    frozen: Parameters,
    batch: Batch,
) -> tuple[tuple[jax.Array, Measured], Parameters]:
    """Returns (objective, measured) and the gradients of the trainable parameters.

    The batch is split into A = `stage.accumulate` micro-batches. Micro-batch a takes rows a, a + A, a + 2A, ..., so
    that no row moves to another device.
    """
    batch = batch._replace(target_weights=normalised_weights(batch.target_weights, stage.loss))

    def loss(trainable: Parameters, micro: Batch) -> tuple[jax.Array, tuple[jax.Array, Measured]]:
        found = batch_loss(
            definition,
            where,
            {**trainable, **frozen},
            micro,
            stage.loss,
            sources=stage.sources,
            share=1 / stage.accumulate,
        )
        return found[0], found

    gradient = jax.grad(loss, has_aux=True)
    if stage.accumulate == 1:
        grads, found = gradient(trainable, batch)
        return found, grads

    def add(total: tuple[Any, Any], micro: Batch) -> tuple[tuple[Any, Any], None]:
        return jax.tree.map(jnp.add, total, gradient(trainable, micro)), None

    micro_batches = jax.tree.map(lambda x: x.reshape(-1, stage.accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
    shapes = jax.eval_shape(gradient, trainable, jax.tree.map(lambda x: x[0], micro_batches))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (grads, found), _ = jax.lax.scan(add, zeros, micro_batches)
    return found, grads


def make_stage(
    definition: ModelDefinition,
    stage: StageConfig,
    num_steps: int,
    safety: SafetyConfig,
    mesh: Mesh,
    options: Mapping[str, OptionValue | None] | None = None,
    averages: Mapping[str, AverageConfig] | None = None,
    averaged: Sequence[str] | None = None,
    norms_every_steps: int | None = None,
) -> Stage:
    """Builds a stage's step.

    Args:
        definition: the model.
        stage: the stage's config.
        num_steps: number of steps of the stage.
        safety: criteria for bad steps.
        mesh: the devices.
        options: the config's `compiler_options`.
        averages: the averages of the weights.
        averaged: paths of the averaged parameters; default: those that the stage trains.
        norms_every_steps: as in the config's `watch`; default: norms are not measured.

    Raises:
        ConfigError: the stage does not fit the model or the mesh.
    """
    specs = definition.specs
    trained = trainable_paths(specs, stage)
    frozen = sorted(set(specs) - set(trained))
    scales, layers = rate_scales(specs, stage), trained_layers(specs, stage)
    optimizer = make_optimizer(
        stage.optimizer, specs, definition.config, carries=stage.optimizer_state == "carry", mesh=mesh
    )
    where = training_placement(mesh, definition.config)
    rows_per_shard(stage, mesh.shape)

    def start(parameters: Parameters) -> TrainState:
        zero = jnp.zeros((), jnp.int32)
        trainable = subset(parameters, trained)
        health = Health(jnp.zeros((), jnp.float32), zero, zero)
        means = begin(averages or {}, subset(parameters, trained if averaged is None else averaged))
        return TrainState(
            trainable,
            subset(parameters, frozen),
            optimizer.init(trainable),
            health,
            zero,
            averages=means,
            tokens=() if stage.tokens is None else no_tokens(),
        )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Measured]:
        (loss, measured), grads = loss_and_grads(definition, stage, where, state.trainable, state.frozen, batch)
        grads = _in_layers(grads, layers)
        grad_norm = optax.global_norm(grads)
        directions, optimizer_state = optimizer.update(grads, state.optimizer, state.trainable)
        directions = _in_layers(directions, layers)  # without weight decay where nothing is trained
        rate, tokens = _rate(stage, num_steps, state, batch)
        updated = {path: value - rate * scales[path] * directions[path] for path, value in state.trainable.items()}
        ok = _is_good(loss, grad_norm, state.health, safety)
        # A bad step only changes the step counts.
        trainable, optimizer_state = jax.tree.map(
            lambda new, old: jnp.where(ok, new, old),
            (updated, optimizer_state),
            (state.trainable, state.optimizer),
        )
        health = _next_health(loss, ok, state.health)
        measured = {"loss": loss, **measured, "grad_norm": grad_norm, "learning_rate": rate}
        measured |= {"applied": ok, "bad_run": health.bad_run}
        if norms_every_steps is not None:
            updates = {path: rate * scales[path] * direction for path, direction in directions.items()}
            due = (state.step + 1) % norms_every_steps == 0
            measured["norms"] = norms_if(due, specs, grads, updates, state.trainable)
        weights = {**state.frozen, **trainable}
        means = {name: update(each, state.averages[name], weights, ok) for name, each in (averages or {}).items()}
        after = TrainState(trainable, state.frozen, optimizer_state, health, state.step + 1, means, tokens)
        return after, measured

    by_path = parameter_shardings(specs, mesh)
    abstract = jax.eval_shape(start, {path: spec.abstract() for path, spec in specs.items()})
    shardings = shardings_like(abstract, specs, mesh)
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings
    )
    replicated = NamedSharding(mesh, PartitionSpec())
    return Stage(
        jax.jit(
            step,
            in_shardings=(shardings, batch_shardings(mesh)),
            out_shardings=(shardings, replicated),
            donate_argnums=0,
            compiler_options=compiler_options(mesh, options) or None,
        ),
        jax.jit(start, in_shardings=(by_path,), out_shardings=shardings),
        placed,
    )


def _in_layers(tree: Parameters, layers: Mapping[str, np.ndarray]) -> Parameters:
    """Returns arrays that are zero in the layers that are not trained; see `trained_layers`."""
    found = dict(tree)
    for path, chosen in layers.items():
        found[path] = jnp.where(chosen.reshape(-1, *[1] * (tree[path].ndim - 1)), tree[path], 0)
    return found


def _rate(
    stage: StageConfig, num_steps: int, state: TrainState, batch: Batch
) -> tuple[jax.Array, TokenCount | tuple[()]]:
    """Returns the learning rate of a step, and the stage's tokens after it."""
    if stage.tokens is None or not isinstance(state.tokens, TokenCount):
        return learning_rate(stage.optimizer, num_steps, state.step), ()
    tokens = state.tokens.add(tokens_of(batch))
    return learning_rate_over_tokens(stage.optimizer, stage.tokens, state.tokens, tokens), tokens


def _is_good(loss: jax.Array, grad_norm: jax.Array, health: Health, safety: SafetyConfig) -> jax.Array:
    good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    if safety.spike_factor is None:
        return good
    warm = health.good >= safety.spike_warmup_steps
    return good & ~(warm & (loss > safety.spike_factor * health.mean))


def _next_health(loss: jax.Array, ok: jax.Array, health: Health) -> Health:
    decay = jnp.where(health.good == 0, 0.0, MEAN_DECAY)
    mean = jnp.where(ok, decay * health.mean + (1 - decay) * loss, health.mean)
    return Health(mean, health.good + ok, jnp.where(ok, 0, health.bad_run + 1).astype(jnp.int32))
