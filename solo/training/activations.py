"""Sizes of activations: the residual stream after every layer, and the logits.

A separate program measures them, so the training step is the same program with and without the measurement.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from solo.batch import Batch
from solo.chips import OptionValue
from solo.config import StageConfig
from solo.model.parameters import ModelDefinition, Parameters
from solo.model.regions import Regions, live_slots
from solo.sharding.compiling import compiler_options
from solo.sharding.mesh import batch_shardings, parameter_shardings
from solo.sharding.placement import placement
from solo.training.losses import at_targets


class Activations(NamedTuple):
    """Sizes over the live (non-empty) slots of a batch; zero if there are none.

    mean_square    float32 [L] patches and [L] text: mean square of the residual stream after every layer
    largest        float32 [L] patches and [L] text: its largest absolute value
    live           int32 [] patches and [] text: live slots
    largest_logit  float32 []: largest absolute logit at a target slot, over the vocabulary without padding
    targets        int32 []: target slots
    """

    mean_square: Regions
    largest: Regions
    live: Regions
    largest_logit: jax.Array
    targets: jax.Array


def activations_of(
    definition: ModelDefinition,
    stage: StageConfig,
    mesh: Mesh,
    options: Mapping[str, OptionValue | None] | None = None,
) -> Any:
    """Returns a jitted function (parameters, batch) -> `Activations`, replicated over the mesh.

    It runs the stage's micro-batches one after the other, like the training step, and reduces every layer's states
    inside the scan over the layers, so that it needs less memory than the step.
    """
    where = placement(mesh, definition.config)

    def measure(parameters: Parameters, batch: Batch) -> Activations:
        model = definition.bind(parameters)
        live = Regions.split(live_slots(batch.attend), batch.patches.shape[1]).map(jnp.sum)

        def of(micro: Batch) -> Activations:
            slots = Regions.split(live_slots(micro.attend), micro.patches.shape[1])

            def probe(x: Regions) -> tuple[Regions, Regions]:
                return x.map(_sum_of_mean_squares, slots), x.map(_largest, slots)

            output = model.hidden(micro, where, probe=probe)
            squares, largest = output.probed
            there = micro.target_weights > 0

            def largest_logits(logits: jax.Array, ids: jax.Array) -> jax.Array:
                known = np.arange(logits.shape[-1]) < definition.vocab_size - definition.config.appended_rows
                return jnp.where(known, jnp.abs(logits), 0.0).max(-1)

            logits = at_targets(model, where, output.hidden, micro, stage.loss, largest_logits)
            mean_square = squares.map(lambda total, count: total / jnp.maximum(count, 1), live)
            return Activations(
                mean_square, largest, slots.map(jnp.sum), jnp.where(there, logits, 0.0).max(initial=0.0), there.sum()
            )

        if stage.accumulate == 1:
            return of(batch)
        micro_batches = jax.tree.map(lambda x: x.reshape(-1, stage.accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
        found = jax.lax.map(of, micro_batches)
        return Activations(
            found.mean_square.map(lambda x: x.sum(0)),
            found.largest.map(lambda x: x.max(0)),
            found.live.map(lambda x: x.sum(0)),
            found.largest_logit.max(),
            found.targets.sum(),
        )

    return jax.jit(
        measure,
        in_shardings=(parameter_shardings(definition.specs, mesh), batch_shardings(mesh)),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
        compiler_options=compiler_options(mesh, options) or None,
    )


def activations_line(step: int, stage: str, found: Activations) -> dict[str, Any]:
    """Returns the line of `metrics.jsonl`. If a region has no live slot, its numbers are None.

    Args:
        step: step of the run.
        stage: name of the stage.
        found: the sizes with the weights before the step's update, on the host.
    """

    def listed(values: Regions, live: Regions) -> dict[str, list[float] | None]:
        return {name: getattr(values, name).tolist() if getattr(live, name) else None for name in ("patches", "text")}

    return {
        "kind": "activations",
        "step": step,
        "stage": stage,
        "rms": listed(found.mean_square.map(np.sqrt), found.live),
        "largest": listed(found.largest, found.live),
        "largest_logit": found.largest_logit.item() if found.targets else None,
    }


def _sum_of_mean_squares(x_BSD: jax.Array, live_BS: jax.Array) -> jax.Array:
    """Sum of the mean squares of the live slots, float32 []."""
    return jnp.sum(jnp.where(live_BS, jnp.mean(jnp.square(x_BSD.astype(jnp.float32)), axis=-1), 0.0))


def _largest(x_BSD: jax.Array, live_BS: jax.Array) -> jax.Array:
    """Largest absolute value of the live slots, float32 []; 0 if there are none."""
    return jnp.max(jnp.where(live_BS[..., None], jnp.abs(x_BSD.astype(jnp.float32)), 0.0), initial=0.0)
