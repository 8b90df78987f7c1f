"""The optimum of a few learning rates."""

import json
from pathlib import Path

import numpy as np
import pytest

from solo.config import ConfigError
from solo.outputs import Output
from solo.scaling.sweep.folder import SweepFolder
from solo.scaling.sweep.plots import plot_rates
from solo.scaling.sweep.points import expand
from solo.scaling.sweep.rates import AXIS, curves, vertex
from tests.scaling.sweep.tiny_sweep import planned


def test_the_vertex_of_a_parabola_is_found() -> None:
    rates = np.array([1e-3, 2e-3, 4e-3, 1e-2])
    losses = 2.0 + 0.3 * np.log(rates / 3e-3) ** 2
    rate, loss = vertex(rates, losses)
    assert (rate, loss) == (pytest.approx(3e-3), pytest.approx(2.0))
    assert vertex(rates[2:], losses[2:]) is None
    assert vertex(rates[:2], losses[:2]) is None


def test_a_curve_for_each_width(tmp_path: Path) -> None:
    """Width 16 is best at 4e-3; the optimum of width 32 lies beyond the rates, and its diverged run is left out."""
    rates = [1e-3, 2e-3, 4e-3, 8e-3]
    spec = planned(tmp_path, axes={AXIS: rates}, ladder={"width": [16, 32]})
    points, folder = expand(spec), SweepFolder(spec.path)
    folder.write_plan(spec, points)
    for point in points:
        rate, width = point.labels[AXIS], point.config.model.width
        result = {"status": "done", "losses": {"text": 1 + abs(np.log(rate / (4e-3 if width == 16 else 1e-3)))}}
        if (width, rate) == (32, 8e-3):
            result = {"status": "diverged", "error": "a loss"}
        folder.run(point.id).mkdir(parents=True)
        folder.result_file(point.id).write_text(json.dumps(result))
    narrow, wide = curves(folder, "text")
    assert (narrow.width, narrow.rates) == (16, tuple(rates))
    assert narrow.best == pytest.approx(4e-3)
    assert (wide.width, wide.rates, wide.best) == (32, tuple(rates[:3]), None)
    plot_rates([narrow, wide], "text", Output(tmp_path / "rates.png", "solo sweep --rates"))
    assert (tmp_path / "rates.png").stat().st_size > 10_000
    with pytest.raises(ConfigError, match="there is no loss 'caption'; there are text"):
        curves(folder, "caption")


def test_rates_are_compared_after_equally_many_steps(tmp_path: Path) -> None:
    """Width 16 has two finished rates of 20 steps, so that its runs of 10 count. Seeds are averaged."""
    seeds = {"a": {"seed": 0}, "b": {"seed": 1}}
    axes = {AXIS: [1e-3, 2e-3, 4e-3], "seed_of_run": seeds}
    spec = planned(tmp_path, axes=axes, ladder={"width": [16, 32]}, design={"grid": {"steps": [10, 20]}})
    points, folder = expand(spec), SweepFolder(spec.path)
    folder.write_plan(spec, points)
    for point in points:
        rate, width = point.labels[AXIS], point.config.model.width
        loss = abs(np.log(rate / 2e-3)) + 40 / point.steps + (0.5 if point.labels["seed_of_run"] == "a" else 0.0)
        if (width, rate, point.steps) != (16, 4e-3, 20):
            folder.run(point.id).mkdir(parents=True)
            folder.result_file(point.id).write_text(json.dumps({"status": "done", "losses": {"text": loss}}))
    narrow, wide = curves(folder, "text")
    assert (narrow.steps, wide.steps) == (10, 20)
    assert narrow.losses == pytest.approx((np.log(2) + 4.25, 4.25, np.log(2) + 4.25))
    assert wide.losses == pytest.approx((np.log(2) + 2.25, 2.25, np.log(2) + 2.25))
    assert (narrow.best, wide.best) == (pytest.approx(2e-3), pytest.approx(2e-3))


def test_a_curve_for_each_group_and_width(tmp_path: Path) -> None:
    """The optimum of the experts lies at half the rate of the dense model's."""
    experts = {"dense": {"model.experts": {}}, "experts": {"model.experts": {"ffn": "modality"}}}
    axes = {"design": experts, AXIS: [1e-3, 2e-3, 4e-3, 8e-3]}
    spec = planned(tmp_path, axes=axes, ladder={"width": [16, 32]})
    points, folder = expand(spec), SweepFolder(spec.path)
    folder.write_plan(spec, points)
    best = {"dense": 4e-3, "experts": 2e-3}
    for point in points:
        loss = abs(np.log(point.labels[AXIS] / best[point.labels["design"]]))
        folder.run(point.id).mkdir(parents=True)
        folder.result_file(point.id).write_text(json.dumps({"status": "done", "losses": {"text": loss}}))
    found = curves(folder, "text", by="design")
    assert [curve.name for curve in found] == [
        *("dense, width 16", "dense, width 32", "experts, width 16", "experts, width 32")
    ]
    assert [curve.best for curve in found] == pytest.approx([4e-3, 4e-3, 2e-3, 2e-3])
    plot_rates(found, "text", Output(tmp_path / "rates.svg", "solo sweep --rates"))
    assert "experts, width 32" in (tmp_path / "rates.svg").read_text()
    with pytest.raises(ConfigError, match="--by shape: the sweep has the axes design,"):
        curves(folder, "text", by="shape")


def test_a_sweep_without_learning_rates(tmp_path: Path) -> None:
    spec = planned(tmp_path)
    points, folder = expand(spec), SweepFolder(spec.path)
    folder.write_plan(spec, points)
    with pytest.raises(ConfigError, match="no run is finished"):
        curves(folder, "text")
    folder.run(points[0].id).mkdir(parents=True)
    folder.result_file(points[0].id).write_text(json.dumps({"status": "done", "losses": {"text": 1.0}}))
    with pytest.raises(ConfigError, match="no axis"):
        curves(folder, "text")
