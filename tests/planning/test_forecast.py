"""A real step compiled for eight CPU devices, its figures, and the output of the command."""

import dataclasses
import json
from pathlib import Path

import pytest

from solo import chips
from solo.cli import main
from solo.config import MeshConfig, dump_config
from solo.machines import parse_machine
from solo.planning import forecast as forecasts
from solo.planning.forecast import Forecast, forecast
from solo.planning.memory import format_bytes
from solo.planning.program import OutOfMemoryError
from tests.tiny import MODEL, tiny_config

ROWS = {"patch_slots": 48, "text_slots": 16, "target_slots": 8, "batch_rows": 8, "steps": 500}


@pytest.fixture(scope="module")
def found() -> Forecast:
    config = _config()
    return forecast(config, config.stages[0], parse_machine("cpu-8"))


def _config():
    config = tiny_config(model={**MODEL, "remat": "attention"}, data={"folder": "nowhere", **_sources()})
    stage = config.stages[0].model_copy(update=ROWS)
    # An early stage of another name, which trains the same.
    other = stage.model_copy(update={"name": "other", "steps": 1500})
    return config.model_copy(update={"stages": (stage, other), "mesh": MeshConfig(fsdp=4, tensor=2)})


def _sources() -> dict:
    return {"sources": {"digits": {"reader": "digits"}}, "tokenizer": {"vocab_size": 310}}


def test_arguments_are_within_a_hundredth_of_the_hand_count(found: Forecast) -> None:
    assert found.program.arguments == pytest.approx(found.by_hand.arguments, rel=0.01)
    assert found.needed > found.by_hand.arguments


def test_collectives_run_along_mesh_axes(found: Forecast) -> None:
    axes = {each.axes for each in found.collectives if each.bytes > 100}
    assert {("fsdp",), ("tensor",)} <= axes
    # Weights are gathered layer by layer, in the forward pass and again in the backward pass.
    gathered = [each for each in found.collectives if each.kind == "all-gather" and each.axes == ("fsdp",)]
    layer = 4 * 32 * (2 * 3 * 48 + 2 * (4 + 2 * 2) * 8 + 4 * 8) // 2
    assert sum(each.bytes for each in gathered) >= 2 * MODEL["layers"] * layer


def test_useful_flops_are_below_computed_flops(found: Forecast) -> None:
    assert 0 < found.flops.useful_share < 1
    assert found.flops.tokens == 8 * 64
    for part, flops in found.flops.useful.items():
        assert flops <= found.flops.computed[part], part


def test_no_cycle_counts_means_no_step_time(found: Forecast) -> None:
    assert found.time is found.mfu is found.hours is None
    assert found.fits


def test_the_command_writes_every_figure(found: Forecast, tmp_path: Path, monkeypatch, capsys) -> None:
    calls = []
    monkeypatch.setattr(forecasts, "forecast", lambda *arguments: calls.append(arguments) or found)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    (tmp_path / "config.yaml").write_text(dump_config(_config()))
    assert (
        main(["plan", str(tmp_path / "config.yaml"), "--on", "cpu-8", "--json", str(tmp_path / "new" / "plan.json")])
        == 0
    )
    plan = json.loads((tmp_path / "new" / "plan.json").read_text())
    assert set(plan) == {"file", "config", "machine", "stages", "evaluation", "recipe", "basis", "overrides"}
    first, second = plan["stages"]
    assert set(first) == {
        *("stage", "mesh", "settings", "rows", "memory", "flops", "collectives", "step", "mfu", "tokens_per_second"),
        *("replicated", "no_step", "steps", "hours", "compiler_options", "compiled_in_seconds"),
    }
    assert first["memory"]["parameters"] == found.by_hand.parameters
    assert first["mesh"] == {"replica": 1, "data": 1, "fsdp": 4, "context": 1, "tensor": 2}
    # Equal stages are compiled once.
    assert len(calls) == 1
    assert (second["stage"], second["steps"], second["memory"]) == ("other", 1500, first["memory"])
    assert first["no_step"] == "the compiler for cpu gives no cycle counts"
    assert {"clock", "memory", "price"} <= set(plan["machine"]["unknown"])
    printed = capsys.readouterr()
    assert "unknown for cpu-8: peak_flops" in printed.out
    assert printed.err == ""


def test_a_plan_that_does_not_fit_exits_with_2_and_names_settings_that_would(
    found: Forecast, tmp_path: Path, monkeypatch, capsys
) -> None:
    small = dataclasses.replace(chips.CHIPS["cpu"], memory=found.needed - 1000)
    monkeypatch.setitem(chips.CHIPS, "cpu", small)
    smaller = dataclasses.replace(found, machine=parse_machine("cpu-8"))
    monkeypatch.setattr(forecasts, "forecast", lambda *arguments: smaller)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(_config()))
    assert main(["plan", str(path), "--on", "cpu-8", "--stage", "only"]) == 2
    error = capsys.readouterr().err
    assert f"needs {format_bytes(found.needed)}" in error
    assert "what would fit" in error


def test_compiler_options_can_be_overridden(found: Forecast, tmp_path: Path, monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(forecasts, "forecast", lambda *arguments: calls.append(arguments) or found)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    (tmp_path / "config.yaml").write_text(dump_config(_config()))
    given = {"xla_a": "true", "xla_b": "3", "xla_c": "0.5", "xla_d": "fast", "xla_e": "null"}
    words = [f"compiler_options.{name}={value}" for name, value in given.items()]
    assert main(["plan", str(tmp_path / "config.yaml"), *words, "--on", "cpu-8"]) == 0
    (config, *_, options, _) = calls[0]
    assert config.compiler_options == {"xla_a": True, "xla_b": 3, "xla_c": 0.5, "xla_d": "fast", "xla_e": None}
    assert [type(value) for value in config.compiler_options.values()] == [bool, int, float, str, type(None)]
    assert options is None


def test_a_refused_compiler_option_is_named(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    (tmp_path / "config.yaml").write_text(dump_config(_config()))
    words = [str(tmp_path / "config.yaml"), "compiler_options.xla_no_such_option=true", "--on", "cpu-8"]
    assert main(["plan", *words, "--stage", "only"]) == 2
    assert capsys.readouterr().err.startswith("solo: compiler_options.xla_no_such_option: the compiler for cpu refuses")


def test_a_missing_stage_is_named(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    (tmp_path / "config.yaml").write_text(dump_config(_config()))
    assert main(["plan", str(tmp_path / "config.yaml"), "--on", "cpu-8", "--stage", "onyl"]) == 2
    assert "it has only, other" in capsys.readouterr().err


def test_an_out_of_memory_error_is_parsed() -> None:
    error = OutOfMemoryError(
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (66.75G) exceeds"
        " available HBM (15.75G)."
    )
    assert error.temporaries == int(66.75 * 2**30)
    assert error.available == int(15.75 * 2**30)
    assert OutOfMemoryError("RESOURCE_EXHAUSTED").temporaries is None
