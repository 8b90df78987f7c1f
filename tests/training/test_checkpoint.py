"""Restoring is strict, works onto another mesh, and keeps what it should."""

import jax
import numpy as np
import pytest

from solo.config import CheckpointConfig, ImageConfig, MeshConfig, ModelConfig, SafetyConfig, StageConfig
from solo.model.parameters import ModelDefinition
from solo.sharding.mesh import make_mesh
from solo.training.checkpoint import CheckpointError, Checkpoints, Progress
from solo.training.step import make_stage

STAGE = StageConfig.model_validate(
    {"name": "s", "mixture": {"a": 1.0}, "steps": 5, "batch_rows": 8, "optimizer": {"learning_rate": 1e-2}},
    strict=False,
)


def definition(layers: int = 2, width: int = 32) -> ModelDefinition:
    return ModelDefinition(
        ModelConfig(width=width, layers=layers, heads=4, kv_heads=2, ffn_width=64),
        ImageConfig(patch_size=4, max_side=64),
        100,
    )


def built(model: ModelDefinition, devices: int):
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    stage = make_stage(model, STAGE, 5, SafetyConfig(), mesh)
    return stage, stage.abstract


def save(folder, model: ModelDefinition, steps=(1,), **config):
    stage, _ = built(model, 1)
    state = stage.start(model.initialise(jax.random.key(0)))
    checkpoints = Checkpoints(folder, CheckpointConfig(**config))
    for step in steps:
        checkpoints.save(state, Progress(step, 0, step, {"carry": [[0, 5], [1, 7]]}, {"tokens": 9}))
    checkpoints.close()
    return state


@pytest.mark.parametrize("devices", [1, 8])
def test_a_checkpoint_comes_back_bit_for_bit_on_any_mesh(tmp_path, devices: int) -> None:
    state = save(tmp_path, definition())
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    progress = checkpoints.latest()
    assert progress == Progress(1, 0, 1, {"carry": [[0, 5], [1, 7]]}, {"tokens": 9})
    _, abstract = built(definition(), devices)
    restored = checkpoints.restore(progress, abstract)
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(old, new, err_msg=str(path))
    assert len(restored.trainable["layers/ffn/shared/up"].sharding.device_set) == devices


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (definition(layers=3), r"layers/ffn/shared/up: float32 \(2, 32, 64\) in the checkpoint, float32 \(3, 32, 64\)"),
        (definition(width=64), r"final_norm/scale: float32 \(32,\) in the checkpoint, float32 \(64,\) here"),
    ],
)
def test_another_architecture_is_listed_and_nothing_is_loaded(tmp_path, other, message: str) -> None:
    save(tmp_path, definition())
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    with pytest.raises(CheckpointError, match=message):
        checkpoints.restore(checkpoints.latest(), built(other, 1)[1])


def test_missing_and_left_over_parameters_are_named(tmp_path) -> None:
    save(tmp_path, definition())
    model = ModelConfig.model_validate(
        {**definition().config.model_dump(), "experts": {"ffn": "modality"}, "tied_head": True}
    )
    other = ModelDefinition(model, definition().image, 100)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    with pytest.raises(CheckpointError) as caught:
        checkpoints.restore(checkpoints.latest(), built(other, 1)[1])
    assert "missing in the checkpoint: layers/ffn/patches/gate" in str(caught.value)
    assert "only in the checkpoint: head" in str(caught.value)


def test_retention_keeps_the_latest_and_the_landmarks(tmp_path) -> None:
    save(tmp_path, definition(), steps=range(1, 10), keep_latest=2, keep_every_steps=4)
    assert Checkpoints(tmp_path, CheckpointConfig()).steps() == [4, 8, 9]


def test_an_unfinished_save_is_no_checkpoint(tmp_path) -> None:
    save(tmp_path, definition(), steps=(1, 2))
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
    assert Checkpoints(tmp_path, CheckpointConfig()).latest().step == 2


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("damage", ["cut short", "removed", "position"])
def test_a_damaged_checkpoint_is_named_with_the_one_before(tmp_path, damage: str) -> None:
    save(tmp_path, definition(), steps=(3, 5))
    file = tmp_path / "5" / "_CHECKPOINT_METADATA" if damage == "position" else largest_file(tmp_path / "5")
    if damage == "cut short":
        file.write_bytes(file.read_bytes()[:100])
    else:
        file.unlink()
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    message = rf"checkpoint {tmp_path}/5 cannot be read.*; move it elsewhere to resume from step 3$"
    with pytest.raises(CheckpointError, match=message):
        checkpoints.restore(checkpoints.latest(), built(definition(), 1)[1])
    (tmp_path / "5").rename(tmp_path / "elsewhere")
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    assert checkpoints.restore(checkpoints.latest(), built(definition(), 1)[1]).step == 0
