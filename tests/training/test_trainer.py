"""The trainer on small, real data: bad losses, metrics, what a resumed run keeps."""

import contextlib
import json
import shutil
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from solo.config import Config, ConfigError, load_config, parse_config
from solo.data.planning.stage_plan import StagePlan
from solo.data.store.prepare import prepare
from solo.data.store.source import PreparedSource
from solo.files import read_json_lines
from solo.sharding.mesh import make_mesh
from solo.training.checkpoint import Checkpoints
from solo.training.ledger import Ledger, read_ledger
from solo.training.metrics import MetricsStream, read_metrics
from solo.training.observer import Observer
from solo.training.run_folder import RunFolder
from solo.training.stopping import Stop
from solo.training.trainer import BadStepError, Trainer
from tests.training.test_resume import CONFIG


def make(folder: Path, **changes) -> Config:
    stage = {**CONFIG["stages"][1], "steps": 4, **changes.pop("stage", {})}
    data = {**CONFIG["data"], "folder": str(folder / "data")}
    settings = {**CONFIG, "folder": str(folder / "runs"), "data": data}
    return parse_config({**settings, "stages": [stage], **changes})


@pytest.fixture(scope="module")
def prepared_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("loop")
    prepare(make(folder))
    return folder


def train(config: Config, observer: Observer | None = None, stop: Stop | None = None) -> Trainer:
    mesh = make_mesh(config.mesh, jax.devices()[:2])
    run, ledger, prepared = RunFolder.open(config), Ledger(), prepare(config)
    ledger.open(run.goodput_file)
    prepared.tokenizer.save(run.path)
    trainer = Trainer(config, prepared, run, observer or Observer(), mesh, ledger=ledger, stop=stop)
    trainer.train()
    return trainer


def steps(run: RunFolder) -> list[dict]:
    return [line for line in read_metrics(run.metrics_file) if line["kind"] == "train"]


def plan_of(config: Config) -> StagePlan:
    indexes = {name: source.index for name, source in prepare(config).sources.items()}
    return StagePlan(config.stages[0], indexes, config.image, config.data, config.seed)


@pytest.mark.slow
def test_a_bad_loss_stops_the_run_and_names_the_records(prepared_folder: Path) -> None:
    optimizer = {"learning_rate": 1e38, "schedule": "constant"}
    config = make(prepared_folder, name="bad", stage={"optimizer": optimizer})
    with pytest.raises(BadStepError, match=r"step 2 of stage 'second'.*safety\.policy=skip"):
        train(config)
    run = RunFolder(config.run_folder)
    (line,) = [json.loads(text) for text in run.quarantine_file.read_text().splitlines()]
    assert line["step"] == 2
    found = {(record["source"], record["record"]) for record in line["records"]}
    chunks = [chunk for row in plan_of(config).rows(1) for chunk in row]
    assert found == {(["digits", "topics"][chunk.source], chunk.record) for chunk in chunks}
    assert all(record["id"] for record in line["records"])
    lines = steps(run)
    assert [line["applied"] for line in lines] == [True, False]
    assert lines[-1]["loss"] is None


@pytest.mark.slow
def test_skipping_goes_on_and_gives_up_after_too_many(prepared_folder: Path) -> None:
    optimizer = {"learning_rate": 1e38, "schedule": "constant"}
    safety = {"policy": "skip", "max_skips": 2}
    config = make(prepared_folder, name="skip", stage={"optimizer": optimizer}, safety=safety)
    with pytest.raises(BadStepError, match="2 in a row"):
        train(config)
    assert [line["applied"] for line in steps(RunFolder(config.run_folder))] == [True, False, False]


@pytest.mark.slow
def test_a_run_that_a_bad_loss_stopped_resumes_with_policy_skip(prepared_folder: Path) -> None:
    optimizer = {"learning_rate": 1e38, "schedule": "constant"}
    found = []
    for name, policies in (("advised", ["stop", "skip"]), ("skipped", ["skip"])):
        for policy in policies:
            config = make(prepared_folder, name=name, stage={"optimizer": optimizer}, safety={"policy": policy})
            with contextlib.suppress(BadStepError):
                train(config)
        quarantined, _ = read_json_lines(config.run_folder / "quarantine.jsonl")
        lines = steps(RunFolder(config.run_folder))
        found.append(([line["loss"] for line in lines], [line["applied"] for line in lines], quarantined))
    assert found[0] == found[1]
    assert found[0][1] == [True, False, False, False]
    assert [line["step"] for line in found[0][2]] == [2, 3, 4]


@pytest.mark.slow
def test_metrics_count_what_the_plan_holds(prepared_folder: Path) -> None:
    config = make(prepared_folder, name="plain")
    trainer = train(config)
    plan, *_ = read_metrics(config.run_folder / "metrics.jsonl")
    assert plan["sources"]["digits"].items() >= {"documents": 200, "split": 0, "dropped": {}}.items()
    lines = steps(RunFolder(config.run_folder))
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    statistics = trainer.plans[0].statistics(0, 4)
    assert sum(line["visual_tokens"] for line in lines) == statistics.useful[0]
    assert lines[-1]["total_tokens"] == statistics.useful[:2].sum()
    assert sum(line["targets"] for line in lines) == statistics.useful[2]
    np.testing.assert_allclose(np.mean([line["useful_share"] for line in lines]), statistics.fill, rtol=1e-6)
    assert set(lines[0]["loss_by_source"]) == {"digits", "topics"}
    assert set(lines[0]["loss_by_context"]) == {"text_only", "with_image"}


@pytest.mark.slow
def test_a_resumed_run_notes_its_changes_and_repeats_the_losses(prepared_folder: Path) -> None:
    """Also if the checkpoint that it resumed from is lost, and the attempt after that begins at an earlier one."""
    stage, unchanged = {"steps": 6}, {"every_steps": 2, "keep_latest": 3}
    train(make(prepared_folder, name="unchanged", stage=stage, checkpoint=unchanged))

    class Killer(Observer):
        def step(self, line, num_steps) -> None:
            if line["step"] == 5:
                raise KilledError

    settings = {"name": "changed", "stage": stage, "safety": {"max_skips": 3}}
    with pytest.raises(KilledError):
        train(make(prepared_folder, **{**settings, "safety": {}}, checkpoint=unchanged), Killer())
    changed = {**unchanged, "every_steps": 3}
    config = make(prepared_folder, **settings, checkpoint=changed)
    with pytest.raises(KilledError):
        train(config, Killer())
    run = RunFolder(config.run_folder)
    assert load_config(run.config_file) == config
    shutil.rmtree(run.checkpoints / "4")
    train(config)
    (line,) = [line for line in read_metrics(run.metrics_file) if line["kind"] == "resumed"]
    assert line["step"] == 2
    assert line["changes"] == {"checkpoint.every_steps": [2, 3], "safety.max_skips": [10, 3]}
    assert (line["on"]["devices"], line["on"]["mesh"]["fsdp"]) == (2, 2)
    noted = [line for line in read_ledger(run.goodput_file)[0] if "resumed" in line]
    assert [(each["resumed"], each.get("changes")) for each in noted] == [(0, None), (4, line["changes"]), (2, None)]
    whole = steps(RunFolder(prepared_folder / "runs" / "unchanged"))
    assert [(line["step"], line["loss"]) for line in steps(run)] == [(line["step"], line["loss"]) for line in whole]


@pytest.mark.slow
def test_metrics_are_stored_before_a_checkpoint_and_no_step_counts_its_time(prepared_folder, monkeypatch) -> None:
    events, save, sync = [], Checkpoints.save, MetricsStream.sync

    def slow_save(self, state, progress) -> None:
        events.append("save")
        time.sleep(1.0)
        save(self, state, progress)

    monkeypatch.setattr(Checkpoints, "save", slow_save)
    monkeypatch.setattr(MetricsStream, "sync", lambda self: (events.append("sync"), sync(self)))
    config = make(prepared_folder, name="slow", checkpoint={"every_steps": 2}, stage={"steps": 6})
    train(config)
    assert events == ["sync", "save"] * 3
    assert max(line["timing"]["step_seconds"] for line in steps(RunFolder(config.run_folder))) < 0.9


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.slow
def test_a_resumed_run_quarantines_every_document_once(prepared_folder, monkeypatch) -> None:
    read = PreparedSource.whole

    def unreadable(self, number, *args):
        if number % 5 == 0:
            raise OSError("unreadable")
        return read(self, number, *args)

    class Killer(Observer):
        def step(self, line, num_steps) -> None:
            if line["step"] == 5:
                raise KilledError

    monkeypatch.setattr(PreparedSource, "whole", unreadable)
    stages = [{**CONFIG["stages"][0], "steps": 2}, {**CONFIG["stages"][1], "steps": 12}]
    found = []
    for name, observers in (("unbroken", [Observer()]), ("broken", [Killer(), Observer()])):
        config = make(
            prepared_folder,
            name=name,
            checkpoint={"every_steps": 2},
            stages=stages,
            data={**CONFIG["data"], "max_unreadable": 1.0},
        )
        for observer in observers:
            with contextlib.suppress(KilledError):
                train(config, observer)
        lines, broken = read_json_lines(config.run_folder / "quarantine.jsonl")
        assert not broken
        assert {line["step"] for line in lines} <= set(range(1, 15))
        found.append(sorted(map(json.dumps, lines)))
    assert found[0] == found[1] != []


def test_an_option_that_the_compiler_refuses_is_named(prepared_folder: Path) -> None:
    config = make(prepared_folder, name="refused", compiler_options={"xla_dump_hlo_as_text": "maybe"})
    with pytest.raises(ConfigError, match=r"compiler_options\.xla_dump_hlo_as_text: the compiler for cpu refuses it"):
        train(config)
