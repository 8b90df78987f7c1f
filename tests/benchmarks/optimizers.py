"""Compares optimizers: `python -m tests.benchmarks.optimizers [STEPS]`. About 5 minutes on two idle cores.

Every optimizer trains the base of the laptop's ladder (configs/sweeps/base.yaml, width 64, standard parametrisation)
from the same weights on the same batches, with the same schedule, at the same number of rates, which are factors of
`FACTOR` apart. The loss is the mean over the last tenth of the steps, whose data is new to the model.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping
from itertools import islice
from typing import Any, NamedTuple

import jax
import numpy as np

from solo.batch import Batch
from solo.config import Config, MeshConfig, OptimizerConfig, SafetyConfig, StageConfig, load_config
from solo.data.store.prepare import prepare
from solo.model.parameters import ModelDefinition, define
from solo.scaling.sweep.batch_statistics import endless_plan, first_batches
from solo.sharding.mesh import make_mesh
from solo.training.step import Stage, make_stage

FACTOR = 2.0
# The middle rate of each search: the usual one of its authors or users, for a small model.
CASES: Mapping[str, tuple[float, Mapping[str, Any]]] = {
    "adamw": (4e-3, {}),
    "adamw, bfloat16 moments": (4e-3, {"first_moment_dtype": "bfloat16", "second_moment_dtype": "bfloat16"}),
    "lion": (2e-3, {"name": "lion"}),
    "adafactor": (6e-2, {"name": "adafactor", "adafactor": {"min_dim_size_to_factor": 32}}),
    "muon": (1e-2, {"name": "muon"}),
    "sgd": (4e-1, {"name": "sgd"}),
}
RATES = 3
ROUNDS = 20


class Found(NamedTuple):
    """The loss at each rate, and the bytes of the optimizer's state for each parameter."""

    losses: dict[float, float]
    state_bytes: float


def main() -> None:
    """Prints a table: the best rate and its loss, all losses, step times relative to AdamW's, and state sizes."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 150
    config = load_config("configs/sweeps/base.yaml", ["model.parametrisation.kind=standard"])
    prepared = prepare(config)
    definition = define(config, prepared.tokenizer.vocab_size)
    batches = first_batches(config, prepared, endless_plan(config, prepared), steps)
    tokens = sum(int((batch.attend[..., 1::2] > batch.attend[..., ::2]).any(-1).sum()) for batch in batches)
    print(
        f"{definition.num_parameters():,} parameters, {steps} steps, {tokens:,} tokens, {RATES} rates each", flush=True
    )
    for name, (middle, keys) in CASES.items():
        found = search(definition, config, keys, middle, batches)
        best = min(found.losses, key=lambda rate: found.losses[rate])
        edge = " (at the edge of its rates)" if best in (min(found.losses), max(found.losses)) else ""
        losses = ", ".join(f"{rate:.2g}: {loss:.3f}" for rate, loss in found.losses.items())
        print(
            f"  {name:24} {found.losses[best]:.3f} at {best:.2g}{edge}   [{losses}]   {found.state_bytes:.2f} bytes",
            flush=True,
        )
    for name, ratio in step_times(definition, config, batches[0]).items():
        print(f"  {name:24} {ratio:.3f} of AdamW's step")


def stage_of(config: Config, keys: Mapping[str, Any], rate: float, steps: int) -> StageConfig:
    """Returns the base's stage with an optimizer."""
    own = {"learning_rate": rate, "schedule": "wsd", "warmup_steps": max(1, steps // 10), "final_fraction": 0.0}
    optimizer = OptimizerConfig.model_validate({**own, **keys})
    return config.stages[0].model_copy(update={"optimizer": optimizer, "steps": steps})


def made(definition: ModelDefinition, stage: StageConfig) -> tuple[Stage, Any]:
    """Returns a stage on one device, and its first state."""
    built = make_stage(definition, stage, stage.steps or 1, SafetyConfig(), make_mesh(MeshConfig(), jax.devices()[:1]))
    return built, built.start(jax.jit(definition.initialise)(jax.random.key(0)))


def search(
    definition: ModelDefinition, config: Config, keys: Mapping[str, Any], middle: float, batches: list[Batch]
) -> Found:
    """Trains at each of the rates."""
    losses, size = {}, 0.0
    for number in range(RATES):
        rate = middle * FACTOR ** (number - RATES // 2)
        built, state = made(definition, stage_of(config, keys, rate, len(batches)))
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state.optimizer)) / definition.num_parameters()
        seen = []
        for batch in batches:
            state, measured = built.step(state, batch)
            seen.append(measured["loss"])
        losses[rate] = float(np.mean(jax.device_get(seen[-max(1, len(seen) // 10) :])))
    return Found(losses, size)


def step_times(definition: ModelDefinition, config: Config, batch: Batch) -> dict[str, float]:
    """Returns the median ratio of step times to AdamW's, steps of all optimizers taken in turn."""
    running = {name: made(definition, stage_of(config, keys, rate, 100)) for name, (rate, keys) in CASES.items()}
    times: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(ROUNDS + 2):
        for name, (built, state) in running.items():
            start = time.perf_counter()
            state, measured = built.step(state, batch)
            jax.block_until_ready(measured["loss"])
            jax.block_until_ready(state)
            times[name].append(time.perf_counter() - start)
            running[name] = built, state
    kept = {name: list(islice(each, 2, None)) for name, each in times.items()}
    return {
        name: statistics.median(own / adamw for own, adamw in zip(each, kept["adamw"], strict=True))
        for name, each in kept.items()
    }


if __name__ == "__main__":
    main()
