"""The loop on real, small data: bad losses, carried optimizer state, metrics."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from solo.config import Config, ConfigError, parse_config
from solo.data.planning.stage_plan import StagePlan
from solo.data.store.prepare import prepare
from solo.sharding.mesh import make_mesh
from solo.training.loop import BadStepError, Trainer
from solo.training.observer import Observer
from solo.training.run import MetricsStream, RunFolder, read_metrics
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


def train(config: Config) -> Trainer:
    mesh = make_mesh(config.mesh, jax.devices()[:2])
    trainer = Trainer(config, prepare(config), RunFolder.open(config), Observer(), mesh)
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
def test_metrics_count_what_the_plan_holds(prepared_folder: Path) -> None:
    config = make(prepared_folder, name="plain")
    trainer = train(config)
    plan, *_ = read_metrics(config.run_folder / "metrics.jsonl")
    assert plan["sources"]["digits"] == {"documents": 200, "split": 0, "dropped": {}}
    lines = steps(RunFolder(config.run_folder))
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    statistics = trainer.plans[0].statistics(0, 4)
    assert sum(line["visual_tokens"] for line in lines) == statistics.useful[0]
    assert lines[-1]["total_tokens"] == statistics.useful[:2].sum()
    assert sum(line["targets"] for line in lines) == statistics.useful[2]
    np.testing.assert_allclose(np.mean([line["useful_share"] for line in lines]), statistics.fill, rtol=1e-6)
    assert set(lines[0]["loss_by_source"]) == {"digits", "topics"}
    assert set(lines[0]["loss_by_modality"]) == {"text", "image"}


def test_metrics_past_the_checkpoint_and_half_written_lines_are_dropped(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    whole = [{"kind": "train", "step": step, "loss": step / 7} for step in range(1, 6)]
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in whole) + '{"kind": "tra')
    stream = MetricsStream(run, resume_step=3)
    stream.write({"kind": "train", "step": 4, "loss": float("nan")})
    stream.close()
    assert read_metrics(run.metrics_file) == [*whole[:3], {"kind": "train", "step": 4, "loss": None}]


def test_an_option_that_the_compiler_refuses_is_named(prepared_folder: Path) -> None:
    config = make(prepared_folder, name="refused", compiler_options={"xla_dump_hlo_as_text": "maybe"})
    with pytest.raises(ConfigError, match=r"compiler_options\.xla_dump_hlo_as_text: the compiler for cpu refuses it"):
        train(config)
