"""Estimated memory against real compiled steps and against arithmetic."""

import dataclasses
from types import SimpleNamespace

import pytest

from solo import chips, pipeline
from solo.config import ConfigError, load_config
from solo.data.planning.row_shape import RowShape
from solo.machines import parse_machine
from solo.model.parameters import define
from solo.planning.memory import hand_count, memory_limit
from solo.planning.memory_fit import check_fit, machine_here, nearest_settings

SHAPE = RowShape(6144, 2048, 2048)


def _solo_7b(*overrides: str):
    config = load_config("configs/plans/solo_7b_8k.yaml", overrides)
    return config, config.stages[0], define(config, None)


def test_parameters_and_optimizer_of_solo_7b_are_sixty_fourths_of_the_whole() -> None:
    config, stage, definition = _solo_7b()
    count = hand_count(config, stage, definition, SHAPE, 64)
    parameters = definition.num_parameters()
    # Norms (65 x 4,096) lie on every device.
    norms = 65 * 4096
    assert count.parameters == 4 * ((parameters - norms) // 64 + norms)
    assert count.optimizer == pytest.approx(2 * count.parameters, abs=8)
    # A row: pixels, places, text, positions, intervals, and four columns of targets; counters beside it.
    row = 6144 * (3072 + 8) + 2048 * 4 + 8192 * (4 + 16) + 2048 * 16
    assert count.batch == pytest.approx(16 * row, abs=32)


def test_frozen_parameters_have_no_optimizer_state_and_no_gradients() -> None:
    config, stage, definition = _solo_7b()
    some = hand_count(config, stage.model_copy(update={"train": ("head",)}), definition, SHAPE, 64)
    assert some.parameters == hand_count(config, stage, definition, SHAPE, 64).parameters
    head = 4 * definition.specs["head"].shape[0] * definition.specs["head"].shape[1] // 64
    assert some.gradients == head
    assert some.optimizer == pytest.approx(2 * head, abs=8)


def test_less_rematerialisation_and_more_rows_save_more() -> None:
    def saved(*overrides: str) -> int:
        config, stage, definition = _solo_7b(*overrides)
        return hand_count(config, stage, definition, SHAPE, 64).saved

    # Inputs of 32 layers and attention's outputs in bfloat16, and a float32 for every head.
    assert saved() == 16 * 8192 * 32 * (2 * 4096 * 2 + 32 * 4)
    narrow = saved("model.value_dim=64", "model.remat=attention")
    assert narrow == 16 * 8192 * 32 * ((4096 + 32 * 64) * 2 + 32 * 4)
    # Its projections: 32 queries and 8 keys of 128, 8 values of 64, and the output.
    projected = saved("model.value_dim=64", "model.remat=projections") - narrow
    assert projected == 16 * 8192 * 32 * (40 * 128 + 8 * 64 + 4096) * 2
    order = ("none", "dots", "projections", "attention", "full", "offload")
    sizes = [saved(f"model.remat={policy}") for policy in order]
    assert sizes[:5] == sorted(sizes[:5], reverse=True)
    # Half a layer each: its input alone, or attention's output alone.
    assert sizes[4] == sizes[5] - 16 * 8192 * 32 * 32 * 4 == 16 * 8192 * 32 * 4096 * 2
    assert saved("model.remat=offload_projections") == sizes[5]
    assert saved("stages.0.accumulate=4") * 4 == saved()
    # Four times the rows on a device, a quarter of every row.
    assert saved("mesh.context=4") == saved()


def test_a_refusal_names_settings_that_would_fit() -> None:
    config, stage, definition = _solo_7b("stages.0.batch_rows=1024")
    v5e = parse_machine("v5e-64")
    with pytest.raises(ConfigError, match="does not fit v5e-64") as refused:
        check_fit(config, stage, definition, SHAPE, v5e)
    assert "stages.0.accumulate=" in str(refused.value)
    # Here only the model of the rest is above the limit: a warning, for it may be wrong.
    assert "may not fit v5p-128" in check_fit(config, stage, definition, SHAPE, parse_machine("v5p-128"))
    half = stage.model_copy(update={"accumulate": 2})
    assert check_fit(config, half, definition, SHAPE, parse_machine("v5p-128")) is None


def test_suggestions_fit() -> None:
    config, stage, definition = _solo_7b("stages.0.batch_rows=1024", "model.remat=none")
    v5p = parse_machine("v5p-128")
    needed = hand_count(config, stage, definition, SHAPE, 64).total
    limit = memory_limit(v5p)
    found = nearest_settings(config, stage, definition, SHAPE, v5p, needed)
    assert found
    assert all(each.needed <= limit for each in found)
    changed, its_stage, _ = _solo_7b("stages.0.batch_rows=1024", "model.remat=none", *found[0].overrides)
    assert hand_count(changed, its_stage, define(changed, None), SHAPE, 64).total == found[0].needed


def test_a_machine_of_unknown_memory_is_never_refused() -> None:
    config, stage, definition = _solo_7b()
    assert memory_limit(parse_machine("cpu-64")) is None
    assert check_fit(config, stage, definition, SHAPE, parse_machine("cpu-64")) is None


def test_a_tpu7x_device_has_half_the_memory_of_its_chip() -> None:
    assert memory_limit(parse_machine("tpu7x-128")) == 96 * 2**30


def test_local_devices_are_a_machine_of_their_kind() -> None:
    here = machine_here()
    assert (here.chip.name, here.devices) == ("cpu", 8)


def test_training_refuses_a_stage_that_cannot_fit(monkeypatch) -> None:
    """`solo train` asks before its first step, with the shape that its data was given."""
    config, stage, definition = _solo_7b("mesh.fsdp=8")
    small = dataclasses.replace(chips.CHIPS["cpu"], memory=2**30)
    monkeypatch.setitem(chips.CHIPS, "cpu", small)
    plans = [SimpleNamespace(stage=stage, shape=SHAPE)]
    trainer = SimpleNamespace(config=config, definition=definition, plans=plans, mesh=SimpleNamespace(size=8))
    with pytest.raises(ConfigError, match="does not fit cpu, 8 devices"):
        pipeline.check_memory(trainer)
