"""The analytic FLOP count against the compiler's own, for the step that training runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solo.batch import Batch
from solo.config import (
    ExpertsConfig,
    ImageConfig,
    MeshConfig,
    ModelConfig,
    MoEConfig,
    SafetyConfig,
    StageConfig,
)
from solo.model.flops import Work, step_flops
from solo.model.parameters import ModelDefinition
from solo.sharding.mesh import make_mesh
from solo.training.optimizer import trainable_paths
from solo.training.step import make_stage

B, P, T, Y = 2, 192, 320, 128


def shapes_of(B: int, P: int, T: int, Y: int, patch_size: int) -> Batch:
    """A batch without values."""
    shapes = Batch(
        ((B, P, 3 * patch_size**2), np.uint8),
        ((B, P, 2), np.int32),
        ((B, T), np.int32),
        ((B, P + T), np.int32),
        ((B, P + T, 4), np.int32),
        ((B, Y), np.int32),
        ((B, Y), np.int32),
        ((B, Y), np.float32),
        ((B, Y), np.int32),
    )
    return Batch(*(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experts", "train", "tied"),
    [
        (ExpertsConfig(), ["*"], False),
        (ExpertsConfig(ffn="modality"), ["*"], True),
        (ExpertsConfig(ffn="modality", qkv="modality", out="modality", norms="modality"), ["*"], False),
        (ExpertsConfig(ffn="modality"), ["patch_embed", "layers/ffn/patches/*"], False),
        (ExpertsConfig(ffn="moe"), ["*"], False),
    ],
)
def test_the_count_is_within_two_percent_of_the_compiled_step(experts, train, tied, monkeypatch) -> None:
    # XLA's CPU compiler has every expert compute every slot, and masks. As even blocks the products are what they are
    # where slots are grouped for real.
    monkeypatch.setattr(jax.lax, "ragged_dot", _even_blocks)
    # Unrolled layers and dense attention: the compiler counts the body of a loop once.
    config = ModelConfig(
        width=512,
        layers=2,
        heads=4,
        kv_heads=2,
        ffn_width=2048,
        experts=experts,
        # The compiler counts the optimizer too, some 25 FLOPs a parameter: few experts, for few slots.
        moe=MoEConfig(count=2),
        tied_head=tied,
        scan_layers=False,
        attention_implementation="dense",
    )
    definition = ModelDefinition(config, ImageConfig(patch_size=32), 4096)
    stage = StageConfig.model_validate_json(
        '{"name": "s", "mixture": {"a": 1.0}, "steps": 1, "batch_rows": 2, "optimizer": {"learning_rate": 1e-3},'
        f' "loss": {{"chunk": 100000}}, "train": {str(train).replace(chr(39), chr(34))}}}'
    )
    compiled_stage = make_stage(definition, stage, 1, SafetyConfig(), make_mesh(MeshConfig(), jax.devices()[:1]))
    abstract = jax.eval_shape(compiled_stage.start, {p: s.abstract() for p, s in definition.specs.items()})
    batch = shapes_of(B, P, T, Y, 32)
    counted = compiled_stage.step.lower(abstract, batch).compile().cost_analysis()["flops"]
    work = Work(B * P, B * T, B * Y, B * (P + T) ** 2)
    analytic = sum(step_flops(definition, work, frozenset(trainable_paths(definition.specs, stage))).values())
    assert analytic == pytest.approx(counted, rel=0.02)


def _even_blocks(x_ND: jax.Array, weights_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """`ragged_dot` where every expert has as many slots."""
    experts, width, _ = weights_EDF.shape
    return jnp.einsum("end,edf->enf", x_ND.reshape(experts, -1, width), weights_EDF).reshape(len(x_ND), -1)
