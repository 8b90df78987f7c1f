"""Activation statistics: against NumPy, on eight devices, and in a run, which they do not change."""

from pathlib import Path

import jax
import numpy as np
import pytest

from solo.batch import Batch
from solo.config import Config, MeshConfig
from solo.files import json_line
from solo.model.parameters import ModelDefinition
from solo.model.regions import Regions
from solo.sharding.mesh import device_batch, make_mesh
from solo.training.activations import activations_line, activations_of
from solo.training.metrics import read_metrics
from solo.training.observer import Observer
from solo.training.run_folder import RunFolder
from solo.training.tensorboard import scalars
from tests.training.test_step import DEFINITION, VOCAB, batches, stage_config
from tests.training.test_trainer import KilledError, make, steps, train

FLOAT32 = ModelDefinition(
    DEFINITION.config.model_copy(update={"compute_dtype": "float32", "vocab_multiple": 48}), DEFINITION.image, VOCAB
)


def loud_batch() -> Batch:
    """Returns a batch whose empty patch slots would give the largest values."""
    (batch,) = batches(1)
    patches = np.random.default_rng(1).normal(size=batch.patches.shape).astype(np.float32)
    empty = (batch.attend[:, : patches.shape[1]] == 0).all(-1)
    assert empty.any()
    return batch._replace(patches=np.where(empty[..., None], np.float32(1000), patches))


BATCH = loud_batch()


def measured(batch: Batch, devices: int = 1, mesh: MeshConfig | None = None, **stage) -> dict:
    on = make_mesh(mesh or MeshConfig(), jax.devices()[:devices])
    function = activations_of(FLOAT32, stage_config(**stage), on)
    found = function(FLOAT32.initialise(jax.random.key(0)), device_batch(batch, on))
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(found))
    return activations_line(7, "s", jax.device_get(found))


def assert_close(found: dict, expected: dict, rtol: float = 1e-5) -> None:
    assert {key: found[key] for key in ("kind", "step", "stage")} == {"kind": "activations", "step": 7, "stage": "s"}
    for name in ("rms", "largest"):
        assert set(found[name]) == {"patches", "text"}
        for region, values in expected[name].items():
            np.testing.assert_allclose(found[name][region], values, rtol=rtol, err_msg=f"{name} {region}")
    np.testing.assert_allclose(found["largest_logit"], expected["largest_logit"], rtol=rtol)


def in_numpy(batch: Batch) -> dict:
    """The line by definition, from the states before, between and after the layers."""
    parameters = FLOAT32.initialise(jax.random.key(0))
    model = FLOAT32.bind(parameters)
    states = [x.map(np.float64) for x in map(Regions._make, jax.device_get(model.residual_stream(batch)))][1:]
    seen = batch.attend[..., 1] + batch.attend[..., 3] > batch.attend[..., 0] + batch.attend[..., 2]
    live = Regions.split(seen, batch.patches.shape[1])
    assert not all(part.all() for part in live)  # some slots are empty
    hidden = np.float64(model.hidden(batch).hidden.join())
    rows, places = np.nonzero(batch.target_weights)
    kernel = np.float64(model.head_kernel())[:, :VOCAB]
    logits = hidden[rows, batch.target_slots[rows, places]] @ kernel
    regions = ("patches", "text")

    def by_layer(function) -> dict[str, list[float]]:
        return {each: [function(getattr(x, each)[getattr(live, each)]) for x in states] for each in regions}

    return {
        "rms": by_layer(lambda x: np.sqrt((x**2).mean())),
        "largest": by_layer(lambda x: np.abs(x).max()),
        "largest_logit": np.abs(logits).max(),
    }


@pytest.mark.parametrize(
    "stage", [{}, {"accumulate": 4}, {"loss": {"chunk_size": 24}}], ids=["whole", "micro-batches", "chunks"]
)
def test_statistics_are_those_of_the_hidden_states(stage: dict) -> None:
    assert_close(measured(BATCH, **stage), in_numpy(BATCH))


@pytest.mark.parametrize(
    "mesh", [MeshConfig(), MeshConfig(fsdp=2, tensor=2, context=2)], ids=["fsdp", "fsdp, tensor, context"]
)
def test_eight_devices_measure_what_one_does(mesh: MeshConfig) -> None:
    assert_close(measured(BATCH, 8, mesh), measured(BATCH))


def test_empty_slots_and_targets_do_not_count() -> None:
    blank = np.zeros_like(BATCH.attend)
    blank[:, 32:] = BATCH.attend[:, 32:]
    found = measured(BATCH._replace(attend=blank, target_weights=np.zeros_like(BATCH.target_weights)))
    assert found["rms"]["patches"] is None
    assert found["largest"]["patches"] is None
    assert found["largest_logit"] is None
    assert len(found["rms"]["text"]) == 2


def test_tensorboard_names_the_layers() -> None:
    line = {"kind": "activations", "step": 3, "stage": "s", "largest_logit": 2.5}
    line |= {"rms": {"patches": None, "text": [1.0, None, 3.0]}, "largest": {"patches": [4.0], "text": None}}
    assert dict(scalars(line)) == {
        "activations/rms/text/layer_00": 1.0,
        "activations/rms/text/layer_02": 3.0,
        "activations/largest/patches/layer_00": 4.0,
        "activations/largest_logit": 2.5,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("activations")


def activations(folder: Path) -> list[str]:
    lines = read_metrics(RunFolder(folder).metrics_file)
    return [json_line(line) for line in lines if line["kind"] == "activations"]


@pytest.mark.slow
def test_a_run_trains_the_same_and_a_resumed_one_writes_the_same_lines(folder: Path) -> None:
    class Killer(Observer):
        def step(self, line, num_steps) -> None:
            if line["step"] == 5:
                raise KilledError

    settings = {"stage": {"steps": 6}, "checkpoint": {"every_steps": 3}}
    plain = make(folder, name="plain", **settings)
    train(plain)
    config = make(folder, name="measured", **settings, watch={"activations_every_steps": 2})
    with pytest.raises(KilledError):
        train(config, Killer())
    before = activations(config.run_folder)
    assert len(before) == 2
    train(config)  # from step 3: the line of step 4 is written again
    assert activations(config.run_folder)[:2] == before
    lines = read_metrics(RunFolder(config.run_folder).metrics_file)
    kinds = [(line["kind"], line["step"]) for line in lines]
    assert [step for kind, step in kinds if kind == "activations"] == [2, 4, 6]
    assert kinds.index(("activations", 4)) == kinds.index(("train", 4)) + 1
    assert all(np.isfinite(line["largest_logit"]) for line in lines if line["kind"] == "activations")

    def untimed(each: Config) -> list[dict]:
        return [{**line, "timing": None} for line in steps(RunFolder(each.run_folder))]

    assert untimed(config) == untimed(plain)
    assert activations(plain.run_folder) == []
