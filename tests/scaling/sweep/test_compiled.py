"""The cost of a sweep from compiled steps."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from solo.cli import main
from solo.machines import parse_machine
from solo.scaling.sweep import compiled
from solo.scaling.sweep.compiled import machine_cost
from solo.scaling.sweep.points import expand
from tests.scaling.sweep.tiny_sweep import planned, write_sweep

DESIGNS = {"dense": {"model.experts": {}}, "experts": {"model.experts": {"ffn": "modality"}}}
AXES = {"design": DESIGNS, "seed_of_run": {"a": {"seed": 0}, "b": {"seed": 1}}}
MACHINE = {"name": "v5e-4", "startup_seconds": 60}
STAGE = {"name": "only", "mixture": {"scenes": 1.0}, "steps": 10, "batch_rows": 8, "row_slots": 128}
BASE = {"stages": [{**STAGE, "optimizer": {"learning_rate": 1e-2}}]}


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Replaces the compiler: a step of width w takes w ms, and half as long again with experts."""
    calls: list[tuple[str, int]] = []

    def forecast(config, stage, machine, document_slots):
        model = config.model
        assert document_slots == 119  # 12,000 pairs in 200 slots
        calls.append((model.experts.ffn, model.width))
        seconds = model.width / 1000 * (1.5 if model.experts.ffn == "modality" else 1)
        return SimpleNamespace(
            fits=model.width < 256, time=SimpleNamespace(total=seconds), mfu=0.4, needed=2**30, limit=2**31, no_time=""
        )

    monkeypatch.setattr(compiled, "forecast", forecast)
    return calls


def test_times_are_interpolated_between_compiled_sizes(tmp_path: Path, compiles: list) -> None:
    spec = planned(
        tmp_path, BASE, axes=AXES, ladder={"width": [16, 32, 64]}, design={"grid": {"steps": [1000]}}, machine=MACHINE
    )
    points = expand(spec)
    found = machine_cost(spec, points, parse_machine("v5e-4"), 2, lambda line: None)
    # Seeds share their steps; of three sizes, the smallest and the largest are compiled.
    assert compiles == [("shared", 16), ("shared", 64), ("modality", 16), ("modality", 64)]
    hours = sum(
        60 + 1000 * width / 1000 * factor for factor in (1, 1.5) for _ in AXES["seed_of_run"] for width in (16, 64)
    )
    low, middle, high = (point.estimate for point in points[:3])
    rates = [each.flops / 1000 / (width / 1000) for each, width in ((low, 16), (high, 64))]
    share = np.log(middle.n_active / low.n_active) / np.log(high.n_active / low.n_active)
    between = middle.flops / (rates[0] + share * (rates[1] - rates[0]))
    hours += 2 * (60 + between) + 2 * (60 + 1.5 * between)
    assert found.hours == pytest.approx(hours / 3600)
    assert found.usd == pytest.approx(found.hours * parse_machine("v5e-4").usd_per_hour())
    assert machine_cost(spec, points, parse_machine("v5e-4"), 2, lambda line: None) == found
    assert len(compiles) == 4, "compiled steps are kept"
    machine_cost(spec, points, parse_machine("v5e-8"), 1, lambda line: None)
    assert compiles[4:] == [("shared", 64), ("modality", 64)]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.ffn", "relu2"),
        ("model.qk_norm", "rms"),
        ("stages.0.row_slots", 256),
        ("stages.0.optimizer.name", "lion"),
    ],
)
def test_every_axis_that_changes_the_step_is_compiled_apart(tmp_path: Path, compiles: list, key: str, value) -> None:
    axes = {"design": {"a": {}, "b": {key: value}}, "seed_of_run": AXES["seed_of_run"]}
    spec = planned(tmp_path, BASE, axes=axes, machine=MACHINE)
    found = machine_cost(spec, expand(spec), parse_machine("v5e-4"), 2, lambda line: None)
    assert [step.labels for step in found.steps] == ["a, a", "b, a"]
    assert len(compiles) == 2


def test_a_size_that_does_not_fit_has_no_cost(tmp_path: Path, compiles: list) -> None:
    spec = planned(tmp_path, BASE, ladder={"width": [16, 256]}, machine=MACHINE)
    found = machine_cost(spec, expand(spec), parse_machine("v5e-4"), 2, lambda line: None)
    assert (found.hours, found.usd) == (None, None)
    assert [step.seconds for step in found.steps] == [0.016, None]


@pytest.mark.slow
def test_the_command_names_the_cheapest_machine(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """One size is compiled for two machines; at this size the larger machine only costs more."""
    spec = {"row_statistics": {"patches": 60, "text": 60, "targets": 50, "attended_pairs": 3600}}
    path = write_sweep(tmp_path, BASE, ladder={"width": [16]}, machine=MACHINE, **spec)
    assert main(["sweep", str(path), "--on", "v5e-4", "v5e-8", "--json", str(tmp_path / "cost.json")]) == 0
    printed = capsys.readouterr().out
    assert "cheapest: v5e-4" in printed
    assert "v5e-8: 1 run, " in printed
    assert '"machine": "v5e-8"' in (tmp_path / "cost.json").read_text()
    assert main(["sweep", str(path), "--on", "v5e-3"]) == 2
    assert main(["sweep", str(path), "--on", "v5e-4", "--yes"]) == 2
    assert "--on only costs the sweep" in capsys.readouterr().err
