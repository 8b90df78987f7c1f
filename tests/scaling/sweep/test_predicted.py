"""The config of a predicted run."""

import json
from pathlib import Path
from typing import Any

import pytest

from solo.cli import main
from solo.config import ConfigError, load_config
from solo.model.flops import BatchStats
from solo.model.parameters import define
from solo.scaling.laws.table_file import read_rows
from solo.scaling.sweep.estimate import active
from solo.scaling.sweep.folder import SweepFolder
from solo.scaling.sweep.points import expand
from solo.scaling.sweep.predicted import predicted_config
from tests.scaling.sweep.tiny_sweep import planned

LADDER = {"width": [16, 24, 32, 48, 64], "head_dim": 8}
DESIGNS = {"dense": {"model.experts": {}}, "visual": {"model.experts": {"ffn": "modality"}}}


def finished(folder: Path, **spec: Any) -> SweepFolder:
    """Returns a sweep whose losses follow a law with E 1, A 30, B 60 and exponents 0.4."""
    design = {"horizons": {"steps": 4000, "at": [0.125, 0.25, 0.5, 1.0], "decay": 0.25}}
    sweep = planned(folder, ladder=LADDER, design=design, warmup=0.1, **spec)
    points, there = expand(sweep), SweepFolder(sweep.path)
    there.write_plan(sweep, points)
    for point in points:
        found = point.estimate
        loss = 1 + 30 * found.n_active**-0.4 + 60 * found.tokens**-0.4
        result = {
            "status": "stable" if point.is_stable else "done",
            "tokens": found.tokens,
            "visual_tokens": found.visual,
            "text_tokens": found.text,
            "flops": found.flops,
            "losses": {"text": loss},
        }
        there.run(point.id).mkdir(parents=True)
        there.result_file(point.id).write_text(json.dumps(result))
    there.write_results()
    return there


def test_the_config_has_the_predicted_size_and_length(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    rows, _ = read_rows(folder.path)
    config = predicted_config(folder, rows, 1e6, 5e7)
    got = active(define(config, config.data.tokenizer.vocab_size), BatchStats(1, 1, 0, 0))
    assert got == pytest.approx(1e6, rel=0.05)
    assert config.model.width not in LADDER["width"]
    stage = config.stages[0]
    assert stage.steps == pytest.approx(5e7 / 400, rel=1e-3)
    assert stage.optimizer.schedule == "wsd"
    assert stage.optimizer.decay_steps == pytest.approx(stage.steps / 4, abs=1)
    assert stage.optimizer.warmup_steps == pytest.approx(stage.steps / 10, abs=1)


def test_solo_fit_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished(tmp_path)
    out = tmp_path / "best.yaml"
    words = ["fit", str(folder.path), "--predict", "1e14", "--config", str(out), "--draws", "100"]
    assert main(words) == 0, capsys.readouterr().err
    config = load_config(out)
    size = active(define(config, config.data.tokenizer.vocab_size), BatchStats(1, 1, 0, 0))
    tokens = config.stages[0].steps * 400
    # About 1e14 FLOPs in total.
    assert 6 * size * tokens == pytest.approx(1e14, rel=0.35)


def test_axes_must_be_determined(tmp_path: Path) -> None:
    folder = finished(tmp_path, axes={"design": DESIGNS})
    rows, _ = read_rows(folder.path)
    with pytest.raises(ConfigError, match="differ in design"):
        predicted_config(folder, rows, 1e6, 5e7)
    dense, visual = (
        predicted_config(folder, [row for row in rows if row["design"] == name], 1e6, 5e7) for name in DESIGNS
    )
    assert (dense.model.experts.ffn, visual.model.experts.ffn) == ("shared", "modality")
    assert dense.model.width == visual.model.width


def test_a_table_is_not_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished(tmp_path)
    words = [
        "fit",
        str(folder.results_file),
        "--predict",
        "1e14",
        "--config",
        str(tmp_path / "x.yaml"),
        "--draws",
        "100",
    ]
    assert main(words) == 2
    assert "needs a sweep's folder" in capsys.readouterr().err
    assert not (tmp_path / "x.yaml").exists()
