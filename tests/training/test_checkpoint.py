"""Restoring is strict, works onto another mesh, and keeps what it should."""

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from solo.config import CheckpointConfig, ImageConfig, MeshConfig, ModelConfig, SafetyConfig, StageConfig
from solo.model.parameters import ModelDefinition
from solo.sharding.mesh import make_mesh
from solo.training.checkpoint import CheckpointError, Checkpoints, Progress
from solo.training.newest import SIZES
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
    progress, restored = checkpoints.resume(lambda progress: built(definition(), devices)[1])
    assert progress == Progress(1, 0, 1, {"carry": [[0, 5], [1, 7]]}, {"tokens": 9})
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
        checkpoints.resume(lambda progress: built(other, 1)[1])


def test_missing_and_left_over_parameters_are_named(tmp_path) -> None:
    save(tmp_path, definition())
    model = ModelConfig.model_validate(
        {**definition().config.model_dump(), "experts": {"ffn": "modality"}, "tied_head": True}
    )
    other = ModelDefinition(model, definition().image, 100)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    with pytest.raises(CheckpointError) as caught:
        checkpoints.resume(lambda progress: built(other, 1)[1])
    assert "missing in the checkpoint: layers/ffn/patches/gate" in str(caught.value)
    assert "only in the checkpoint: head" in str(caught.value)


def test_retention_keeps_the_latest_and_the_landmarks(tmp_path) -> None:
    save(tmp_path, definition(), steps=range(1, 10), keep_latest=2, keep_every_steps=4)
    assert Checkpoints(tmp_path, CheckpointConfig()).steps() == [4, 8, 9]


def test_an_unfinished_save_is_no_checkpoint(tmp_path) -> None:
    save(tmp_path, definition(), steps=(1, 2))
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
    progress, _ = Checkpoints(tmp_path, CheckpointConfig()).resume(lambda progress: built(definition(), 1)[1])
    assert progress.step == 2


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbage(path) -> None:
    path.write_bytes(b"\x00" * path.stat().st_size)


def folder_instead(path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE = {
    "empty folder": lambda step: [path.unlink() for path in step.rglob("*") if path.is_file()],
    "no marker": lambda step: (step / "commit_success.txt").unlink(),
    "no marker of an item": lambda step: (step / "optimizer/commit_success.txt").unlink(),
    "no metadata": lambda step: (step / "_CHECKPOINT_METADATA").unlink(),
    "cut metadata": lambda step: cut(step / "_CHECKPOINT_METADATA"),
    "empty metadata": lambda step: (step / "_CHECKPOINT_METADATA").write_bytes(b""),
    "no item metadata": lambda step: (step / "parameters/_METADATA").unlink(),
    "cut arrays": lambda step: cut(largest_file(step)),
    "no arrays": lambda step: largest_file(step).unlink(),
    "garbage arrays": lambda step: garbage(largest_file(step)),
    "garbage manifest": lambda step: garbage(step / "parameters/manifest.ocdbt"),
    "cut manifest": lambda step: cut(step / "optimizer/manifest.ocdbt"),
    "folder for a file": lambda step: folder_instead(step / "optimizer/manifest.ocdbt"),
}


@pytest.mark.parametrize("sizes", [True, False])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_costs_only_the_steps_after_the_one_before(tmp_path, damage: str, sizes: bool) -> None:
    save(tmp_path, definition(), steps=(3, 5))
    DAMAGE[damage](tmp_path / "5")
    if not sizes:  # the run was killed right after the save
        (tmp_path / "5" / SIZES).unlink(missing_ok=True)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    progress, state = checkpoints.resume(lambda progress: built(definition(), 1)[1])
    assert (progress.step, int(state.step)) == (3, 0)
    committed = damage not in ("empty folder", "no marker")  # others were never complete
    assert len(checkpoints.passed_over) == committed
    if committed:
        assert f"checkpoint {tmp_path}/5 " in checkpoints.passed_over[0]
        assert "it was renamed to 5.damaged" in checkpoints.passed_over[0]
        assert (tmp_path / "5.damaged").is_dir()
        checkpoints.save(state, Progress(5, 0, 5, {}))
        checkpoints.wait()
        assert checkpoints.steps() == [3, 5]


def test_if_all_checkpoints_are_damaged_nothing_begins_anew(tmp_path) -> None:
    save(tmp_path, definition(), steps=(3, 5))
    for step in ("3", "5"):
        largest_file(tmp_path / step).unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint of this run can be read(.|\n)*/5 is(.|\n)*/3 is"):
        Checkpoints(tmp_path, CheckpointConfig()).resume(lambda progress: built(definition(), 1)[1])
    assert Checkpoints(tmp_path / "new", CheckpointConfig()).resume(lambda progress: built(definition(), 1)[1]) is None


def test_saves_do_not_count_as_calls_at_which_processes_may_stop(tmp_path, monkeypatch) -> None:
    """JAX keeps the number of the last call: after a save of step 500, it would wait for the 501st call to stop."""
    calls = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda step: calls.append(step))
    save(tmp_path, definition(), steps=(3, 6))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["3", "6"]
    assert calls == []
