"""Prints the memory of each rematerialisation policy: `python -m tests.benchmarks.remat`. Compiles only."""

from __future__ import annotations

from typing import get_args

import jax
import jax.numpy as jnp

from solo.batch import Batch
from solo.config import ExpertsConfig, ImageConfig, ModelConfig
from solo.model.parameters import ModelDefinition

LAYERS, WIDTH, ROWS, PATCHES, TEXT = 8, 256, 2, 768, 256
POLICIES = get_args(ModelConfig.model_fields["remat"].annotation)


def temporaries(remat: str, layers: int = LAYERS) -> int:
    """Returns the bytes of temporaries of the loss's gradient, as the compiler counts them."""
    config = ModelConfig(
        width=WIDTH, layers=layers, heads=4, kv_heads=2, ffn_width=3 * WIDTH, experts=ExpertsConfig(ffn="modality"),
        remat=remat,
    )  # fmt: skip
    definition = ModelDefinition(config, ImageConfig(patch_size=4), 512)
    parameters = {path: spec.abstract() for path, spec in definition.specs.items()}

    def loss(parameters: dict, batch: Batch) -> jax.Array:
        hidden = definition.bind(parameters).hidden(batch).hidden
        return jnp.sum(jnp.square(hidden.join().astype(jnp.float32)))

    compiled = jax.jit(jax.grad(loss)).lower(parameters, abstract_batch()).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def abstract_batch() -> Batch:
    """Returns a batch of shapes and dtypes."""
    slots = PATCHES + TEXT
    shapes = {
        "patches": ((PATCHES, 48), jnp.uint8),
        "patch_grid": ((PATCHES, 2), jnp.int32),
        "text": ((TEXT,), jnp.int32),
        "positions": ((slots,), jnp.int32),
        "attend": ((slots, 4), jnp.int32),
        "target_weights": ((8,), jnp.float32),
    }
    found = {name: shapes.get(name, ((8,), jnp.int32)) for name in Batch._fields}
    return Batch(**{name: jax.ShapeDtypeStruct((ROWS, *shape), dtype) for name, (shape, dtype) in found.items()})


def main() -> None:
    """Prints all temporaries for each policy, and what one more layer adds in units of its input [B, S, D]."""
    unit = ROWS * (PATCHES + TEXT) * WIDTH * 4
    for remat in POLICIES:
        whole, half = temporaries(remat), temporaries(remat, LAYERS // 2)
        print(f"  {remat:20} {whole / 2**20:6.1f} MiB   {(whole - half) / (LAYERS - LAYERS // 2) / unit:5.2f}")


if __name__ == "__main__":
    main()
