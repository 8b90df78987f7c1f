"""Evaluation as part of a run: what it writes to the run's folder."""

import dataclasses
import json
from unittest import mock

import pytest

from solo.config import ConfigError
from solo.data.store.prepare import prepare
from solo.evaluation.run import evaluate_folder
from solo.training.metrics import read_metrics
from solo.training.observer import Observer
from solo.training.run_folder import RunFolder
from tests.tiny import save_run, tiny_config, tiny_monolith


@pytest.fixture
def trained(tmp_path, tiny_tokenizer):
    """A run with one saved step, two lines of metrics, and a task."""
    tiny_tokenizer.save(tmp_path)
    digits = {"reader": "digits", "options": {"split": "held_out"}, "limit": 3}
    config = tiny_config(
        data={
            "folder": str(tmp_path / "data"),
            "sources": {"digits": digits},
            "tokenizer": {"path": str(tmp_path / "tokenizer.model")},
        },
        evaluation={"tasks": {"naming": {"source": "digits", "max_new_tokens": 2, "blank_images": True}}},
    )
    prepared = prepare(config)
    run = RunFolder(save_run(tiny_monolith(prepared.tokenizer, config), tmp_path / "tiny", 7))
    run.metrics_file.write_text('{"kind": "other", "step": 7}\n{"kind": "other", "step": 8}\n')
    return run, config, prepared


def test_a_checkpoint_gets_scores_and_a_report(trained) -> None:
    run, _, _ = trained
    before = run.metrics_file.read_text()
    run.report_file.write_text("old")
    (result,) = evaluate_folder(run.path, Observer())
    assert evaluate_folder(f"{run.path}@7", Observer()) == [dataclasses.replace(result, seconds=mock.ANY)]
    # What was there stays, and the same scores are not written twice.
    text = run.metrics_file.read_text()
    assert text.startswith(before)
    (line,) = [json.loads(line) for line in text.removeprefix(before).splitlines()]
    assert (line["kind"], line["step"], line["task"], line["examples"]) == ("evaluation", 7, "naming", 3)
    assert (line["score"], line["gain"]) == (result.score, result.gain)
    assert read_metrics(run.metrics_file)[-1] == line
    page = run.report_file.read_text()
    assert page.startswith("<!doctype html>")
    assert page.count("<article") == 3


def test_a_step_that_is_not_saved_is_refused(trained) -> None:
    with pytest.raises(ValueError, match="has no checkpoint of step 8; it has steps 7"):
        evaluate_folder(f"{trained[0].path}@8", Observer())


def test_a_folder_that_is_not_a_run_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"is not a run of solo: it has no config\.yaml"):
        evaluate_folder(tmp_path, Observer())
