"""Activations keep their scale over widths with muP and over depths with CompleteP, but not without."""

from pathlib import Path

import pytest

from solo.config import OptimizerConfig, StageConfig
from solo.outputs import Output
from solo.scaling.sweep.coordinates import FLAT, LOGITS, Coordinates, is_flat, measure
from solo.scaling.sweep.plots import plot_coordinates
from tests.model.test_parametrisation import definition, random_batch

STAGE = StageConfig(
    name="only", mixture={"a": 1.0}, steps=4, batch_rows=1, optimizer=OptimizerConfig(learning_rate=0.01)
)


def measured(kind: str, width: int, layers: int = 2, stage: StageConfig = STAGE) -> list[Coordinates]:
    shape = {"width": width, "heads": width // 8, "kv_heads": width // 16, "head_dim": 8, "ffn_width": 2 * width}
    of = definition(kind, layers=layers, experts={}, **shape)
    return measure(of, stage, [random_batch(of, seed) for seed in range(4)])


@pytest.mark.slow
def test_over_eightfold_width(tmp_path: Path) -> None:
    mup = [measured("mup", width) for width in (32, 128, 256)]
    standard = [measured("standard", width) for width in (32, 256)]
    assert is_flat(mup)
    assert not is_flat(standard)
    # By far more than the tolerance.
    narrow, wide = (size[-1].scales for size in standard)
    assert wide["last layer"] / narrow["last layer"] > 1 + 20 * FLAT
    assert wide[LOGITS] / narrow[LOGITS] > 4
    plot_coordinates(
        {"mup": mup, "standard": standard}, Output(tmp_path / "coordinates.png", "solo sweep --coord-check")
    )
    assert (tmp_path / "coordinates.png").stat().st_size > 10_000


@pytest.mark.slow
def test_over_depths() -> None:
    """The output of the last layer keeps its scale with CompleteP, and grows with muP."""
    found = {
        kind: [measured(kind, 32, layers)[-1].scales["last layer"] for layers in (2, 8)]
        for kind in ("completep", "mup")
    }
    shallow, deep = found["completep"]
    assert deep / shallow == pytest.approx(1, abs=FLAT)
    shallow, deep = found["mup"]
    assert deep / shallow > 1 + FLAT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "train"),
    [
        ({"name": "lion", "learning_rate": 0.003}, ("*",)),
        ({"name": "muon", "learning_rate": 0.1}, ("layers",)),
    ],
)
def test_other_update_rules_over_fourfold_width(optimizer: dict, train: tuple[str, ...]) -> None:
    stage = STAGE.model_copy(update={"optimizer": OptimizerConfig.model_validate(optimizer), "train": train})
    mup, standard = (
        [measured(kind, width, stage=stage)[-1].scales["last layer"] for width in (32, 128)]
        for kind in ("mup", "standard")
    )
    assert mup[1] / mup[0] == pytest.approx(1, abs=FLAT)
    assert standard[1] / standard[0] > 1 + 2 * FLAT


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "muon", "muon": {"consistent_rms": None}, "learning_rate": 0.03},
        {"name": "adafactor", "adafactor": {"min_dim_size_to_factor": 16}, "learning_rate": 0.05},
    ],
)
def test_rules_whose_steps_follow_the_shape_or_scale_are_flat(optimizer: dict) -> None:
    stage = STAGE.model_copy(update={"optimizer": OptimizerConfig.model_validate(optimizer)})
    narrow, wide = (measured("mup", width, stage=stage)[-1].scales["last layer"] for width in (32, 128))
    assert wide / narrow == pytest.approx(1, abs=FLAT)
