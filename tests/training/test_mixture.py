"""Mixtures in training: what is reported, weights learned or changed in mid-run, image sizes that change by stage."""

import contextlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from solo.config import Config, ConfigError
from solo.config.mixture import MixtureLearningConfig
from solo.data.planning.stage_plan import StagePlan
from solo.data.store.index import TEXT, make_index
from solo.data.store.prepare import prepare
from solo.training import trainer as trainer_module
from solo.training.losses import Mean
from solo.training.metrics import read_metrics
from solo.training.mixture import MixtureLearner, mixture_notes
from solo.training.observer import Observer
from solo.training.stopping import Interrupted, Stop
from solo.training.trainer import Trainer
from tests.benchmarks.mixtures import IMAGES, data_config, quickstart, stage, text_source
from tests.training.test_resume import CONFIG
from tests.training.test_trainer import make, train

LINES = {"lines": {"reader": "lines", "options": {"split": "train"}, "limit": 60}}
WINDOWED = {"batch_rows": 2, "steps": 40}  # a packing window is 16 rows: 8 steps


class StopAfter(Observer):
    """Asks the run to stop after a step, as SIGTERM does."""

    def __init__(self, step: int):
        super().__init__()
        self._step, self.stop = step, Stop()

    def step(self, line, num_steps) -> None:
        self.stop.requested = line["step"] >= self._step


def lines_of(config: Config) -> list[dict]:
    """Returns the lines of the run's steps without timing."""
    return [{key: value for key, value in line.items() if key != "timing"} for line in steps_of(config)]


def steps_of(config: Config) -> list[dict]:
    return [line for line in read_metrics(config.run_folder / "metrics.jsonl") if line["kind"] == "train"]


def resumed(first: Config, then: Config, step: int) -> Trainer:
    observer = StopAfter(step)
    with contextlib.suppress(Interrupted):
        train(first, observer, observer.stop)
    return train(then)


def losses(**means: float) -> dict[str, Mean]:
    return {name: Mean(np.float32(10 * mean), np.float32(10)) for name, mean in means.items()}


def test_learned_weights_follow_the_losses_exponentially() -> None:
    learner = MixtureLearner(MixtureLearningConfig(every=2, rate=0.5, window=2), {"a": 3.0, "b": 1.0})
    assert [step for step in range(1, 7) if learner.due(step)] == [2, 4, 6]
    learner.add(losses(a=1.0, b=2.0))
    learner.add(losses(a=3.0, b=2.0))
    weights = learner.update()
    assert weights == pytest.approx({"a": 0.75, "b": 0.25})  # the mean losses are equal
    learner.add(losses(a=1.0, b=3.0))
    weights = learner.update()
    a, b = 3 * math.exp(0.5 * (2.0 + 1.0)), math.exp(0.5 * (2.0 + 3.0))
    assert weights == pytest.approx({"a": a / (a + b), "b": b / (a + b)})
    learner.add(losses(b=3.0))  # a was not drawn: its loss is still 1
    a, b = 3 * math.exp(0.5 * 2.0), math.exp(0.5 * 6.0)
    assert learner.update() == pytest.approx({"a": a / (a + b), "b": b / (a + b)}), "the first update is forgotten"


def test_a_source_is_weighed_by_the_losses_of_those_that_it_helps() -> None:
    config = MixtureLearningConfig(every=1, rate=1.0, window=1, graph={"a": {"b": 0.5, "c": 0.25}}, least=0.1)
    learner = MixtureLearner(config, dict.fromkeys("abc", 1.0))
    learner.add(losses(a=9.0, b=2.0, c=4.0))
    raised = {"a": math.exp(2.0), "b": math.exp(2.0), "c": math.exp(4.0)}
    expected = {name: 0.1 + 0.7 * value / sum(raised.values()) for name, value in raised.items()}
    assert learner.update() == pytest.approx(expected)


def test_learning_goes_on_from_its_state_as_json() -> None:
    config = MixtureLearningConfig(every=2, window=2)
    whole, half = (MixtureLearner(config, {"a": 1.0, "b": 1.0}) for _ in range(2))
    for learner in (whole, half):
        learner.add(losses(a=1.5, b=2.25))
        learner.history[8] = learner.update()
        learner.add(losses(a=1.1, b=2.0))
    other = MixtureLearner(config, {"a": 1.0, "b": 1.0})
    other.restore(json.loads(json.dumps(half.state())))
    assert other.history == whole.history
    for learner in (whole, other):
        learner.add(losses(a=0.3, b=1.7))
    assert other.update() == whole.update()


def plan(mixture: dict[str, float], sources: dict, **settings: object) -> StagePlan:
    return StagePlan(stage(mixture, **settings), sources, IMAGES, data_config(sources), seed=0)


def test_rows_that_a_later_mixture_leaves_empty_are_named() -> None:
    sources = {name: quickstart(400)[name] for name in ("digits", "text")}
    settings = {"patch_slots": 512, "text_slots": 512, "steps": 100}
    found = plan({"digits": 1.0, "text": 0.1}, sources, mixture_schedule={10: {"digits": 0.01}}, **settings)
    (note,) = [note for note in mixture_notes([found]) if "full" in note]
    assert "rows are about 50% full with the weights of step 10" in note
    assert found.statistics(60, 100).fill == pytest.approx(0.5, abs=0.02)


def test_weights_that_never_hold_are_named() -> None:
    sources = quickstart(400)
    settings = {"mixture_schedule": {16: {"text": 0.5}, 30: {"text": 2.0}}, "steps": 31, "batch_rows": 32}
    found = plan({"digits": 1.0, "text": 1.0}, {name: sources[name] for name in ("digits", "text")}, **settings)
    (note,) = [note for note in mixture_notes([found]) if "never take effect" in note]
    assert "the weights of step 30 never take effect" in note
    assert found.weights(30)["text"] == 0.5


def test_sources_without_targets_are_named_and_a_stage_of_them_is_refused() -> None:
    silent = make_index(
        np.full(40, TEXT, np.uint8), np.tile([[30, 0]], (40, 1)).astype(np.int32), np.arange(41, dtype=np.int64)
    )
    learned = text_source(np.full(400, 40))
    settings = {"row_slots": 256, "steps": 2}
    (note,) = mixture_notes([plan({"silent": 0.1, "learned": 1.0}, {"silent": silent, "learned": learned}, **settings)])
    assert note == "stage test: no document of silent has a target, so it is read and never learned"
    with pytest.raises(ConfigError, match="stage 'test' has nothing to learn from: no document of silent"):
        mixture_notes([plan({"silent": 1.0}, {"silent": silent}, target_slots=8, **settings)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("mixtures")
    prepare(make(made))
    return made


@pytest.mark.slow
def test_learned_weights_reach_the_batches_and_a_resumed_run_repeats_them(folder: Path) -> None:
    learning = {"mixture_learning": {"every": 5, "rate": 200.0}}  # the losses hardly differ yet
    whole = make(folder, name="learned", stage={**WINDOWED, **learning})
    train(whole)
    changes = [line for line in read_metrics(whole.run_folder / "metrics.jsonl") if line["kind"] == "mixture"]
    assert [line["step"] for line in changes] == [9, 17, 25, 33], "the first step of a window after an update"
    assert all(sum(line["weights"].values()) == pytest.approx(1) for line in changes)
    by_step = {line["step"]: line["documents_by_source"] for line in steps_of(whole)}
    last = changes[-1]["weights"]
    drawn = np.sum([list(by_step[step].values()) for step in range(33, 41)], axis=0)
    assert drawn / drawn.sum() == pytest.approx(list(last.values()), abs=0.15)
    assert max(last.values()) > 0.6, last
    broken = make(folder, name="learned_again", stage={**WINDOWED, **learning})
    resumed(broken, broken, 19)
    assert lines_of(broken) == lines_of(whole)


@pytest.mark.slow
def test_a_source_is_added_in_mid_run_at_a_stated_step(folder: Path) -> None:
    first = make(folder, name="grown", stage=WINDOWED)
    names = list(first.data.sources)
    data = {**CONFIG["data"], "sources": {**CONFIG["data"]["sources"], **LINES}}
    data["tokenizer"] = {**data["tokenizer"], "train_on": names}
    change = {"mixture_changes": {20: {"digits": 0.5, "lines": 2.0}}}
    grown = make(folder, name="grown", data={**data, "folder": str(folder / "data")}, stage={**WINDOWED, **change})
    unchanged = make(folder, name="unchanged", stage=WINDOWED)
    train(unchanged)
    done = resumed(first, grown, 17)
    before, after = lines_of(unchanged), lines_of(grown)
    assert after[:18] == before[:18]
    data = ("tokens", "visual_tokens", "targets")
    assert [[line[key] for key in data] for line in after[:24]] == [[line[key] for key in data] for line in before[:24]]
    assert before[24]["documents_by_source"] != after[24]["documents_by_source"]
    assert all(not line["documents_by_source"].get("lines") for line in after[:24])
    assert sum(line["documents_by_source"]["lines"] for line in after[26:]) > 0
    assert any("lines" in line["loss_by_source"] for line in after[26:])
    (line,) = [line for line in read_metrics(grown.run_folder / "metrics.jsonl") if line["kind"] == "mixture"]
    assert (line["step"], line["weights"]) == (25, {"digits": 0.5, "topics": 1.0, "lines": 2.0})
    assert done.notes == ["stage second: from step 25 on the weights are digits 0.5, topics 1, lines 2"]


@pytest.mark.slow
def test_a_change_in_the_past_is_refused(folder: Path) -> None:
    first = make(folder, name="past", stage=WINDOWED)
    with pytest.raises(ConfigError, match=r"stages\.N\.mixture_changes=.*this run, with other weights from step 18 on"):
        resumed(first, make(folder, name="past", stage={**WINDOWED, "mixture_changes": {16: {"digits": 0.5}}}), 17)
    with pytest.raises(ConfigError, match=r"stages\.0\.mixture\.digits: 1\.0 -> 0\.5"):
        train(make(folder, name="past", stage={**WINDOWED, "mixture": {"digits": 0.5, "topics": 1.0}}))


@pytest.mark.slow
def test_image_sizes_change_by_stage_without_compiling_again(folder: Path, monkeypatch) -> None:
    compiled, compile_lowered = [], trainer_module.compile_lowered
    monkeypatch.setattr(trainer_module, "compile_lowered", lambda *args: compiled.append(1) or compile_lowered(*args))
    rows = {"patch_slots": 96, "text_slots": 160, "target_slots": 160, "steps": 3}
    stages = [
        {**CONFIG["stages"][1], **rows, "name": name, "image": {"max_side": side}, "optimizer_state": "carry"}
        for name, side in (("small", 16), ("large", 64))
    ]
    config = make(folder, name="curriculum", stages=stages)
    done = train(config)
    assert len(compiled) == 1
    small, large = (plan.statistics(0, 3) for plan in done.plans)
    assert small.useful[0] / small.documents[0] < large.useful[0] / large.documents[0]
    assert [line["stage"] for line in steps_of(config)] == ["small"] * 3 + ["large"] * 3


@pytest.mark.slow
def test_metrics_say_how_often_each_source_was_read(folder: Path) -> None:
    config = make(folder, name="passes", stage={**WINDOWED, "steps": 24})
    done = train(config)
    lines = steps_of(config)
    total = np.sum([list(line["documents_by_source"].values()) for line in lines], axis=0)
    assert tuple(total) == done.plans[0].statistics(0, 24).documents
    passes = lines[-1]["passes_by_source"]
    chunks = done.plans[0].chunks
    assert (len(chunks["digits"]), chunks["topics"].documents) == (200, 60)
    assert passes == {"digits": total[0] / 200, "topics": total[1] / len(chunks["topics"])}
    plan = read_metrics(config.run_folder / "metrics.jsonl")[0]
    (digits, topics) = plan["sources"].values()
    assert 0 < digits["expected_passes"] < topics["expected_passes"] < 1
    assert mixture_notes(done.plans) == []
