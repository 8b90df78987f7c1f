"""A run without data to learn from stops with status 2 and says why; it never trains on nothing."""

import json
from pathlib import Path

import numpy as np
import pytest

from solo.cli import main
from solo.config import dump_config
from solo.data.planning.stage_plan import PlanStatistics
from solo.data.store.prepare import prepare
from solo.data.store.source import PreparedSource
from solo.model.flops import BatchStats
from solo.training.data_guard import SAMPLE, DataError, DataGuard
from solo.training.metrics import read_metrics
from tests.training.test_trainer import make, plan_of


def planned(*documents: int, targets: int = 50) -> PlanStatistics:
    return PlanStatistics(4, 400, np.asarray([100, 200, targets]), documents)


def found(documents: int, targets: int = 50) -> BatchStats:
    return BatchStats(100, 200, targets, 1000, documents)


def test_the_share_is_taken_over_the_latest_documents() -> None:
    guard = DataGuard(0.01)
    for _ in range(100):
        guard.check("step", planned(80, 20), found(100))
    for _ in range(10):  # 10 of the last 1,000: just allowed
        guard.check("step", planned(80, 20), found(99))
    with pytest.raises(DataError, match=r"step 9: 11 of the last 1,000 documents .* data\.max_unreadable 0\.01"):
        guard.check("step 9", planned(80, 20), found(98))


def test_old_failures_are_forgotten() -> None:
    guard = DataGuard(0.01)
    for _ in range(10):
        guard.check("step", planned(100), found(99))
    for _ in range(SAMPLE // 100):
        guard.check("step", planned(100), found(100))
    guard.check("step", planned(100), found(90))


def test_one_bad_document_at_the_start_does_not_stop_a_run() -> None:
    DataGuard(0.01).check("step 1", planned(4), found(3))


def test_a_batch_larger_than_the_sample_is_judged_by_itself() -> None:
    guard = DataGuard(0.01)
    guard.check("step 1", planned(5000), found(4950))
    with pytest.raises(DataError, match="51 of the last 5,000"):
        guard.check("step 2", planned(5000), found(4949))


@pytest.mark.parametrize(
    ("plan", "batch", "why"),
    [
        (planned(0, targets=0), found(0, 0), "no documents are left to draw"),
        (planned(7, targets=0), found(7, 0), "7 documents hold text that is read but not learned"),
        (planned(7), found(0, 0), "7 of its 7 documents could not be read"),
    ],
)
def test_a_batch_without_targets_says_why(plan: PlanStatistics, batch: BatchStats, why: str) -> None:
    with pytest.raises(DataError, match=f"step 3 has no target to learn from: .*{why}"):
        DataGuard(1.0).check("step 3", plan, batch)


def test_the_summary_counts_reasons_by_source(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    lines = [{"source": "a", "id": f"a{n}", "reason": f"OSError: shard {n} is cut", "step": 1} for n in range(3)]
    lines += [{"kind": "bad_step", "step": 1, "reason": "loss nan"}, {"source": "b", "id": 7, "reason": "gone"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError) as caught:
        DataGuard(0.0, path).check("step 1", planned(4), found(0, 0))
    assert "a: 3 times, first document a0: OSError: shard 0 is cut\n  b: 1 times, first document 7: gone" in str(
        caught.value
    )


@pytest.mark.slow
def test_a_run_whose_documents_cannot_be_read_ends_with_status_2(tmp_path: Path, monkeypatch, capsys) -> None:
    config = make(tmp_path, name="gone", stage={"batch_rows": 8})
    prepare(config)
    (tmp_path / "config.yaml").write_text(dump_config(config))

    def unreadable(self, *args):
        raise OSError("the disk is gone")

    for method in ("whole", "chunk"):
        monkeypatch.setattr(PreparedSource, method, unreadable)
    assert main(["train", str(tmp_path / "config.yaml")]) == 2
    said = capsys.readouterr().err
    assert "step 1 of stage 'second' has no target to learn from" in said
    assert "OSError: the disk is gone" in said
    run = config.run_folder
    assert not [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "train"]
    assert not list((run / "checkpoints").glob("[0-9]*"))


def test_batches_hold_the_documents_that_were_planned(tmp_path: Path) -> None:
    from solo.data.rows.loader import Loader
    from solo.model.flops import batch_stats

    config = make(tmp_path)
    prepared, plan = prepare(config), plan_of(config)
    for positions in ("text", "grid"):
        sequence = config.sequence.model_copy(update={"positions": positions})
        with Loader(
            plan, prepared.sources, prepared.tokenizer, config.image, config.data, sequence=sequence
        ) as batches:
            for step, batch in enumerate(batches):
                assert batch_stats(batch).documents == sum(plan.statistics(step, step + 1).documents) > 0
