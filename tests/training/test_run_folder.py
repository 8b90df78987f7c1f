"""A run's folder is resumed only by a config with the same result."""

from pathlib import Path

import pytest

from solo.config import ConfigError, load_config
from solo.files import COMMIT_MARKER
from solo.locks import hold
from solo.pipeline import train
from solo.training.run_folder import RunFolder


def opened(folder: Path, *overrides: str) -> tuple[RunFolder, list[str]]:
    notes: list[str] = []
    config = load_config("configs/quickstart.yaml", [f"folder={folder}", *overrides])
    return RunFolder.open(config, notes.append), notes


def test_keys_that_decide_nothing_of_the_result_may_change_on_resume(tmp_path: Path) -> None:
    opened(tmp_path)
    run, notes = opened(tmp_path, "model.remat=dots", "evaluation.report_examples=3", "mesh.tensor=2")
    assert notes == [
        "resumed with model.remat='dots', before 'none'",
        "resumed with mesh.tensor=2, before 1",
        "resumed with evaluation.report_examples=3, before 12",
    ]
    assert load_config(run.config_file).model.remat == "dots"
    assert opened(tmp_path, "model.remat=dots", "evaluation.report_examples=3", "mesh.tensor=2")[1] == []


def test_a_config_with_another_result_is_refused_and_the_folder_stays_as_it_was(tmp_path: Path) -> None:
    run, _ = opened(tmp_path)
    before = run.config_file.read_text()
    with pytest.raises(ConfigError, match=r"made by another config:\n  seed: 0 there, 1 here\nchoose another name"):
        opened(tmp_path, "seed=1", "model.remat=dots")
    assert run.config_file.read_text() == before


def test_what_happens_after_a_bad_loss_may_change_on_resume(tmp_path: Path) -> None:
    opened(tmp_path)
    _, notes = opened(tmp_path, "safety.policy=skip", "safety.max_skips=3")
    assert [note.partition("=")[0] for note in notes] == ["resumed with safety.policy", "resumed with safety.max_skips"]
    with pytest.raises(ConfigError, match=r"safety\.spike_factor"):
        opened(tmp_path, "safety.spike_factor=2.0")


def test_a_run_with_old_keys_is_refused_with_the_new_names_and_what_to_do(tmp_path: Path) -> None:
    run, _ = opened(tmp_path)
    content = run.config_file.read_text().replace("init_from:", "start_from:")
    run.config_file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path)
    assert f"{run.path} holds a run whose config cannot be read" in str(caught.value)
    assert "start_from: this key is named init_from now" in str(caught.value)
    assert f"choose another name for the new run (name=...), or correct {run.config_file}" in str(caught.value)
    assert run.config_file.read_text() == content


def test_checkpoints_without_a_commit_marker_are_set_aside(tmp_path: Path) -> None:
    run, _ = opened(tmp_path)
    for name in ("4", "6", "6.incomplete", "6.orbax-checkpoint-tmp"):
        (run.checkpoints / name).mkdir(parents=True)
    (run.checkpoints / "4" / COMMIT_MARKER).touch()
    _, notes = opened(tmp_path)
    assert notes == [f"checkpoint {run.checkpoints}/6 was not written to its end; it is named 6.incomplete1 now"]
    names = sorted(path.name for path in run.checkpoints.iterdir())
    assert names == ["4", "6.incomplete", "6.incomplete1", "6.orbax-checkpoint-tmp"]
    assert opened(tmp_path)[1] == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "report.html", "tokenizer.json"])
def test_a_folder_of_the_users_is_not_written_over(tmp_path: Path, name: str) -> None:
    config = load_config("configs/quickstart.yaml", [f"folder={tmp_path}"])
    config.run_folder.mkdir()
    (config.run_folder / name).write_text("mine")
    with pytest.raises(ConfigError, match=rf"holds no config\.yaml.*it has {name}.*choose another name"):
        RunFolder.open(config)
    assert [(path.name, path.read_text()) for path in config.run_folder.iterdir()] == [(name, "mine")]


def test_a_run_is_trained_by_one_process(tmp_path: Path) -> None:
    config = load_config("configs/quickstart.yaml", [f"folder={tmp_path}"])
    with (
        hold(RunFolder(config.run_folder).lock_file),
        pytest.raises(ConfigError, match=r"another process trains .*: process \d+ on "),
    ):
        train(config)
    assert not (config.run_folder / "config.yaml").exists()


def test_only_entries_that_have_not_taken_effect_may_change(tmp_path: Path) -> None:
    trained_on_all = "data.tokenizer.train_on=[]"
    run, _ = opened(tmp_path, trained_on_all)
    sources = ", ".join(load_config(run.config_file).data.sources)
    _, notes = opened(tmp_path, trained_on_all, "stages.0.mixture_changes={20: {digits: 0.5}}")
    assert notes == ["resumed with stages.0.mixture_changes.20.digits=0.5, before None"]
    checkpoint = run.checkpoints / "30"
    checkpoint.mkdir(parents=True)
    (checkpoint / COMMIT_MARKER).touch()
    for refused in ("{}", "{20: {digits: 0.7}}", "{20: {digits: 0.5}, 29: {digits: 0.6}}"):
        with pytest.raises(ConfigError, match="can be changed from step 30 on"):
            opened(tmp_path, trained_on_all, f"stages.0.mixture_changes={refused}")
    added = ["stages.0.mixture_changes={20: {digits: 0.5}, 30: {more: 0.6}}", "data.sources.more={reader: digits}"]
    with pytest.raises(ConfigError, match=r"the run's tokenizer was trained .* data\.tokenizer\.train_on=\["):
        opened(tmp_path, trained_on_all, *added)
    opened(tmp_path, *added, f"data.tokenizer.train_on=[{sources}]")
    with pytest.raises(ConfigError, match=r"data\.sources\.other"):
        opened(tmp_path, *added, f"data.tokenizer.train_on=[{sources}]", "data.sources.other={reader: digits}")
