"""Compares a training step with visual experts to one with shared weights: `python -m tests.benchmarks.experts`.

Both compute the same FLOPs. The target is a ratio of at most 1.10.
"""

from __future__ import annotations

import jax
import numpy as np

from solo.config import ExpertsConfig, ImageConfig, MeshConfig, ModelConfig, OptimizerConfig, SafetyConfig, StageConfig
from solo.data.planning.row_shape import RowShape
from solo.data.rows.assembly import assemble_row, stack
from solo.data.rows.document import Document
from solo.model.parameters import ModelDefinition
from solo.sharding.mesh import device_batch, make_mesh
from solo.training.step import make_stage
from tests.benchmarks.attention import medians

SHAPE = RowShape(768, 256, 128)
IMAGE = ImageConfig(patch_size=16, max_side=256)
CASES = {
    "shared": ExpertsConfig(),
    "visual ffn": ExpertsConfig(ffn="modality"),
    "all visual": ExpertsConfig(ffn="modality", qkv="modality", out="modality", norms="modality"),
}


def documents(rng: np.random.Generator) -> list[tuple[Document, int]]:
    """Returns eight documents of an image and text that fill a row; three quarters are patches."""
    found = []
    for _ in range(8):
        tokens = np.concatenate([np.full(96, -1), rng.integers(10, 500, 32)]).astype(np.int32)
        image = np.where(tokens < 0, 0, -1).astype(np.int32)
        pixels = rng.integers(0, 256, (96, IMAGE.patch_size**2 * 3)).astype(np.uint8)
        grid = np.stack(np.divmod(np.arange(96), 12), -1).astype(np.int32)
        supervised = np.arange(128) >= 112
        found.append((Document(tokens, supervised, image, pixels, grid), 0))
    return found


def main(repeats: int = 7) -> None:
    """Prints the median seconds of a step, and ratios to shared weights."""
    rng = np.random.default_rng(0)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    batch = stack([assemble_row(documents(rng), SHAPE, IMAGE, 0) for _ in range(2)])
    stage_config = StageConfig(
        name="s", mixture={"a": 1.0}, steps=1, batch_rows=2, optimizer=OptimizerConfig(learning_rate=1e-3)
    )
    contestants = {}
    for name, experts in CASES.items():
        config = ModelConfig(width=384, layers=4, heads=6, kv_heads=3, ffn_width=1536, experts=experts)
        definition = ModelDefinition(config, IMAGE, 512)
        stage = make_stage(definition, stage_config, 1, SafetyConfig(), mesh)
        placed, state = device_batch(batch, mesh), [stage.start(definition.initialise(jax.random.key(0)))]

        def run(stage=stage, placed=placed, state=state) -> object:
            state[0], metrics = stage.step(state[0], placed)
            return metrics

        contestants[name] = run
    seconds = medians(contestants, repeats)
    for name in CASES:
        print(f"step, {name}: {seconds[name]:.3f} s, {seconds[name] / seconds['shared']:.3f} of shared")


if __name__ == "__main__":
    main()
