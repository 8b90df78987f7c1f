"""A run's folder is resumed only by a config with the same result."""

from pathlib import Path

import pytest

from solo.config import ConfigError, load_config
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
