"""Averages of the weights: their formula, good steps only, on meshes, through stages and restarts."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solo
from solo.config import AverageConfig, ConfigError, MeshConfig, SafetyConfig, load_config, parse_config
from solo.model.parameters import define
from solo.planning.memory import hand_count
from solo.sharding.mesh import device_batch, make_mesh
from solo.training.averages import Average, averaged_paths, begin, carry, update
from solo.training.metrics import read_metrics
from solo.training.observer import Observer
from solo.training.step import make_stage
from tests.planning.test_memory import SHAPE
from tests.training.test_step import DEFINITION, batches, stage_config
from tests.training.test_trainer import KilledError, make, prepared_folder, train  # noqa: F401


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.9999])
@pytest.mark.parametrize(("start", "every"), [(1, 1), (4, 1), (3, 5)])
def test_an_average_is_the_corrected_sum_of_the_good_steps(decay: float, start: int, every: int) -> None:
    config = AverageConfig(decay=decay, start_step=start, every_steps=every)
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(20, 3, 4)).astype(np.float32)
    good = rng.random(20) < 0.8
    average = begin({"ema": config}, {"w": jnp.asarray(weights[0])})["ema"]
    step = jax.jit(lambda average, value, ok: update(config, average, {"w": value, "other": value}, ok))
    for number, value in enumerate(weights, 1):
        average = step(average, jnp.asarray(value), jnp.asarray(good[number - 1]))
        counted = [n for n in range(1, number + 1) if n >= start and n % every == 0 and good[n - 1]]
        factors = np.array([decay ** (len(counted) - 1 - i) for i in range(len(counted))], np.float64)
        chosen = weights[[n - 1 for n in counted]].astype(np.float64)
        expected = np.tensordot(factors / factors.sum(), chosen, 1) if counted else value
        np.testing.assert_allclose(average.weights["w"], expected, rtol=2e-6, atol=1e-6)
        assert (int(average.updates), int(average.step)) == (len(counted), number)


def test_a_constant_weight_is_its_own_average_however_long() -> None:
    """The rounding errors of 20,000 updates would add up."""
    config = AverageConfig(decay=0.9999)
    value = {"w": jnp.asarray([0.7, -1.1])}
    average = begin({"ema": config}, {"w": jnp.asarray([0.1, 3.0])})["ema"]
    good = jnp.asarray(True)
    average = jax.lax.fori_loop(0, 20_000, lambda _, average: update(config, average, value, good), average)
    np.testing.assert_array_equal(average.weights["w"], value["w"])


def averaged(devices: int):
    """The state after four steps of which the third is bad, and the trained weights after each."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    configs = {"ema": AverageConfig(decay=0.5), "slow": AverageConfig(decay=0.9)}
    stage = stage_config(train=["layers"], optimizer={"learning_rate": 1e-3, "schedule": "constant"})
    built = make_stage(DEFINITION, stage, 5, SafetyConfig(), mesh, None, averages=configs)
    state = built.start(DEFINITION.initialise(jax.random.key(0)))
    weights = []
    for number, batch in enumerate(batches(4)):
        if number == 2:
            batch = batch._replace(target_weights=np.full_like(batch.target_weights, np.inf))
        state, _ = built.step(state, device_batch(batch, mesh))
        weights.append(jax.device_get(state.trainable))
    return state, weights


def test_bad_steps_do_not_count_and_eight_devices_equal_one() -> None:
    one, weights = averaged(1)
    eight, _ = averaged(8)
    for path, found in one.averages["ema"].weights.items():
        np.testing.assert_array_equal(weights[1][path], weights[2][path])
        expected = sum(share * np.float64(weights[n][path]) for n, share in ((0, 1 / 7), (1, 2 / 7), (3, 4 / 7)))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7, err_msg=path)
        other = eight.averages["ema"].weights[path]
        np.testing.assert_allclose(found, other, rtol=1e-3, atol=1e-4, err_msg=path)
        assert other.sharding == eight.trainable[path].sharding
    assert [int(one.averages[name].updates) for name in ("ema", "slow")] == [3, 3]
    assert one.averages["ema"].weights.keys() == one.trainable.keys()
    assert one.weights.keys() == {"trained", "ema", "slow"}
    assert one.weights["ema"].keys() == one.parameters.keys()
    np.testing.assert_array_equal(one.weights["ema"]["head"], one.frozen["head"])


def test_parameters_enter_an_average_with_the_value_that_they_had() -> None:
    trained = {"a": ["head"], "b": ["layers/ffn"], "c": ["head"]}
    stages = [stage_config(name=name, train=train) for name, train in trained.items()]
    paths = list(DEFINITION.specs)
    both = sorted(["head", *(path for path in paths if path.startswith("layers/ffn/"))])
    assert [averaged_paths(stages, stage, paths) for stage in stages] == [["head"], both, both]
    before = {"ema": Average({"head": jnp.ones(3)}, jnp.asarray(7), jnp.asarray(9))}
    fresh = begin({"ema": AverageConfig(decay=0.5)}, {"head": jnp.zeros(3), "layers/ffn/up": jnp.full(2, 5.0)})
    found = carry(fresh, before)["ema"]
    np.testing.assert_array_equal(found.weights["head"], np.ones(3))
    np.testing.assert_array_equal(found.weights["layers/ffn/up"], np.full(2, 5.0))
    assert (int(found.updates), int(found.step)) == (7, 9)


def read(run: Path, step: int, weights: str) -> dict[str, np.ndarray]:
    return jax.device_get(solo.load(run, step=step, weights=weights).parameters)


@pytest.mark.slow
def test_a_resumed_run_has_the_averages_and_losses_of_a_whole_one(prepared_folder: Path) -> None:  # noqa: F811
    """Through a stage that trains more than the one before. Checkpoints hold the averages by name."""

    class Killer(Observer):
        def step(self, line, num_steps) -> None:
            if line["step"] == 5:
                raise KilledError

    base = make(prepared_folder).stages[0].model_dump(mode="json")
    stages = [{**base, "name": "first", "steps": 3, "train": ["patch_embed"]}, {**base, "name": "second", "steps": 4}]
    settings = {"stages": stages, "checkpoint": {"every_steps": 2, "keep_latest": 9}}
    averages = {"ema": {"decay": 0.8}, "late": {"decay": 0.5, "start_step": 5}}
    train(make(prepared_folder, name="plain", **settings))
    whole = make(prepared_folder, name="averaged", averages=averages, **settings)
    train(whole)
    killed = make(prepared_folder, name="averaged_killed", averages=averages, **settings)
    with pytest.raises(KilledError):
        train(killed, Killer())
    train(killed)

    def losses(name: str) -> list[float]:
        lines = read_metrics(prepared_folder / "runs" / name / "metrics.jsonl")
        return [line["loss"] for line in lines if line["kind"] == "train"]

    assert losses("plain") == losses("averaged") == losses("averaged_killed")
    for name in ("trained", "ema", "late"):
        one, other = (read(config.run_folder, 7, name) for config in (whole, killed))
        for path, value in one.items():
            np.testing.assert_array_equal(value, other[path], err_msg=f"{name} {path}")
    run = whole.run_folder
    assert not np.array_equal(read(run, 7, "late")["head"], read(run, 7, "trained")["head"])
    # Before its first step, an average is the weights.
    np.testing.assert_array_equal(read(run, 4, "late")["head"], read(run, 4, "trained")["head"])
    assert not np.array_equal(read(run, 4, "ema")["head"], read(run, 4, "trained")["head"])
    with pytest.raises(ValueError, match="no weights 'emma' here; there are trained, ema, late"):
        solo.load(run, weights="emma")
    changed = {**averages, "ema": {"decay": 0.9}}
    with pytest.raises(ConfigError, match=r"averages\.ema\.decay: 0\.8 -> 0\.9"):
        train(make(prepared_folder, name="averaged", averages=changed, **settings))


def test_a_plan_counts_averages() -> None:
    path, averages = "configs/plans/solo_7b_8k.yaml", "averages={ema: {decay: 0.9999}, fast: {decay: 0.99}}"
    plain, config = load_config(path), load_config(path, [averages])
    count = hand_count(config, config.stages[0], define(config, None), SHAPE, 64)
    without = hand_count(plain, plain.stages[0], define(plain, None), SHAPE, 64)
    assert count.averages == 2 * (count.parameters + 8)
    assert dataclasses.replace(count, averages=0) == without
    assert count.total == without.total + count.averages


@pytest.mark.parametrize("name", ["trained", "Ema", "a b", ""])
def test_a_name_of_an_average_is_a_word(name: str) -> None:
    data = load_config("configs/quickstart.yaml").model_dump(mode="json")
    with pytest.raises(ConfigError, match="no name of an average"):
        parse_config({**data, "averages": {name: {"decay": 0.9}}})
