"""The sweeps that are shipped."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from solo.scaling.sweep.costs import check_limits, costs
from solo.scaling.sweep.points import Point, expand
from solo.scaling.sweep.spec import SweepSpec, load_spec
from tests.scaling.sweep.tiny_sweep import ROW_STATISTICS

FOLDER = Path(__file__).parents[3] / "configs" / "sweeps"


def shipped(name: str, tmp_path: Path) -> tuple[SweepSpec, list[Point]]:
    """Returns a shipped sweep and its runs, planned without data, which takes too long to count."""
    spec = load_spec(FOLDER / f"{name}.yaml")
    changes = {"folder": str(tmp_path)} | ({} if spec.row_statistics else {"row_statistics": ROW_STATISTICS})
    spec = SweepSpec.model_validate({**spec.model_dump(), **changes})
    points = expand(spec)
    check_limits(spec, points, costs(spec, points, []))
    return spec, points


def test_laptop_is_widths_by_horizons(tmp_path: Path) -> None:
    _, points = shipped("laptop", tmp_path)
    runs = [point for point in points if not point.is_stable]
    assert len(runs) >= 16
    assert len({point.config.model.width for point in runs}) >= 5
    assert len({point.steps for point in runs}) >= 4
    assert {point.config.model.parametrisation.kind for point in points} == {"mup"}
    largest = max(runs, key=lambda point: point.estimate.flops)
    second = sorted(point.estimate.flops for point in runs)[-2]
    assert largest.estimate.flops > 1.1 * second, "the hold-out needs a larger run than all others"


def test_designs_have_equal_active_parameters(tmp_path: Path) -> None:
    _, points = shipped("designs", tmp_path)
    sizes = defaultdict(dict)
    for point in points:
        if not point.is_stable:
            sizes[point.config.model.width, point.steps][point.labels["design"]] = point.estimate
    assert len(sizes) >= 12
    for found in sizes.values():
        assert set(found) == {"dense", "modality_ffn", "modality_all"} | {
            f"moe{count}_top{top}" for count in (4, 8) for top in (1, 2)
        }
        dense = found["dense"]
        assert dense.n_active == found["modality_ffn"].n_active == found["modality_all"].n_active
        assert dense.n_total < found["modality_ffn"].n_total < found["modality_all"].n_total
        for name, estimate in found.items():
            if name.startswith("moe"):  # the router adds a little
                assert estimate.n_active == pytest.approx(dense.n_active, rel=0.03)
                assert estimate.n_total > dense.n_total


def test_the_rates_of_all_designs_are_checked(tmp_path: Path) -> None:
    designs, rates = (load_spec(FOLDER / f"{name}.yaml") for name in ("designs", "designs_rates"))
    assert rates.axes["design"] == designs.axes["design"]
    _, points = shipped("designs_rates", tmp_path)
    assert len(points) == 7 * 4 * 2


def test_images_keep_the_ratio_of_their_sources(tmp_path: Path) -> None:
    _, points = shipped("images", tmp_path)
    assert len({point.labels["share"] for point in points}) == 5
    for point in points:
        mixture = point.config.stages[0].mixture
        assert sum(mixture.values()) == pytest.approx(1)
        assert 1 - mixture["topics"] == pytest.approx(float(point.labels["share"]))
        assert mixture["captions"] / mixture["digits"] == pytest.approx(4.5, rel=0.01)
        assert mixture["captions"] / mixture["questions"] == pytest.approx(3, rel=0.01)


def test_pod_has_equal_compute(tmp_path: Path) -> None:
    spec, points = shipped("pod", tmp_path)
    assert 60 <= len(points) <= 80
    assert {point.budget for point in points} == {1e18, 3e18, 1e19, 3e19, 1e20, 3e20, 1e21}
    for point in points:
        assert point.estimate.flops == pytest.approx(point.budget, rel=0.01)
    sizes = np.array([point.estimate.n_active for point in points if point.budget == 1e21])
    assert sizes.min() < 2.8e9 / 2.5
    assert sizes.max() > 2.8e9 * 2.5
    found = costs(spec, points, [])
    # 1.3e22 FLOPs at 40% of 256 x 197e12, at the list price of $1.20 an hour, plus five minutes per run.
    hours = sum(point.estimate.flops for point in points) / (0.4 * 256 * 197e12) / 3600 + len(points) * 300 / 3600
    assert found.hours == pytest.approx(hours, rel=1e-6)
    assert found.total_usd == pytest.approx(hours * 256 * 1.20, rel=1e-6)
