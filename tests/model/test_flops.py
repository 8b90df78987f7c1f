"""The analytic FLOP count against the compiler's count of a training step."""

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
from solo.model.flops import BatchStats, step_flops
from solo.model.parameters import ModelDefinition
from solo.sharding.mesh import make_mesh
from solo.training.groups import trainable_paths
from solo.training.step import make_stage
from tests.reference import NEO
from tests.tiny import MODEL

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
    # On a CPU, XLA's ragged_dot computes every expert on every slot and masks. Even blocks have the FLOPs of a real
    # grouping.
    monkeypatch.setattr(jax.lax, "ragged_dot", _even_blocks)
    # Layers are unrolled and attention is dense, because the compiler counts the body of a loop once.
    config = ModelConfig(
        width=512,
        layers=2,
        heads=4,
        kv_heads=2,
        ffn_width=2048,
        experts=experts,
        # The compiler also counts the optimizer, some 25 FLOPs per parameter: with few slots, use few experts.
        moe=MoEConfig(count=2),
        tied_head=tied,
        scan_layers=False,
        attention_implementation="dense",
    )
    definition = ModelDefinition(config, ImageConfig(patch_size=32), 4096)
    stage = StageConfig.model_validate_json(
        '{"name": "s", "mixture": {"a": 1.0}, "steps": 1, "batch_rows": 2, "optimizer": {"learning_rate": 1e-3},'
        f' "loss": {{"chunk_size": 100000}}, "train": {str(train).replace(chr(39), chr(34))}}}'
    )
    compiled_stage = make_stage(definition, stage, 1, SafetyConfig(), make_mesh(MeshConfig(), jax.devices()[:1]))
    abstract = jax.eval_shape(compiled_stage.start, {p: s.abstract() for p, s in definition.specs.items()})
    batch = shapes_of(B, P, T, Y, 32)
    counted = compiled_stage.step.lower(abstract, batch).compile().cost_analysis()["flops"]
    work = BatchStats(B * P, B * T, B * Y, B * (P + T) ** 2)
    analytic = sum(step_flops(definition, work, frozenset(trainable_paths(definition.specs, stage))).values())
    assert analytic == pytest.approx(counted, rel=0.02)


def _even_blocks(x_ND: jax.Array, weights_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """`ragged_dot` with the same number of slots for every expert."""
    experts, width, _ = weights_EDF.shape
    return jnp.einsum("end,edf->enf", x_ND.reshape(experts, -1, width), weights_EDF).reshape(len(x_ND), -1)


@pytest.mark.parametrize("moe", [{"count": 8, "top_k": 1}, {"count": 4, "top_k": 2}])
def test_experts_count_as_often_as_the_router_chooses_them(moe) -> None:
    """A slot's experts together are as wide as the dense FFN, so only the router's FLOPs are added."""
    stats = BatchStats(100, 200, 50, 9999)
    config = {**MODEL, "experts": {"ffn": "shared"}}
    dense, routed = (
        step_flops(
            ModelDefinition(ModelConfig.model_validate({**config, **changes}), ImageConfig(patch_size=8), 310), stats
        )
        for changes in ({}, {"experts": {"ffn": "moe"}, "moe": moe})
    )
    router = 3 * 2 * 2 * 32 * moe["count"]
    assert routed["ffn_patches"] - dense["ffn_patches"] == 100 * router
    assert routed["ffn_text"] - dense["ffn_text"] == 200 * router


def test_queries_and_values_count_with_their_own_widths() -> None:
    """Parts of 8 + 10 dimensions of queries and keys, values of 6: 4 heads, 2 key heads, 2 layers of width 32."""
    config = ModelConfig.model_validate({**MODEL, "experts": ExpertsConfig(), **NEO}, strict=False)
    found = step_flops(ModelDefinition(config, ImageConfig(patch_size=8), 310), BatchStats(100, 200, 50, 9999))
    assert found["attention"] == 3 * 2 * (18 + 6) * 4 * 2 * 9999
    assert found["qkv"] == 3 * 2 * 32 * (18 * 4 + 18 * 2 + 6 * 2) * 2 * 300
    assert found["out"] == 3 * 2 * 6 * 4 * 32 * 2 * 300


def test_inner_patches_multiply_by_the_convolution_once_each_and_pixels_have_no_gradient() -> None:
    embed = {"kind": "conv", "inner_size": 4, "inner_width": 16}
    config = ModelConfig.model_validate({**MODEL, "patch_embed": embed})
    definition, stats = ModelDefinition(config, ImageConfig(patch_size=8), 310), BatchStats(10, 0, 0, 0)
    inner, merge = 2 * 10 * 4 * (48 * 16), 2 * 10 * (4 * 16 * 32)
    assert step_flops(definition, stats)["patch_embed"] == 2 * inner + 3 * merge
    assert (
        step_flops(definition, stats, frozenset({"patch_embed/inner/kernel"}))["patch_embed"] == 2 * inner + 2 * merge
    )
