"""Checkpoints by name: the newest, a step, the best by a metric."""

import json
import math
from pathlib import Path

import pytest

from solo.config import BestConfig, ConfigError, dump_config
from solo.files import COMMIT_MARKER
from solo.training.best import best_steps
from solo.training.newest import METADATA
from solo.training.reference import find_checkpoint, parse_reference
from solo.training.run_folder import RunFolder
from tests.tiny import tiny_config

LOSSES = {"losses": {"text": {"source": "digits", "every_steps": 10}}}


def held_out(step: int, loss: float | None, **more: object) -> dict:
    return {"kind": "held_out", "step": step, "task": "text", "loss": loss, **more}


@pytest.mark.parametrize(
    ("text", "folder", "which"),
    [
        ("runs/x", "runs/x", None),
        ("runs/x@120", "runs/x", 120),
        ("runs/x@best", "runs/x", "best"),
        ("../a@b/x@latest", "../a@b/x", "latest"),
        ("../a@b/x", "../a@b/x", None),
    ],
)
def test_the_checkpoint_follows_the_last_at_of_the_name(text: str, folder: str, which: object) -> None:
    assert parse_reference(text) == (Path(folder), which)


def test_a_folder_that_exists_is_that_folder(tmp_path: Path) -> None:
    (tmp_path / "weights@7").mkdir()
    assert parse_reference(tmp_path / "weights@7") == (tmp_path / "weights@7", None)
    with pytest.raises(ValueError, match=r"expected a step, latest or best, got 'soon'"):
        parse_reference(tmp_path / "weights@soon")


def test_the_best_is_the_earliest_with_the_best_finite_value() -> None:
    lines = [
        held_out(10, 3.0),
        held_out(20, None),
        held_out(30, 2.0),
        held_out(40, 2.0),
        held_out(50, math.nan),
        held_out(60, 1.0, weights="ema"),
        {"kind": "held_out", "step": 70, "task": "text2", "loss": 0.5},
        {"kind": "train", "step": 80, "loss": 0.1},
    ]
    assert best_steps(lines, BestConfig(metric="held_out/text")) == [30, 40, 10]
    assert best_steps(lines, BestConfig(metric="held_out/text", mode="max")) == [10, 30, 40]
    assert best_steps(lines, BestConfig(metric="held_out/text", weights="ema")) == [60]
    # The last line of a step counts, as after evaluating it again.
    assert best_steps([*lines, held_out(30, 9.0)], BestConfig(metric="held_out/text"))[0] == 40


def test_a_field_of_a_line_can_decide() -> None:
    lines = [held_out(step, 1.0, loss_by_context={"with_image": value}) for step, value in ((1, 5.0), (2, 4.0))]
    metric = "held_out/text/loss_by_context/with_image"
    assert best_steps(lines, BestConfig(metric=metric)) == [2, 1]
    assert best_steps(lines, BestConfig(metric="held_out/text/loss_by_context")) == []


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "x")
    for step in (9, 10, 30):
        (run.checkpoints / str(step)).mkdir(parents=True)
        position = {"item_handlers": {}, "custom_metadata": {"step": step}}
        (run.checkpoints / str(step) / METADATA).write_text(json.dumps(position))
        (run.checkpoints / str(step) / COMMIT_MARKER).touch()
    (run.checkpoints / "40").mkdir()
    best = {"best": {"metric": "held_out/text"}}
    run.config_file.write_text(dump_config(tiny_config(evaluation=LOSSES, checkpoint=best)))
    lines = [held_out(10, 2.0), held_out(20, 1.0), held_out(30, 3.0)]
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_a_checkpoint_is_found_by_name(run: RunFolder) -> None:
    found = [find_checkpoint(run.path, which).name for which in ("latest", "best", 9)]
    assert found == ["30", "10", "9"]  # step 20 is the best, but was not kept


def test_a_checkpoint_that_is_not_there_is_refused(run: RunFolder) -> None:
    with pytest.raises(ValueError, match=r"has no checkpoint of step 20; it has steps 9, 10, 30"):
        find_checkpoint(run.path, 20)
    with pytest.raises(ValueError, match=r"40 is not a complete checkpoint"):
        find_checkpoint(run.path, 40)
    run.metrics_file.unlink()
    with pytest.raises(ValueError, match=r"x@best: no checkpoint has a finite value of held_out/text yet"):
        find_checkpoint(run.path, "best")
    run.config_file.write_text(dump_config(tiny_config()))
    with pytest.raises(ValueError, match=r"the run's config names no metric; set checkpoint\.best"):
        find_checkpoint(run.path, "best")


@pytest.mark.parametrize(
    ("metric", "evaluation", "message"),
    [
        ("held_out/txt", LOSSES, r"no evaluator 'held_out/txt'; did you mean 'held_out/text'"),
        ("train/loss", LOSSES, r"no evaluator 'train/loss'"),
        ("held_out/text", {"losses": {"text": {"source": "digits"}}}, r"measured only at the end.*every_steps"),
    ],
)
def test_a_metric_that_nothing_measures_is_refused(metric: str, evaluation: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(evaluation=evaluation, checkpoint={"best": {"metric": metric}})
