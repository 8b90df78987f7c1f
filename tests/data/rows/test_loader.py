from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from solo.batch import Batch
from solo.config import ConfigError, DataConfig, SequenceConfig, StageConfig
from solo.data.planning.stage_plan import StagePlan
from solo.data.record import Image, Record, Turn
from solo.data.rows.loader import Loader, WorkerError, batch_record_ids
from tests.benchmarks.mixtures import data_config, stage
from tests.data.fakes import IMAGE, CharacterTokenizer, MemorySource, image_records, text_records, two_sources

SOURCES = two_sources()
STAGE = stage({"pictures": 2.0, "text": 1.0}, batch_rows=8, steps=12, row_slots=128)


def plan_of(config: StageConfig = STAGE, sources: dict[str, MemorySource] = SOURCES) -> StagePlan:
    indexes = {name: source.index for name, source in sources.items()}
    return StagePlan(config, indexes, IMAGE, data_config(sources, packing_window=16), seed=3)


def batches(
    plan: StagePlan, sources: dict[str, MemorySource] = SOURCES, workers: int = 0, **options: object
) -> list[Batch]:
    data: DataConfig = data_config(sources, worker_processes=workers)
    tokenizer = CharacterTokenizer()
    with Loader(plan, sources, tokenizer, IMAGE, data, **options) as loader:
        return list(loader)


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(a, b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True)
    )


def across_hosts(hosts: int, start_step: int = 0) -> list[Batch]:
    """Global batches, joined from what every host loads with its own plan."""
    local = [
        batches(plan_of(), process_index=host, process_count=hosts, start_step=start_step) for host in range(hosts)
    ]
    assert all(batch.text.shape[0] == 8 // hosts for batch in local[0])
    return [Batch(*(np.concatenate(field) for field in zip(*parts, strict=True))) for parts in zip(*local, strict=True)]


@pytest.fixture(scope="module")
def expected() -> list[Batch]:
    return batches(plan_of())


def test_batches_are_full_and_of_the_planned_shape(expected: list[Batch]) -> None:
    shape = plan_of().shape
    assert len(expected) == 12
    for batch in expected:
        assert batch.patches.shape == (8, shape.patch_slots, 48)
        assert batch.text.shape == (8, shape.text_slots)
        assert batch.attend.shape == (8, shape.slots, 4)
        assert batch.target_ids.shape == (8, shape.target_slots)
    useful = np.mean([batch.attend.any(axis=2).mean() for batch in expected])
    assert useful == pytest.approx(plan_of().fill(12))


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_the_global_batch_does_not_depend_on_the_hosts(expected: list[Batch], hosts: int) -> None:
    assert same(across_hosts(hosts), expected)


@pytest.mark.parametrize(("step", "hosts"), [(1, 1), (7, 4), (11, 2)])
def test_it_resumes_at_any_step_on_any_number_of_hosts(expected: list[Batch], step: int, hosts: int) -> None:
    assert same(across_hosts(hosts, start_step=step), expected[step:])


def test_it_resumes_from_a_snapshot(expected: list[Batch]) -> None:
    resumed = plan_of()
    resumed.seek(json.loads(json.dumps(plan_of().snapshot(7))))
    assert same(batches(resumed, start_step=7), expected[7:])


def test_worker_processes_give_the_same_batches(expected: list[Batch]) -> None:
    assert same(batches(plan_of(), workers=1), expected)


def test_a_worker_process_that_is_killed_is_named() -> None:
    plan = plan_of(STAGE.model_copy(update={"steps": 100_000}))
    data: DataConfig = data_config(SOURCES, worker_processes=1)
    with Loader(plan, SOURCES, CharacterTokenizer(), IMAGE, data) as loader:
        next(loader)
        for process in multiprocessing.active_children():
            process.kill()
        with pytest.raises(WorkerError, match=r"ended unexpectedly, with exit code -9\..*data\.worker_processes"):
            list(loader)


def test_rows_follow_the_sequence_config() -> None:
    windowed = SequenceConfig(template="solo_pretrain", sliding_window=8)
    sequence = SequenceConfig(template="solo_pretrain", positions="grid")
    records = [Record("a", (Turn("text", (*image_records(1, 0)[0].images(), "caption")),))]
    sources = {"pictures": MemorySource(records, sequence=sequence)}
    plan = plan_of(stage({"pictures": 1.0}, batch_rows=1, steps=1, row_slots=64), sources)
    (batch,) = batches(plan, sources, sequence=sequence)
    assert batch.positions.shape == (1, plan.shape.slots, 3)
    assert 2 not in batch.text, "nothing ends the document"
    (batch,) = batches(plan, sources, sequence=windowed)
    spans = batch.attend[0, :, 1::2] - batch.attend[0, :, ::2]
    assert spans.sum(axis=1).max() == 8
    assert batch.positions.ndim == 2


def test_a_closed_loader_gives_no_batches() -> None:
    loader = Loader(plan_of(), SOURCES, CharacterTokenizer(), IMAGE, data_config(SOURCES))
    next(loader)
    loader.close()
    loader.close()
    assert list(loader) == []


def test_a_finite_stage_is_loaded_to_its_end() -> None:
    sources = two_sources(30)
    plan = plan_of(stage({"pictures": 1.0, "text": 1.0}, batch_rows=8, epochs=1.0, row_slots=128), sources)
    loaded = batches(plan, sources)
    assert len(loaded) == plan.num_steps
    # Every text ends in one </s>, and so does every answer: 30 of each, all of them learned.
    ends = sum(int(((batch.target_ids == 2) & (batch.target_weights == 1)).sum()) for batch in loaded)
    assert ends == 60


def test_unreadable_documents_leave_empty_slots_and_are_quarantined(tmp_path: Path) -> None:
    records = image_records(40, seed=0)
    truncated = Record("truncated", (Turn("user", (_truncated(records[3]), "qq")), Turn("assistant", ("a",))))
    bad = MemorySource(records, broken={5: OSError("the disk is gone"), 6: ValueError("no such record")})
    bad.replace(3, truncated)
    sources = {"pictures": bad, "text": MemorySource(text_records(40, 1))}
    plan = plan_of(stage({"pictures": 1.0, "text": 1.0}, batch_rows=4, epochs=1.0, row_slots=128), sources)
    quarantine = tmp_path / "quarantine.jsonl"
    loaded = batches(plan, sources, quarantine=quarantine, steps_before=10)
    lines = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert sorted(str(line["id"]) for line in lines) == ["5", "6", "truncated"]
    assert {line["source"] for line in lines} == {"pictures"}
    assert "the disk is gone" in next(line["reason"] for line in lines if line["id"] == 5)
    for line in lines:
        named = {(entry["record"], entry["id"]) for entry in batch_record_ids(plan, sources, line["step"] - 11)}
        assert {(3, "truncated"), (5, None), (6, None)} & named
    lost = sum(
        sum(chunk.needs[:2])
        for step in range(plan.num_steps)
        for row in plan.rows(step)
        for chunk in row
        if chunk.source == 0 and chunk.record in (3, 5, 6)
    )
    filled = sum(int(batch.attend.any(axis=2).sum()) for batch in loaded)
    assert filled == plan.statistics(0, plan.num_steps).useful[:2].sum() - lost


def _truncated(record: Record) -> Image:
    image = record.images()[0]
    return Image(image.data[: len(image.data) // 2])


def test_a_record_that_differs_from_the_index_is_not_used(tmp_path: Path) -> None:
    records = text_records(20, 1)
    source = MemorySource(records)
    source.replace(4, Record("grown", (Turn("text", ("t" * 500,)),)))
    plan = plan_of(stage({"text": 1.0}, batch_rows=2, epochs=1.0, row_slots=128), {"text": source})
    batches(plan, {"text": source}, quarantine=tmp_path / "q.jsonl")
    (line,) = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert line["id"] == "grown"
    assert "another tokenizer" in line["reason"]


def test_an_unwritable_quarantine_file_is_only_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = MemorySource(text_records(10, 1), broken={2: OSError("gone")})
    plan = plan_of(stage({"text": 1.0}, batch_rows=2, epochs=1.0, row_slots=128), {"text": source})
    assert len(batches(plan, {"text": source})) == plan.num_steps
    assert len(batches(plan, {"text": source}, quarantine=tmp_path / "missing" / "q.jsonl")) == plan.num_steps
    assert "gone" in caplog.text


def test_record_ids_of_a_batch() -> None:
    plan = plan_of()
    found = batch_record_ids(plan, SOURCES, 2)
    planned = {(chunk.source, chunk.record) for row in plan.rows(2) for chunk in row}
    names = list(SOURCES)
    assert {(names.index(entry["source"]), entry["record"]) for entry in found} == planned
    assert all(entry["id"] == SOURCES[entry["source"]].id(entry["record"]) for entry in found)


def test_hosts_must_share_rows_evenly() -> None:
    with pytest.raises(ConfigError, match=r"batch_rows 8 .* 3 hosts"):
        batches(plan_of(), process_count=3)


def test_sources_must_be_those_of_the_plan() -> None:
    with pytest.raises(ConfigError, match="mixes"):
        batches(plan_of(), {"text": SOURCES["text"], "pictures": SOURCES["pictures"]})


def test_importing_solo_data_does_not_import_jax() -> None:
    loaded = "[m for m in ('jax', 'grain') if m in sys.modules]"
    code = f"import sys, solo.data.rows.loader, solo.data.store.prepare; print({loaded})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
