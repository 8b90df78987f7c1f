"""One step: accumulation, frozen parameters, averaging, bad losses; on one device and on meshes of eight."""

from functools import cache

import jax
import numpy as np
import pytest

from solo.batch import Batch
from solo.config import (
    ConfigError,
    ExpertsConfig,
    ImageConfig,
    MeshConfig,
    ModelConfig,
    SafetyConfig,
    SequenceConfig,
    StageConfig,
)
from solo.data.planning.row_shape import RowShape
from solo.data.rows.assembly import assemble_row, stack
from solo.model.parameters import ModelDefinition
from solo.model.placement import Placement
from solo.sharding.mesh import device_batch, make_mesh
from solo.training.step import loss_and_grads, make_stage
from tests.reference import NEO, random_document

VOCAB = 64
DEFINITION = ModelDefinition(
    ModelConfig(
        width=32, layers=2, heads=4, kv_heads=2, ffn_width=48, experts=ExpertsConfig(ffn="modality"),
        attention_block=16, vocab_multiple=64,
    ),
    ImageConfig(patch_size=2, max_side=64, mask="bidirectional"),
    VOCAB,
)  # fmt: skip


def stage_config(**changes) -> StageConfig:
    optimizer = changes.pop("optimizer", {"learning_rate": 1e-2, "schedule": "constant"})
    data = {"name": "s", "mixture": {"a": 1.0, "b": 1.0}, "steps": 5, "batch_rows": 8, "optimizer": optimizer}
    return StageConfig.model_validate({**data, **changes}, strict=False)


def batches(count: int, rows: int = 8, sequence: SequenceConfig | None = None) -> list[Batch]:
    rng = np.random.default_rng(0)
    shape = RowShape(32, 64, 64)

    def row() -> Batch:
        documents: list = []
        room = np.array([32, 64])
        while True:
            document = random_document(rng, VOCAB, patch_size=2, parts=3)
            patches = int((document.tokens < 0).sum())
            size = np.array([patches, len(document.tokens) - patches])
            if (size > room).any():
                return assemble_row(documents, shape, DEFINITION.image, 0, sequence or SequenceConfig())
            room -= size
            documents.append((document, len(documents) % 2))

    return [stack([row() for _ in range(rows)]) for _ in range(count)]


@cache
def made(definition: ModelDefinition, stage: str, safety: SafetyConfig, mesh_config: MeshConfig, devices: int):
    """The mesh, the jitted initialisation and the stage, which tests share: tracing it takes longer than its steps."""
    mesh = make_mesh(mesh_config, jax.devices()[:devices])
    config = StageConfig.model_validate_json(stage)
    return mesh, jax.jit(definition.initialise), make_stage(definition, config, 5, safety, mesh)


def run(
    stage: StageConfig,
    data: list[Batch],
    mesh_config: MeshConfig | None = None,
    devices: int = 1,
    safety: SafetyConfig | None = None,
    definition: ModelDefinition = DEFINITION,
):
    """Losses of every step, and the state after the last."""
    wanted = (stage.model_dump_json(), safety or SafetyConfig(), mesh_config or MeshConfig(), devices)
    mesh, initialise, built = made(definition, *wanted)
    state = built.start(initialise(jax.random.key(0)))
    measured = []
    for batch in data:
        state, metrics = built.step(state, device_batch(batch, mesh))
        measured.append(jax.device_get(metrics))
    return measured, state


def test_training_lowers_the_loss() -> None:
    (batch,) = batches(1)
    measured, _ = run(stage_config(), [batch] * 10)
    assert measured[-1]["loss"] < 0.8 * measured[0]["loss"]


@pytest.mark.parametrize("average", ["token", "row"])
def test_four_micro_batches_equal_one_batch(average: str) -> None:
    (batch,) = batches(1)
    parameters = jax.jit(DEFINITION.initialise)(jax.random.key(0))

    def computed(accumulate: int):
        stage = stage_config(loss={"average": average}, accumulate=accumulate)
        return jax.jit(lambda p, b: loss_and_grads(DEFINITION, stage, Placement(), p, {}, b))(parameters, batch)

    (found, grads), (found_of_four, grads_of_four) = computed(1), computed(4)
    for one, four in zip(jax.tree.leaves(found), jax.tree.leaves(found_of_four), strict=True):
        np.testing.assert_allclose(one, four, rtol=1e-5)
    for path, gradient in grads.items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(gradient / scale, grads_of_four[path] / scale, atol=1e-5, rtol=0, err_msg=path)


def test_averaging_by_row_weighs_rows_alike_and_by_token_tokens_alike() -> None:
    """Two rows of very different numbers of targets: the row average is the mean of the two rows' means."""
    (batch,) = batches(1, rows=2)
    weights = batch.target_weights.copy()
    weights[1, 2:] = 0
    batch = batch._replace(target_weights=weights)
    # Without rows sharing a batch, both averages are the row's own mean.
    alone = [
        run(stage_config(batch_rows=1), [jax.tree.map(lambda x, r=r: x[r : r + 1], batch)])[0][0]["loss"]
        for r in (0, 1)
    ]
    by_row = run(stage_config(batch_rows=2, loss={"average": "row"}), [batch])[0][0]["loss"]
    by_token = run(stage_config(batch_rows=2), [batch])[0][0]["loss"]
    counts = (weights > 0).sum(axis=1)
    assert counts[0] > 4 * counts[1]
    np.testing.assert_allclose(by_row, np.mean(alone), rtol=1e-5)
    np.testing.assert_allclose(by_token, np.average(alone, weights=counts), rtol=1e-5)
    assert abs(by_row - by_token) > 1e-3


def test_z_loss_adds_the_squared_log_normaliser() -> None:
    (batch,) = batches(1)
    plain = run(stage_config(), [batch])[0][0]
    with_z = run(stage_config(loss={"z_loss": 0.5}), [batch])[0][0]
    # At initialisation logits are near 0, so the normaliser is near log(V).
    np.testing.assert_allclose(with_z["loss"] - plain["loss"], 0.5 * np.log(VOCAB) ** 2, rtol=0.02)
    assert with_z["z_loss"].total / with_z["z_loss"].count == pytest.approx(with_z["loss"] - plain["loss"], rel=1e-4)
    assert with_z["loss_by_source"] == plain["loss_by_source"]


def test_frozen_parameters_are_bit_identical_and_have_no_optimizer_memory() -> None:
    before = {path: np.asarray(value) for path, value in jax.jit(DEFINITION.initialise)(jax.random.key(0)).items()}
    stage = stage_config(train=["patch_embed", "layers/ffn/patches/*"])
    _, state = run(stage, batches(3))
    trained = {path for path in before if path == "patch_embed/kernel" or path.startswith("layers/ffn/patches/")}
    assert set(state.trainable) == trained
    for path, value in before.items():
        same = np.array_equal(value, state.parameters[path])
        assert same == (path not in trained), path
    held = sum(leaf.size for leaf in jax.tree.leaves(state.optimizer))
    assert held == 2 * sum(before[path].size for path in trained) + 1  # two moments, one count


def test_only_some_layers_are_trained() -> None:
    """Other layers keep every bit, weight decay or not, and do not count towards the norm of the gradients."""
    (batch,) = batches(1)
    start = jax.jit(DEFINITION.initialise)(jax.random.key(0))
    stage = stage_config(train=["patch_embed", "layers[1:]", "layers/out/*"])
    (measured,), state = run(stage, [batch])
    whole = {"patch_embed/kernel", *(path for path in start if path.startswith("layers/out/"))}
    assert set(state.trainable) == whole | {path for path in start if path.startswith("layers/")}
    for path, value in start.items():
        moved = np.asarray(state.parameters[path] != value)
        if path.startswith("layers/"):
            moved = moved.reshape(2, -1).any(axis=1)
            assert moved.tolist() == [path in whole, True], path
        else:
            assert moved.any() == (path in whole), path
    grads = loss_and_grads(DEFINITION, stage, Placement(), start, {}, batch)[1]
    counted = [grads[path] if path in whole else grads[path][1:] for path in state.trainable]
    norm = np.sqrt(sum(float((np.asarray(each, np.float64) ** 2).sum()) for each in counted))
    assert measured["grad_norm"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("pattern", ["layers[2:]", "layers[:3]/qkv/*", "layers[1:1]"])
def test_layers_that_a_model_does_not_have_are_refused(pattern) -> None:
    with pytest.raises(ConfigError, match="names no layers of a model that has 2"):
        run(stage_config(train=[pattern]), [])


def test_learning_rate_scales_apply_by_component() -> None:
    (batch,) = batches(1)
    slow = stage_config(learning_rate_scale={"layers/*": 0.5, "head": 0.0}, optimizer=sgd_like())
    fast = stage_config(optimizer=sgd_like())
    start = jax.jit(DEFINITION.initialise)(jax.random.key(0))
    moved_slow, moved_fast = (run(stage, [batch])[1].parameters for stage in (slow, fast))
    np.testing.assert_array_equal(moved_slow["head"], start["head"])
    for path in ("layers/qkv/shared/q", "layers/ffn/text/up"):
        np.testing.assert_allclose(
            moved_slow[path] - start[path], 0.5 * (moved_fast[path] - start[path]), rtol=1e-3, atol=1e-7
        )


def sgd_like() -> dict:
    return {"learning_rate": 1e-2, "schedule": "constant", "weight_decay": 0.0}


def test_a_glob_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="matches no parameter"):
        run(stage_config(train=["layers/fnn/*"]), [])


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_bad_step_changes_nothing(poison: float) -> None:
    first, bad, last = batches(3)
    bad = bad._replace(target_weights=bad.target_weights * np.float32(poison))
    measured, state = run(stage_config(), [first, bad, last])
    expected, clean = run(stage_config(), [first, last])
    assert [bool(m["applied"]) for m in measured] == [True, False, True]
    assert [int(m["bad_run"]) for m in measured] == [0, 1, 0]
    assert measured[2]["loss"] == expected[1]["loss"]
    for path, value in clean.parameters.items():
        np.testing.assert_array_equal(value, state.parameters[path], err_msg=path)


def test_a_spike_is_caught_once_the_mean_is_warm() -> None:
    (batch,) = batches(1)
    spike = batch._replace(target_ids=(batch.target_ids + 17) % VOCAB)
    learned = [batch] * 12
    safety = SafetyConfig(spike_factor=1.2, spike_warmup_steps=5)
    measured, _ = run(stage_config(), [*learned, spike, batch], safety=safety)
    assert measured[12]["loss"] > 1.5 * measured[11]["loss"]
    assert [bool(m["applied"]) for m in measured] == [True] * 12 + [False, True]


MESHES = {
    "fsdp": MeshConfig(fsdp=8),
    "data": MeshConfig(data=8, fsdp=1),
    "tensor": MeshConfig(fsdp=4, tensor=2),
    "context": MeshConfig(fsdp=1, context=8),
    "mixed": MeshConfig(replica=1, data=1, fsdp=2, context=2, tensor=2),
}


@pytest.fixture(scope="module")
def on_one_device():
    data = batches(5)
    return data, [m["loss"] for m in run(stage_config(), data)[0]]


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_give_the_losses_of_one(on_one_device, name: str) -> None:
    data, expected = on_one_device
    measured, state = run(stage_config(), data, MESHES[name], devices=8)
    np.testing.assert_allclose([m["loss"] for m in measured], expected, rtol=2e-5)
    down = state.parameters["layers/ffn/text/down"]
    if name == "fsdp":
        assert down.addressable_shards[0].data.size * 8 == down.size


@pytest.mark.slow
def test_heads_in_parts_train_alike_on_eight_devices() -> None:
    """Each part has its own norms; values are narrower than keys. Context, tensor and fsdp shard all of them."""
    settings = DEFINITION.config.model_dump() | NEO | {"attention_implementation": "auto"}
    definition = ModelDefinition(ModelConfig.model_validate(settings, strict=False), DEFINITION.image, VOCAB)
    data = batches(2, sequence=SequenceConfig(positions="separate"))
    expected, before = run(stage_config(), data, definition=definition)
    measured, state = run(stage_config(), data, MESHES["mixed"], devices=8, definition=definition)
    np.testing.assert_allclose([m["loss"] for m in measured], [m["loss"] for m in expected], rtol=2e-5)
    np.testing.assert_allclose([m["grad_norm"] for m in measured], [m["grad_norm"] for m in expected], rtol=2e-5)
    grid, k_grid = (state.parameters[f"layers/qkv/shared/{name}"] for name in ("q_grid", "k_grid"))
    assert grid.addressable_shards[0].data.shape == (2, 16, 2, 10)
    assert k_grid.addressable_shards[0].data.shape == (2, 16, 1, 10)
    np.testing.assert_allclose(grid, before.parameters["layers/qkv/shared/q_grid"], atol=2e-4)


def test_the_kernel_for_tpu_trains_like_blocks() -> None:
    """Computed step by step; every device has its share of the rows' slots and of the heads."""
    model = DEFINITION.config.model_copy(update={"attention_implementation": "pallas", "attention_tile": (16, 16)})
    definition = ModelDefinition(model, DEFINITION.image, VOCAB)
    data = batches(2, rows=2)
    stage, mesh = stage_config(batch_rows=2), MeshConfig(fsdp=1, context=2, tensor=2)
    expected, _ = run(stage, data)
    measured, _ = run(stage, data, mesh, devices=4, definition=definition)
    np.testing.assert_allclose([m["loss"] for m in measured], [m["loss"] for m in expected], rtol=2e-5)
    np.testing.assert_allclose([m["grad_norm"] for m in measured], [m["grad_norm"] for m in expected], rtol=2e-5)


def test_a_mesh_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not make 8 devices"):
        make_mesh(MeshConfig(fsdp=3, tensor=-1), jax.devices()[:8])
    with pytest.raises(ConfigError, match=r"does not divide model\.kv_heads"):
        run(stage_config(), [], MeshConfig(fsdp=2, tensor=4), devices=8)
    with pytest.raises(ConfigError, match=r"2 rows of a .* cannot be sharded evenly over 8 devices"):
        run(stage_config(accumulate=4), [], MeshConfig(fsdp=8), devices=8)
