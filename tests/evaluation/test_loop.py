"""Evaluation while a run trains: it changes nothing, measures once, and is made up for after a kill."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from solo.config import Config, ConfigError, parse_config
from solo.data.store.prepare import Prepared, prepare
from solo.evaluation.loop import RunEvaluators
from solo.evaluation.losses import HeldOutLosses
from solo.evaluation.run import evaluate_folder
from solo.inference.monolith import Monolith
from solo.model.parameters import define
from solo.sharding.mesh import make_mesh
from solo.training.ledger import Ledger, read_ledger
from solo.training.metrics import read_metrics
from solo.training.observer import Observer
from solo.training.reference import find_checkpoint
from solo.training.run_folder import RunFolder
from solo.training.stopping import Interrupted, Stop
from solo.training.trainer import Trainer
from tests.training.test_resume import CONFIG

pytestmark = pytest.mark.slow

DEVICES = 2
EVALUATION = {
    "every_steps": 2,
    "losses": {
        "text": {"source": "topics_held_out", "batches": 2, "batch_rows": 3, "every_steps": 3},
        "digits": {"source": "digits_held_out", "batch_rows": 3},
    },
    "tasks": {"naming": {"source": "digits_held_out", "limit": 3, "max_new_tokens": 2, "every_steps": 4}},
}
# Steps at which each evaluator of a run of seven steps runs.
DUE = {"naming": [4, 7], "text": [3, 6, 7], "digits": [2, 4, 6, 7]}


def make(folder: Path, name: str, evaluation: dict | None = EVALUATION, steps: int = 7, **changes) -> Config:
    sources = {
        **CONFIG["data"]["sources"],
        "digits_held_out": {"reader": "digits", "options": {"split": "held_out"}, "limit": 5},
        "topics_held_out": {"reader": "topics", "options": {"split": "held_out"}, "limit": 8},
    }
    data = {**CONFIG["data"], "sources": sources, "folder": str(folder / "data")}
    data["tokenizer"] = {"vocab_size": 400, "train_on": ["topics"]}
    model = {**CONFIG["model"], "attention_implementation": "dense"}  # compiles faster
    stage = {**CONFIG["stages"][1], "steps": steps}
    settings = {**CONFIG, "name": name, "folder": str(folder / "runs"), "data": data, "model": model, "stages": [stage]}
    return parse_config({**settings, "checkpoint": {"every_steps": 5}, "evaluation": evaluation or {}, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the data and the runs are."""
    folder = tmp_path_factory.mktemp("evaluation")
    prepare(make(folder, "any"))
    return folder


def train(config: Config, observer: Observer | None = None) -> RunFolder:
    """Trains on two devices, with the evaluators of the config."""
    prepared, run, observer = prepare(config), RunFolder.open(config), observer or Observer()
    mesh = make_mesh(config.mesh, jax.devices()[:DEVICES])
    definition = define(config, prepared.tokenizer.vocab_size)
    evaluators = RunEvaluators(config, prepared, definition, mesh, observer, run)
    ledger = Ledger()
    ledger.open(run.goodput_file)
    stop = observer.stop if isinstance(observer, StopsAt) else None
    Trainer(config, prepared, run, observer, mesh, None, ledger, evaluators, stop=stop).train()
    ledger.close("done")
    prepared.tokenizer.save(run.path)
    return run


def lines_of(run: RunFolder, *kinds: str) -> list[dict]:
    found = [line for line in read_metrics(run.metrics_file) if line["kind"] in kinds]
    return [{key: value for key, value in line.items() if key != "timing"} for line in found]


def parameters_of(run: RunFolder, step: int) -> dict[str, np.ndarray]:
    import solo

    return {path: np.asarray(value) for path, value in solo.load(run.path, step=step).parameters.items()}


@pytest.fixture(scope="module")
def whole(folder) -> RunFolder:
    """A run that is evaluated, without any interruption."""
    return train(make(folder, "whole"))


def test_an_evaluator_that_fails_does_not_end_the_training(folder, whole, monkeypatch) -> None:
    measure, calls = HeldOutLosses.measure, []

    def damaged(self, name, *arguments):
        calls.append(name)
        if name == "digits" and calls.count("digits") == 2:
            raise ConfigError("a file is damaged")
        return measure(self, name, *arguments)

    monkeypatch.setattr(HeldOutLosses, "measure", damaged)
    run = train(make(folder, "failing"))
    (failed,) = lines_of(run, "failed_evaluation")
    assert failed == {
        "kind": "failed_evaluation",
        "step": 4,
        "task": "digits",
        "of": "held_out",
        "reason": "a file is damaged",
    }
    assert lines_of(run, "train") == lines_of(whole, "train")
    others = [line for line in lines_of(whole, "held_out") if (line["step"], line["task"]) != (4, "digits")]
    assert lines_of(run, "held_out") == others


class StopsAt(Observer):
    """Requests a stop at the n-th note, or after a step."""

    def __init__(self, wanted: Callable[[str], bool]):
        super().__init__()
        self._wanted, self.stop = wanted, Stop()

    def note(self, text: str) -> None:
        self.stop.requested |= self._wanted(text)


def test_each_evaluator_runs_at_its_own_cadence_and_at_the_end(whole) -> None:
    measured = lines_of(whole, "held_out", "evaluation")
    assert {name: [line["step"] for line in measured if line["task"] == name] for name in DUE} == DUE
    text = [line for line in measured if line["task"] == "text"]
    assert set(text[0]["loss_by_context"]) == {"text_only"}
    assert text[-1]["loss"] < text[0]["loss"]
    spent = [line for line in read_ledger(whole.goodput_file)[0] if line.get("spent") == "evaluation"]
    assert len(spent) == len({step for steps in DUE.values() for step in steps})
    seconds = [line["timing"]["seconds"] for line in read_metrics(whole.metrics_file) if "task" in line]
    assert 0 < sum(seconds) <= sum(line["seconds"] for line in spent)


def test_training_is_the_same_to_the_last_bit_without_evaluation(folder, whole) -> None:
    plain = train(make(folder, "plain", None))
    assert lines_of(plain, "train", "plan") == lines_of(whole, "train", "plan")
    before, after = parameters_of(plain, 7), parameters_of(whole, 7)
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value, err_msg=path)


def test_the_final_evaluation_equals_that_of_the_checkpoint(whole, tmp_path) -> None:
    """On all eight devices of this process, which it is read onto in shards."""
    before = lines_of(whole, "held_out", "evaluation")
    run = RunFolder(shutil.copytree(whole.path, tmp_path / "run"))
    for reference in (run.path, f"{run.path}@5"):
        evaluate_folder(reference, Observer())
    after = lines_of(run, "held_out", "evaluation")[len(before) :]
    final = {line["task"]: line for line in before if line["step"] == 7}
    again = {line["task"]: line for line in after if line["step"] == 7}
    for name, line in again.items():  # of those whose last digits differ
        assert {key: line[key] for key in line.keys() & {"loss", "score"}} == {
            key: pytest.approx(final[name][key], rel=1e-5) for key in line.keys() & {"loss", "score"}
        }
    assert {line["step"] for line in after} <= {5, 7}
    assert {line["task"] for line in after if line["step"] == 5} == set(DUE)


@pytest.mark.parametrize("where", ["evaluating text: 1 of 2", "evaluating naming: 3 of 3"])
def test_a_stop_while_evaluating_is_made_up_for(folder, whole, where) -> None:
    """The stop comes in the middle of an evaluation at step 3 or 4, which no checkpoint was due at."""
    name = f"stopped-{len(where)}-{where.split()[1][:3]}"
    with pytest.raises(Interrupted):
        train(make(folder, name), StopsAt(lambda text: text == where))
    run = RunFolder(folder / "runs" / name)
    step = run.newest_step()
    assert step in (3, 4)
    done = {(line["step"], line["task"]) for line in lines_of(run, "held_out", "evaluation")}
    due = {(at, name) for name, steps in DUE.items() for at in steps if at <= step}
    assert done < due
    assert lines_of(run, "train")[-1]["step"] == step
    train(make(folder, name))
    key = lambda line: (line["step"], line["kind"], line.get("task", ""))  # noqa: E731
    kinds = ("train", "plan", "held_out", "evaluation")
    assert sorted(lines_of(run, *kinds), key=key) == sorted(lines_of(whole, *kinds), key=key)


def test_a_run_that_was_killed_in_its_final_evaluation_finishes_it(folder, whole) -> None:
    config = make(folder, "killed")
    run = train(config)
    lines = [json.dumps(line) for line in read_metrics(run.metrics_file)]
    missing = [text for text in lines if '"step": 7' in text and '"task"' in text]
    assert len(missing) == 3
    run.metrics_file.write_text("\n".join(text for text in lines if text not in missing[1:]) + "\n")
    train(config)
    found, expected = (sorted(map(str, lines_of(each, "held_out", "evaluation"))) for each in (run, whole))
    assert found == expected
    # Once more: nothing is left to do.
    before = run.metrics_file.read_text()
    train(config)
    assert run.metrics_file.read_text() == before


def test_an_evaluator_that_was_replaced_measures_again(folder, whole) -> None:
    """A finished run resumes with another source of one evaluator, under its old name."""
    run = RunFolder(folder / "runs" / "replaced")
    shutil.copytree(whole.path, run.path)
    losses = {**EVALUATION["losses"], "text": {**EVALUATION["losses"]["text"], "source": "digits_held_out"}}
    before = lines_of(run, "held_out", "evaluation")
    train(make(folder, "replaced", {**EVALUATION, "losses": losses}))
    after = lines_of(run, "held_out", "evaluation")
    assert after[:-1] == before
    assert (after[-1]["step"], after[-1]["task"], after[-1]["source"]) == (7, "text", "digits_held_out")


def test_the_initial_weights_are_measured_on_request(folder) -> None:
    run = train(make(folder, "start", {**EVALUATION, "every_steps": None, "at_start": True}, steps=1))
    measured = [(line["step"], line["task"]) for line in lines_of(run, "held_out", "evaluation")]
    assert measured == [(step, name) for step in (0, 1) for name in ("naming", "text", "digits")]


def test_the_best_checkpoint_outlives_the_newer_ones(folder, monkeypatch) -> None:
    """The losses are made up; the best is at step 2, and a restart between it and the end does not forget it."""
    made_up = {2: 1.0, 4: float("nan"), 6: 1.0, 8: 3.0, 10: 2.0}
    measure = RunEvaluators._measure
    at: dict[str, int] = {}

    def due(self, step: int, last: bool) -> bool:
        at["step"] = step
        return step in made_up

    def loss(self, kind: str, name: str, model: Monolith, note) -> dict:
        return {**measure(self, kind, name, model, note), "loss": made_up[at["step"]]}

    monkeypatch.setattr(RunEvaluators, "due", due)
    monkeypatch.setattr(RunEvaluators, "_measure", loss)
    changes = {"best": {"metric": "held_out/digits"}, "every_steps": 100, "keep_latest": 1}
    config = make(folder, "best", {**EVALUATION, "tasks": {}}, steps=10, checkpoint=changes)
    with pytest.raises(Interrupted):
        train(config, StopsAt(lambda text: at.get("step") == 6))
    run = train(config)
    saved = [int(path.name) for path in sorted(run.checkpoints.iterdir(), key=lambda path: int(path.name))]
    assert saved == [2, 10]
    assert find_checkpoint(run.path, "best").name == "2"
    assert parameters_of(run, 2).keys() == parameters_of(run, 10).keys()


def test_the_evaluators_hold_no_weights(folder) -> None:
    """What they held would double the memory, or be overwritten by the next step."""
    config = make(folder, "weights")
    prepared: Prepared = prepare(config)
    mesh = make_mesh(config.mesh, jax.devices()[:DEVICES])
    definition = define(config, prepared.tokenizer.vocab_size)
    evaluators = RunEvaluators(config, prepared, definition, mesh, Observer())
    model = Monolith(config, prepared.tokenizer, jax.jit(definition.initialise)(jax.random.key(0)), mesh)
    live = len(jax.live_arrays())
    assert len(list(evaluators.run({"trained": model.parameters}, 7, True, lambda: False))) == 3
    assert len(jax.live_arrays()) <= live + 2  # constants of the compiled functions


def test_samples_and_the_integration_rate_are_evaluators(folder) -> None:
    evaluation = {
        "samples": {"look": {"source": "digits_held_out", "count": 2, "max_new_tokens": 2, "every_steps": 4}},
        "integration_rate": {"rate": {"source": "digits_held_out", "documents": 4, "every_steps": 6}},
    }
    config = make(folder, "samples", evaluation)
    prepared, mesh = prepare(config), make_mesh(config.mesh, jax.devices()[:DEVICES])
    definition = define(config, prepared.tokenizer.vocab_size)
    evaluators = RunEvaluators(config, prepared, definition, mesh, Observer())
    assert [step for step in range(1, 8) if evaluators.due(step, step == 7)] == [4, 6, 7]
    weights = {"trained": jax.jit(definition.initialise)(jax.random.key(0))}
    (look,) = evaluators.run(weights, 4, False, lambda: False)
    assert (look["kind"], look["task"], look["step"]) == ("samples", "look", 4)
    assert [set(example) for example in look["examples"]] == [{"id", "prompt", "reference", "answer"}] * 2
    (rate,) = evaluators.run(weights, 6, False, lambda: False)
    assert (rate["kind"], rate["task"], rate["step"]) == ("integration_rate", "rate", 6)
    assert len(rate["by_layer"]) == config.model.layers
    assert rate["rate"] == pytest.approx(np.log10(sum(rate["by_layer"])))
    gone = {"look": {"source": "digits_held_out", "count": 2}}
    with pytest.raises(ConfigError, match="evaluation samples 'look': no source 'digits_held_out'"):
        parse_config({**json.loads(config.model_dump_json()), "evaluation": {"samples": gone}, "data": CONFIG["data"]})
