"""A branch does what a run of its config would have done from the beginning, and says what it keeps."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import solo
from solo.cli import main
from solo.config import Config, ConfigError, load_config
from solo.pipeline import train
from solo.training.checkpoint import CheckpointError
from solo.training.lineage import branch_config, origin, secure, with_lineage
from solo.training.metrics import read_metrics
from solo.training.run_folder import RunFolder
from tests.training.test_resume import CONFIG
from tests.training.test_trainer import make

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_programs")]
CONSTANT = {"learning_rate": 1e-2, "schedule": "constant"}


class Runs:
    """Runs of eight rows in a folder; data and compiled steps are shared."""

    def __init__(self, folder: Path):
        self.folder = folder

    def stage(self, name: str = "stable", **changes) -> dict:
        return {**CONFIG["stages"][1], "name": name, "steps": 4, "batch_rows": 8, "optimizer": CONSTANT, **changes}

    def config(self, name: str, *stages: dict, branch: str | None = None, every_steps: int = 100, **changes) -> Config:
        model = changes.pop("model", {**CONFIG["model"], "attention_implementation": "dense"})  # compiles faster
        found = make(
            self.folder,
            name=name,
            model=model,
            stages=list(stages or [self.stage()]),
            checkpoint={"every_steps": 100, "at_steps": [2, 6], "keep_latest": 9},
            **changes,
        )
        reference = None if branch is None else branch_config(str(self.folder / "runs" / branch))
        return found.model_copy(update={"branch": reference})

    def train(self, name: str, *stages: dict, **changes) -> list[str]:
        """Trains a run, and returns what it said."""
        return train(self.config(name, *stages, **changes)).notes

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.folder / "runs" / name)

    def steps(self, name: str, first: int = 1) -> list[dict]:
        """The lines of the steps from `first` on, without times and run-wide sums."""
        left_out = ("timing", "step", "total_tokens", "total_flops", "passes_by_source")
        lines = [line for line in self.lines(name, "train") if line["step"] >= first]
        return [{key: value for key, value in line.items() if key not in left_out} for line in lines]

    def lines(self, name: str, kind: str) -> list[dict]:
        return [line for line in read_metrics(self.run(name).metrics_file) if line["kind"] == kind]

    def weights(self, name: str, weights: str = "trained", **which) -> dict[str, np.ndarray]:
        return jax.device_get(solo.load(self.run(name).path, weights=weights, **which).parameters)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, shared_programs):
    """With a run `base` of four constant steps. Reports are not written."""
    runs = Runs(tmp_path_factory.mktemp("branches"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("solo.pipeline.report_run", lambda *arguments: [])
        runs.train("base")
        yield runs


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for path, value in one.items():
        np.testing.assert_array_equal(value, other[path], err_msg=path)


def test_more_steps_equal_a_run_that_was_longer_from_the_beginning(runs: Runs) -> None:
    longer = runs.stage(steps=7)
    runs.train("long", longer)
    said = runs.train("extended", longer, branch="base")
    assert any(note.endswith("/base@4 and continues stage stable after its step 4") for note in said)
    assert runs.lines("extended", "train")[0]["step"] == 5
    assert runs.steps("extended") == runs.steps("long", 5)
    assert [line["total_tokens"] for line in runs.lines("extended", "train")] == [
        line["total_tokens"] for line in runs.lines("long", "train")[4:]
    ]
    same(runs.weights("extended"), runs.weights("long"))
    (line,) = runs.lines("extended", "branched")
    assert (line["step"], line["from_step"], line["run"]) == (4, 4, str(runs.run("base").path))
    assert line["changes"] == {"stages.0.steps": [4, 7]}
    assert (line["stage"], line["stage_step"], line["optimizer_state"]["fresh"]) == ("stable", 4, [])
    stored = load_config(runs.run("extended").config_file)
    assert stored.branch is not None
    assert (stored.branch.run, stored.branch.step) == (str(runs.run("base").path), 4)


def test_a_decay_from_a_step_of_a_stable_run(runs: Runs) -> None:
    decaying = runs.stage(steps=5, optimizer={**CONSTANT, "schedule": "wsd", "decay_steps": 3})
    runs.train("decay_whole", decaying)
    runs.train("decay", decaying, branch="base@2", mesh={"replica": 2, "fsdp": 4})
    found, expected = runs.steps("decay"), runs.steps("decay_whole", 3)
    # The program of another mesh is fused otherwise: the rate's last digit may differ.
    rates, expected_rates = ([line["learning_rate"] for line in lines] for lines in (found, expected))
    np.testing.assert_allclose(rates, expected_rates, rtol=1e-6)
    assert found[-1]["learning_rate"] < 0.2 * CONSTANT["learning_rate"]
    # On another mesh, sums are rounded otherwise.
    np.testing.assert_allclose([line["loss"] for line in found], [line["loss"] for line in expected], rtol=1e-4)


def test_a_further_stage_and_the_stage_alone(runs: Runs) -> None:
    """Both do what the second stage of one run does: with data of its own, and the state of the optimizer."""
    further = runs.stage("anneal", steps=3, mixture={"digits": 3.0, "topics": 1.0}, optimizer_state="carry")
    runs.train("both", runs.stage(), further)
    runs.train("appended", runs.stage(), further, branch="base")
    said = runs.train("alone", further, branch="base@4")
    assert runs.steps("appended") == runs.steps("both", 5) == runs.steps("alone")
    assert [line["step"] for line in runs.lines("appended", "train")] == [5, 6, 7]
    assert [line["step"] for line in runs.lines("alone", "train")] == [1, 2, 3]
    assert any(note.endswith("/base@4 and begins stage anneal") for note in said)
    same(runs.weights("appended"), runs.weights("both"))
    same(runs.weights("alone"), runs.weights("both"))


def test_a_changed_mixture_goes_on_with_the_data(runs: Runs) -> None:
    changed = {"steps": 10, "mixture_changes": {8: {"digits": 0.2}}}
    runs.train("mixed", runs.stage(**changed))
    runs.train("remixed", runs.stage(**changed), branch="base")
    assert runs.steps("remixed") == runs.steps("mixed", 5)
    other = runs.stage(steps=7, mixture={"digits": 0.2, "topics": 1.0})
    with pytest.raises(ConfigError, match=r"data of stage 'stable' differs from base's:\n  stages\.0\.mixture") as told:
        runs.train("refused", other, branch="base")
    assert "stages.0.mixture_changes={4: {SOURCE: WEIGHT}}" in str(told.value)


def test_what_fits_of_the_optimizer_state_is_kept_and_named(runs: Runs) -> None:
    part = runs.stage("part", train=["patch_embed", "head"], optimizer_state="carry")
    runs.train("part", part)
    all_of_it = runs.stage("part", steps=6, optimizer_state="carry")
    with pytest.raises(ConfigError, match=r"trains other parameters than in part.* stages\.0\.optimizer_state=carry"):
        runs.train("refused", {**all_of_it, "optimizer_state": "reset"}, branch="part")
    said = runs.train("whole", all_of_it, branch="part")
    (note,) = [note for note in said if "optimizer state" in note]
    assert note.startswith("the optimizer state is kept, except for final_norm/scale, layers/")
    (line,) = runs.lines("whole", "branched")
    assert line["optimizer_state"]["kept"] == ["head", "patch_embed/kernel"]
    # As in one run whose second stage trains the rest.
    runs.train("stages", part, runs.stage("rest", steps=2, optimizer_state="carry"))
    runs.train("rest", runs.stage("rest", steps=2, optimizer_state="carry"), branch="part")
    assert runs.steps("rest") == runs.steps("stages", 5)


def test_averages_begin_in_a_branch_and_go_on_in_another(runs: Runs) -> None:
    averages = {"ema": {"decay": 0.5}}
    runs.train("averaged", runs.stage(steps=8), averages=averages)
    runs.train("continued", runs.stage(steps=8), branch="averaged@6", averages=averages)
    same(runs.weights("continued", "ema"), runs.weights("averaged", "ema"))
    # A late one counts the steps of the run, not those of the branch.
    late = {"late": {"decay": 0.0, "start_step": 6, "every_steps": 3}}
    said = runs.train("begun", runs.stage(steps=8), branch="base", averages={**averages, **late})
    assert any(note.startswith("averages that begin with the weights of") for note in said)
    assert not np.array_equal(runs.weights("begun", "ema", step=6)["head"], runs.weights("begun", step=6)["head"])
    same(runs.weights("begun", "late", step=8), runs.weights("begun", step=6))


def test_an_average_that_ends_for_a_frozen_parameter_is_told(runs: Runs) -> None:
    averages = {"ema": {"decay": 0.5}}
    runs.train("all", runs.stage(), averages=averages)
    said = runs.train("one", runs.stage("one", train=["head"], steps=2), branch="all", averages=averages)
    (note,) = [note for note in said if note.startswith("average ema ends for final_norm/scale, layers/")]
    assert note.endswith("the branch does not train them, and their trained weights are used")
    averaged, trained = runs.weights("one", "ema"), runs.weights("one")
    assert [path for path in trained if not np.array_equal(trained[path], averaged[path])] == ["head"]


def test_a_state_of_another_shape_begins_anew_and_is_named(runs: Runs) -> None:
    """Also its count: with the old one, the new moments would be weighed as if they were an average of many steps."""
    factored = {"name": "adafactor", "learning_rate": 1e-2, "schedule": "constant"}
    runs.train("whole_moments", runs.stage(optimizer=factored))
    keys = {**factored, "adafactor": {"min_dim_size_to_factor": 16}}
    now = runs.stage(optimizer=keys, steps=5, optimizer_state="carry")
    said = runs.train("factored", now, branch="whole_moments")
    (line,) = runs.lines("factored", "branched")
    assert "head" in line["optimizer_state"]["fresh"]
    assert "final_norm/scale" in line["optimizer_state"]["kept"]
    assert any("the optimizer state is kept, except for head, " in note for note in said)


def test_the_same_command_resumes_and_the_other_run_is_not_needed(runs: Runs, monkeypatch) -> None:
    longer = runs.stage(steps=6)
    shutil.copytree(runs.run("base").path, runs.run("source").path)
    runs.train("branch", longer, branch="source")
    # The source has a newer checkpoint now, but the branch is what it is.
    place = runs.run("source").checkpoints
    shutil.copytree(place / "4", place / "9")
    for branch in ("source", "source@4", None):
        config = runs.config("branch", longer, branch=branch)
        assert with_lineage(config).branch.step == 4
    with pytest.raises(ConfigError, match=r"branch branched from .*/source@4, not from .*/source@2; choose"):
        runs.train("branch", longer, branch="source@2")
    with pytest.raises(ConfigError, match=r"base began on its own, not from .*/source; choose another name"):
        runs.train("base", branch="source")
    shutil.rmtree(runs.run("source").path)
    shutil.rmtree(runs.run("branch").checkpoints / "6")
    before = runs.steps("branch")
    runs.train("branch", longer)
    assert runs.steps("branch") == before
    assert not (runs.run("branch").path / "origin").exists()


def test_a_checkpoint_may_be_removed_once_the_branch_has_begun(runs: Runs) -> None:
    shutil.copytree(runs.run("base").path, runs.run("pruned").path)
    config = with_lineage(runs.config("late", runs.stage(steps=6), branch="pruned@2"))
    run = RunFolder.open(config)
    secure(config, run)
    shutil.rmtree(runs.run("pruned").checkpoints / "2")
    assert origin(config.branch, run).is_relative_to(run.path / "origin")
    # It is not taken for that of another run.
    other = config.branch.model_copy(update={"run": str(runs.run("base").path)})
    assert origin(other, run) == runs.run("base").checkpoints / "2"
    train(config)
    assert [line["step"] for line in runs.lines("late", "train")] == [3, 4, 5, 6]
    assert runs.steps("late")[:2] == runs.steps("base", 3)


@pytest.mark.parametrize(
    ("reference", "stages", "changes", "message"),
    [
        ("base@3", [{"steps": 6}], {}, r"cannot branch: .*/base has no checkpoint of step 3; it has steps 2, 4"),
        ("nowhere", [{}], {}, r"nowhere is not a run of solo"),
        ("base", [{}], {}, r"all 4 steps of stage 'stable', the last one, are done at step 4; raise stages\.0\.steps"),
        ("base", [{"steps": 3}], {}, r"has done 4 steps of stage 'stable', which has 3 here"),
        ("base", [{"name": "new"}, {"steps": 9}], {}, r"begins after step 0 of base, and after step 4 here"),
        ("base", [{"steps": 6}], {"model": {**CONFIG["model"], "width": 32}}, r"head: float32 \(16, .*\(32, "),
        (
            "base",
            [{"steps": 6, "mixture_changes": {2: {"digits": 0.5}}}],
            {},
            r"mixture_changes differs from base's at step 2, and the checkpoint is of step 4",
        ),
        ("self", [{"steps": 6}], {}, r"self cannot branch from itself"),
    ],
)
def test_a_refusal_says_what_to_do(runs: Runs, reference, stages, changes, message) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=message):
        runs.train("self", *(runs.stage(**stage) for stage in stages), branch=reference, **changes)
    assert not (runs.run("self").checkpoints / "4").exists()


@pytest.mark.parametrize("stages", [[{}], [{"steps": 3}], [{"name": "new"}, {"steps": 9}]])
def test_a_position_is_refused_before_anything_is_written(runs: Runs, stages) -> None:
    with pytest.raises(ConfigError, match="cannot branch"):
        runs.train("position", *(runs.stage(**stage) for stage in stages), branch="base")
    assert not runs.run("position").path.exists()


def test_another_tokenizer_is_refused_with_the_way_to_take_the_right_one(runs: Runs) -> None:
    base = runs.config("base").data.model_dump(mode="json")
    data = {**base, "folder": str(runs.folder / "other"), "tokenizer": {**base["tokenizer"], "vocab_size": 380}}
    with pytest.raises(ConfigError, match=r"was trained with another tokenizer .*data\.tokenizer\.path=.*/base"):
        runs.train("tokens", runs.stage(steps=6), branch="base", data=data)


def test_an_empty_option_is_named(tmp_path: Path, capsys) -> None:
    assert main(["train", "configs/quickstart.yaml", f"folder={tmp_path}", "--branch-from", ""]) == 2
    assert "--branch-from is empty; give RUN, RUN@STEP or RUN@best" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_line_takes_a_run_and_a_step(runs: Runs, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(runs.config("cli", runs.stage(steps=5)).model_dump(mode="json", exclude={"branch"})))
    assert main(["train", str(path), "--branch-from", f"{runs.run('base').path}@2"]) == 0
    assert [line["step"] for line in runs.lines("cli", "train")] == [3, 4, 5]
    assert main(["train", str(path), "--branch-from", f"{runs.run('base').path}@4"]) == 2
    assert main(["train", str(runs.run("cli").config_file)]) == 0
