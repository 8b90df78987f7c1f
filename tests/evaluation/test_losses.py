"""Held-out losses: every target once, whatever the rows look like."""

import numpy as np
import pytest

from solo.config import ConfigError
from solo.data.store.prepare import prepare
from solo.evaluation.losses import evaluation_set, held_out_losses
from solo.evaluation.run import evaluate_run
from solo.training.metrics import read_metrics
from solo.training.observer import Observer
from solo.training.run_folder import RunFolder
from tests.tiny import save_run, tiny_config, tiny_monolith


def make(folder, tokenizer, **evaluation):
    tokenizer.save(folder)
    digits = {"reader": "digits", "options": {"split": "held_out"}, "limit": 5}
    config = tiny_config(
        data={
            "folder": str(folder / "data"),
            "sources": {"digits": digits},
            "tokenizer": {"path": str(folder / "tokenizer.model")},
        },
        evaluation={"losses": {"caption": {"source": "digits", "batch_rows": 2, **evaluation}}},
    )
    return config, prepare(config)


def conversation(record) -> list[dict]:
    def part(content):
        return content if isinstance(content, str) else {"type": "image", "image": content.decode("apply")}

    return [{"role": turn.role, "content": [part(content) for content in turn.content]} for turn in record.turns]


def test_the_loss_is_the_mean_over_the_targets_of_all_records_each_alone(tmp_path, tiny_tokenizer) -> None:
    config, prepared = make(tmp_path, tiny_tokenizer)
    model = tiny_monolith(prepared.tokenizer, config)
    total, targets = 0.0, 0
    for number in range(5):
        batch = model.batch([conversation(prepared.sources["digits"].read(number))])
        count = int((batch.target_weights > 0).sum())
        total += model.loss_and_grads(batch)[0] * count
        targets += count
    (found,) = held_out_losses(model, config, prepared)
    assert found.targets == targets
    assert found.loss == pytest.approx(total / targets, rel=1e-5)


def test_a_run_writes_its_losses_once(tmp_path, tiny_tokenizer) -> None:
    config, prepared = make(tmp_path, tiny_tokenizer)
    run = RunFolder(save_run(tiny_monolith(prepared.tokenizer, config), tmp_path / "tiny", 7))
    for _ in range(2):
        evaluate_run(run, config, prepared, Observer())
    (line,) = read_metrics(run.metrics_file)
    assert (line["kind"], line["step"], line["task"], line["source"]) == ("held_out", 7, "caption", "digits")
    assert np.isfinite(line["loss"])
    assert "held-out loss, caption" in run.report_file.read_text()


def test_another_part_of_a_source_is_another_evaluation_set(tmp_path, tiny_tokenizer) -> None:
    config, prepared = make(tmp_path, tiny_tokenizer)
    part, _ = make(tmp_path, tiny_tokenizer, batches=1)
    assert evaluation_set(config, prepared) == evaluation_set(config.model_copy(update={"seed": 5}), prepared)
    assert evaluation_set(config, prepared) != evaluation_set(part, prepared)


def test_a_source_that_is_not_there_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"evaluation loss 'caption': no source 'digit'.*did you mean 'digits'"):
        tiny_config(evaluation={"losses": {"caption": {"source": "digit"}}})
