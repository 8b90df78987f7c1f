"""A stage with every update rule, a schedule over tokens, and norms: on eight devices and through a checkpoint."""

from pathlib import Path

import jax
import numpy as np
import pytest

from solo.config import CheckpointConfig, MeshConfig, SafetyConfig
from solo.data.planning.row_shape import RowShape
from solo.model.count import count_parameters
from solo.planning.memory import hand_count
from solo.sharding.mesh import device_batch, make_mesh
from solo.training.checkpoint import Checkpoints, Progress
from solo.training.step import make_stage
from tests.tiny import tiny_config
from tests.training.test_step import DEFINITION, batches, stage_config

TOKENS = 4_000
STAGE = stage_config(
    steps=None,
    tokens=TOKENS,
    batch_rows=8,
    optimizer={
        "name": "muon",
        "learning_rate": 2e-3,
        "warmup_tokens": 1_000,
        "first_moment_dtype": "bfloat16",
        "groups": [
            {"match": ["layers/qkv"], "optimizer": {"name": "adafactor", "adafactor": {"min_dim_size_to_factor": 8}}},
            {"match": ["text_embed"], "optimizer": {"name": "lion"}, "learning_rate_scale": 0.1},
            {"match": ["head"], "optimizer": {"name": "sgd"}, "clip_norm": 0.5},
        ],
    },
)
FROZEN = "patch_embed/kernel"
STAGE = STAGE.model_copy(update={"train": ("layers", "text_embed", "head", "final_norm")})


def built(devices: int):
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    return make_stage(DEFINITION, STAGE, 5, SafetyConfig(), mesh, norms_every_steps=2), mesh


def run(stage, mesh, state, data) -> tuple[list, object]:
    measured = []
    for batch in data:
        state, found = stage.step(state, device_batch(batch, mesh))
        measured.append(jax.device_get(found))
    return measured, state


@pytest.fixture(scope="module")
def on_eight():
    stage, mesh = built(8)
    data = batches(4)
    state = stage.start(DEFINITION.initialise(jax.random.key(0)))
    measured, state = run(stage, mesh, state, data)
    return stage, mesh, data, measured, state


def leaves(tree) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_eight_devices_train_like_one(on_eight) -> None:
    _, _, data, measured, state = on_eight
    stage, mesh = built(1)
    expected, whole = run(stage, mesh, stage.start(DEFINITION.initialise(jax.random.key(0))), data)
    np.testing.assert_allclose([m["loss"] for m in measured], [m["loss"] for m in expected], rtol=1e-4)
    assert [m["learning_rate"] for m in measured] == [m["learning_rate"] for m in expected]
    for path, value in whole.parameters.items():
        # Lion and Muon's low-precision momentum round near zero.
        np.testing.assert_allclose(state.parameters[path], value, atol=1e-3, err_msg=path)
    slots = sum(int((batch.attend[..., 1::2] > batch.attend[..., ::2]).any(-1).sum()) for batch in data)
    assert (int(state.tokens.high), int(state.tokens.low)) == (0, slots)
    labels = {"adafactor_0", "adamw", "lion_1", "muon", "sgd_2"}
    assert set(state.optimizer[1]) == labels
    assert FROZEN in state.frozen
    assert not any(FROZEN in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.optimizer))


def test_a_restored_run_goes_on_bit_for_bit(on_eight, tmp_path: Path) -> None:
    stage, mesh, data, measured, state = on_eight
    _, half = run(stage, mesh, stage.start(DEFINITION.initialise(jax.random.key(0))), data[:2])
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    checkpoints.save(half, Progress(2, 0, 2, {}))
    checkpoints.wait()
    restored = checkpoints.restore(Progress(2, 0, 2, {}), stage.abstract)
    checkpoints.close()
    resumed, last = run(stage, mesh, restored, data[2:])
    assert [m["loss"] for m in resumed] == [m["loss"] for m in measured[2:]]
    assert [m["learning_rate"] for m in resumed] == [m["learning_rate"] for m in measured[2:]]
    for one, other in zip(leaves(last), leaves(state), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_bad_step_leaves_every_state_as_it_is(on_eight) -> None:
    stage, mesh, data, _, _ = on_eight
    _, before = run(stage, mesh, stage.start(DEFINITION.initialise(jax.random.key(0))), data[:1])
    kept, tokens = leaves((before.trainable, before.optimizer)), int(before.tokens.low)
    bad = data[1]._replace(target_weights=data[1].target_weights * np.float32(np.nan))
    (found,), after = run(stage, mesh, before, [bad])
    assert not found["applied"]
    for one, other in zip(leaves((after.trainable, after.optimizer)), kept, strict=True):
        np.testing.assert_array_equal(one, other)
    assert int(after.tokens.low) > tokens  # they were seen


def test_norms_are_those_of_the_arrays_and_only_on_request(on_eight) -> None:
    stage, mesh, data, measured, _ = on_eight
    trained = [each.name for each in count_parameters(DEFINITION) if each.name != "patch_embed"]
    assert set(measured[1]["norms"]) == set(trained)
    assert all(value == 0 for each in measured[0]["norms"].values() for value in each.values())
    _, one = run(stage, mesh, stage.start(DEFINITION.initialise(jax.random.key(0))), data[:1])
    before = {path: np.asarray(value) for path, value in one.trainable.items()}
    (found,), two = run(stage, mesh, one, data[1:2])
    for name, path in (("head", "head"), ("text_embed", "text_embed")):
        norms = found["norms"][name]
        assert norms["parameter"] == pytest.approx(np.linalg.norm(before[path]), rel=1e-5)
        assert norms["update"] == pytest.approx(
            np.linalg.norm(np.asarray(two.trainable[path]) - before[path]), rel=1e-3
        )
    total = sum(each["gradient"] ** 2 for each in found["norms"].values()) ** 0.5
    assert total == pytest.approx(float(found["grad_norm"]), rel=1e-5)


def test_the_counted_memory_is_that_of_the_arrays(on_eight) -> None:
    _, mesh, data, _, state = on_eight
    arrays = jax.tree.leaves((state, device_batch(data[0], mesh)))
    held = sum(shard.data.nbytes for leaf in arrays for shard in leaf.addressable_shards if shard.device.id == 0)
    model = {"model": DEFINITION.config, "image": DEFINITION.image, "stages": (STAGE,)}
    count = hand_count(tiny_config().model_copy(update=model), STAGE, DEFINITION, RowShape(32, 64, 64), 8)
    assert count.arguments == held
