"""From a sweep's file to its runs."""

from pathlib import Path

import numpy as np
import pytest

from solo.config import ConfigError
from solo.model.transformer import padded_vocab
from solo.scaling.sweep.points import expand
from solo.scaling.sweep.spec import load_spec
from tests.scaling.sweep.tiny_sweep import ROW_STATISTICS, planned, write_sweep

TOKENS_PER_STEP = 2 * (ROW_STATISTICS["patches"] + ROW_STATISTICS["text"])


def test_axes_are_crossed_with_sizes(tmp_path: Path) -> None:
    designs = {"dense": {"model.experts": {}}, "visual": {"model.experts": {"ffn": "modality"}}}
    spec = planned(
        tmp_path,
        axes={"seed_axis": {"a": {"seed": 1}, "b": {"seed": 2}}, "design": designs},
        ladder={"width": [16, 32, 64]},
    )
    points = expand(spec)
    assert len(points) == 2 * 2 * 3
    found = {(p.labels["seed_axis"], p.labels["design"], p.config.model.width) for p in points}
    assert found == {(s, d, w) for s in "ab" for d in designs for w in (16, 32, 64)}
    assert {p.config.seed for p in points if p.labels["seed_axis"] == "b"} == {2}
    assert all((p.config.model.experts.ffn == "modality") == (p.labels["design"] == "visual") for p in points)
    assert len({p.id for p in points}) == len(points)
    # Visual experts have the same active parameters, and more in total.
    dense, visual = (next(p for p in points if p.labels == {"seed_axis": "a", "design": d}) for d in designs)
    assert dense.estimate.n_active == visual.estimate.n_active
    assert visual.estimate.n_total - dense.estimate.n_total == 3 * 16 * 32


def test_a_ladder_keeps_the_ratios_of_its_base(tmp_path: Path) -> None:
    points = expand(planned(tmp_path, ladder={"width": [16, 64], "layers": [1, 3]}))
    small, large = (p.config.model for p in points)
    assert (small.heads, small.kv_heads, small.ffn_width, small.layers) == (2, 1, 32, 1)
    assert (large.heads, large.kv_heads, large.ffn_width, large.layers) == (8, 4, 128, 3)


def test_branches_share_a_stable_run_that_is_paid_once(tmp_path: Path) -> None:
    points = expand(
        planned(tmp_path, design={"horizons": {"steps": 100, "at": [0.25, 0.5, 1.0], "decay": 0.2}}, warmup=0.2)
    )
    stable, *branches = points
    assert stable.is_stable
    assert stable.steps == 80
    assert stable.config.checkpoint.at_steps == (20, 40, 80)
    assert stable.config.stages[0].optimizer.schedule == "constant"
    assert not stable.config.evaluation.losses
    assert [(b.steps, b.branch_step, b.stable_run) for b in branches] == [
        (25, 20, stable.id),
        (50, 40, stable.id),
        (100, 80, stable.id),
    ]
    # All share one warm-up, relative to the shortest horizon.
    assert {p.config.stages[0].optimizer.warmup_steps for p in points} == {5}
    assert [b.config.stages[0].optimizer.decay_steps for b in branches] == [5, 10, 20]
    paid = sum(p.estimate.paid_flops for p in points)
    assert paid / branches[-1].estimate.flops == pytest.approx(0.8 + 0.05 + 0.1 + 0.2, rel=1e-3)


def test_a_grid_has_every_size_with_every_length(tmp_path: Path) -> None:
    design = {"grid": {"tokens_per_parameter": [1, 4]}}
    points = expand(planned(tmp_path, ladder={"width": [16, 32]}, design=design))
    assert len(points) == 4
    for point, amount in zip(points, [1, 4, 1, 4], strict=True):
        wanted = amount * point.estimate.n_active
        assert abs(point.estimate.tokens - wanted) <= TOKENS_PER_STEP / 2
        assert point.estimate.tokens == point.steps * TOKENS_PER_STEP


def test_equal_compute_is_equal_and_centred(tmp_path: Path) -> None:
    widths = [16, 24, 32, 48, 64, 96]
    base_size = expand(planned(tmp_path / "one"))[0].estimate.n_active
    design = {
        "isoflop": {
            "budgets": [1e10, 4e10],
            "points": 3,
            "half_width": 2.0,
            "centre": {"size": base_size * 4, "flops": 2e10, "exponent": 0.5},
        }
    }
    points = expand(planned(tmp_path, ladder={"width": widths, "head_dim": 8}, design=design))
    assert len({p.budget for p in points}) == 2
    for budget in (1e10, 4e10):
        group = [p for p in points if p.budget == budget]
        assert len(group) >= 3
        for point in group:
            assert point.estimate.flops == pytest.approx(budget, rel=0.5 / point.steps + 1e-6)
        sizes = np.array([p.estimate.n_active for p in group])
        centre = base_size * 4 * (budget / 2e10) ** 0.5
        assert sizes.min() < centre < sizes.max()


def test_flops_match_the_model(tmp_path: Path) -> None:
    """About 6 N D, plus attention and head."""
    point = expand(planned(tmp_path))[0]
    config = point.config
    model, steps = config.model, point.steps
    matrices = model.width * model.head_dim * (2 * model.heads + 2 * model.kv_heads) + 3 * model.width * model.ffn_width
    of_layers = 6 * matrices * model.layers * TOKENS_PER_STEP
    of_head = 6 * model.width * padded_vocab(300, model) * 2 * ROW_STATISTICS["targets"]
    # The patch embedding has no gradient of its input.
    of_patches = 4 * 8 * 8 * 3 * model.width * 2 * ROW_STATISTICS["patches"]
    of_pairs = 12 * model.heads * model.head_dim * 2 * ROW_STATISTICS["attended_pairs"] * model.layers
    assert point.estimate.flops == steps * (of_layers + of_head + of_patches + of_pairs)


@pytest.mark.parametrize(
    ("base", "spec", "message"),
    [
        ({}, {"axes": {"model.widht": [1]}}, "widht"),
        ({}, {"axes": {"seed": [1, 1]}}, "a column of the results has this name"),
        ({}, {"axes": {"tokenizer": {"a": {"seed": 0}}}}, "a column of the results has this name"),
        ({}, {"axes": {"losses.text": {"a": {"seed": 0}}}}, "a column of the results has this name"),
        ({}, {"axes": {"random_state": {"a": {"seed": 0}, "b": {"seed": 0}}}}, "are the same"),
        ({}, {"ladder": {"width": [20]}}, "multiple of head_dim"),
        ({}, {"ladder": {"width": [16, 16]}}, "differ"),
        ({}, {"design": {"isoflop": {"budgets": [1e10]}}}, "ladder"),
        ({}, {"design": {"isoflop": {"budgets": [1e18]}}, "ladder": {"width": [16, 32]}}, "Add widths"),
        ({}, {"design": {"grid": {"steps": [5], "tokens": [5.0]}}}, "exactly one"),
        ({}, {"design": {"horizons": {"steps": 10, "at": [0.2, 1.0]}}, "warmup": 0.9}, "warm-up"),
        ({}, {"design": {"horizons": {"steps": 10, "at": [0.5, 0.5]}}}, "different shares"),
        ({"evaluation": {}}, {}, "nothing to fit"),
        ({"stages": []}, {}, "one stage"),
    ],
)
def test_invalid_sweeps_are_refused(tmp_path: Path, base: dict, spec: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expand(planned(tmp_path, base, **spec))


def test_a_missing_base(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("name: s\nbase: nowhere.yaml\n")
    with pytest.raises(ConfigError, match="there is no config"):
        load_spec(path)


def test_the_old_name_of_a_key_is_refused(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, traffic={"patches": 1, "text": 1, "targets": 1, "pairs": 1})
    with pytest.raises(ConfigError, match=r"traffic: this key is named row_statistics .*attended_pairs"):
        load_spec(path)
