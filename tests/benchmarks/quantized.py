"""Compares losses with products in eight bits with bfloat16's: `python -m tests.benchmarks.quantized [STEPS [SEEDS]]`.

All runs train the base of the laptop's ladder (configs/sweeps/base.yaml, width 64, standard parametrisation), with the
same batches and rates, in bfloat16. A seed decides the initial weights. A CPU has no such products, so
their times say nothing. Needs `pip install 'solo-vlm[quantization]'`.
"""

from __future__ import annotations

import sys

import jax
import numpy as np

from solo.batch import Batch
from solo.config import Config, MeshConfig, SafetyConfig, load_config
from solo.data.store.prepare import prepare
from solo.model.parameters import define
from solo.scaling.sweep.batch_statistics import endless_plan, first_batches
from solo.sharding.mesh import make_mesh
from solo.training.step import make_stage

KINDS = ("none", "fp8", "int8")
RATE = 4e-3
PARTS = 5


def losses(config: Config, batches: list[Batch], vocab_size: int, seed: int) -> np.ndarray:
    """Trains once, and returns the loss of every step."""
    optimizer = config.stages[0].optimizer.model_copy(update={"learning_rate": RATE, "warmup_steps": 50})
    stage = config.stages[0].model_copy(update={"optimizer": optimizer, "steps": len(batches)})
    definition = define(config, vocab_size)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    built = make_stage(definition, stage, len(batches), SafetyConfig(), mesh)
    state, found = built.start(jax.jit(definition.initialise)(jax.random.key(seed))), []
    for batch in batches:
        state, measured = built.step(state, batch)
        found.append(measured["loss"])
    return np.array(jax.device_get(found))


def main() -> None:
    """Prints the mean losses of each fifth of the steps, and the differences from bfloat16's with the same seed."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    seeds = range(count)
    base = load_config(
        "configs/sweeps/base.yaml", ["model.parametrisation.kind=standard", "model.compute_dtype=bfloat16"]
    )
    prepared = prepare(base)
    batches = first_batches(base, prepared, endless_plan(base, prepared), steps)
    parts = {}
    for seed in seeds:
        for kind in KINDS:
            quantization = base.model.quantization.model_copy(update={"kind": kind})
            config = base.model_copy(update={"model": base.model.model_copy(update={"quantization": quantization})})
            found = losses(config, batches, prepared.tokenizer.vocab_size, seed)
            parts[kind, seed] = np.array([part.mean() for part in np.array_split(found, PARTS)])
            values = " ".join(f"{value:.4f}" for value in parts[kind, seed])
            print(f"{'bfloat16' if kind == 'none' else kind:9} seed {seed}: {values}", flush=True)
    last = {kind: np.array([parts[kind, seed][-1] for seed in seeds]) for kind in KINDS}
    print(f"last fifth, bfloat16: {last['none'].mean():.4f}, between seeds {np.ptp(last['none']):.4f}")
    for kind in KINDS[1:]:
        difference = last[kind] - last["none"]
        print(f"  {kind:5} {difference.mean():+.4f} ({' '.join(f'{each:+.4f}' for each in difference)})")


if __name__ == "__main__":
    main()
