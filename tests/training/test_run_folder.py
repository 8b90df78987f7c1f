"""A run's folder is resumed only by a config with the same result."""

import fnmatch
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from solo.config import Config, ConfigError, Section, load_config
from solo.config.compare import what_decides
from solo.files import COMMIT_MARKER, append_json_line
from solo.locks import hold
from solo.pipeline import train
from solo.training.metrics import changed_values
from solo.training.run_folder import RunFolder


def opened(folder: Path, *overrides: str) -> tuple[RunFolder, list[str]]:
    notes: list[str] = []
    config = load_config("configs/quickstart.yaml", [f"folder={folder}", *overrides])
    return RunFolder.open(config, notes.append), notes


def trained(folder: Path, *overrides: str) -> RunFolder:
    """A run that has trained a step."""
    run, _ = opened(folder, *overrides)
    append_json_line(run.metrics_file, {"kind": "train", "step": 1, "loss": 1.0})
    return run


def complete(run: RunFolder, step: int) -> None:
    """Adds an empty folder that counts as a complete checkpoint."""
    (run.checkpoints / str(step)).mkdir(parents=True)
    (run.checkpoints / str(step) / COMMIT_MARKER).touch()


def test_keys_that_decide_nothing_of_the_result_may_change_on_resume(tmp_path: Path) -> None:
    run = trained(tmp_path)
    overrides = ["model.remat=dots", "evaluation.report_examples=3", "mesh.tensor=2", "compiler_options={xla_a: 1}"]
    run, notes = opened(tmp_path, *overrides)
    assert notes == [
        'resumed with a change of model.remat: "none" -> "dots"',
        "resumed with a change of mesh.tensor: 1 -> 2",
        "resumed with a change of evaluation.report_examples: 12 -> 3",
        "resumed with a change of compiler_options.xla_a: not set -> 1",
    ]
    assert changed_values(run.changes)["mesh.tensor"] == [1, 2]
    assert load_config(run.config_file).model.remat == "none"
    run.take_up(load_config("configs/quickstart.yaml", [f"folder={tmp_path}", *overrides]))
    assert load_config(run.config_file).model.remat == "dots"
    assert opened(tmp_path, *overrides)[1] == []


def test_names_that_are_one_on_this_disk_are_told_apart(tmp_path: Path, monkeypatch) -> None:
    """macOS and Windows open `RUN` as `run`."""
    opened(tmp_path, "name=run")
    opened(tmp_path, "name=RUN")  # this disk tells them apart
    monkeypatch.setattr("solo.training.run_folder.os.listdir", lambda folder: ["RUN"])
    with pytest.raises(ConfigError, match=r"/RUN is another run, whose name differs only in upper and lower case"):
        opened(tmp_path, "name=run")


def test_a_config_with_another_result_is_refused_with_the_ways_out(tmp_path: Path) -> None:
    run = trained(tmp_path)
    before = run.config_file.read_text()
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path, "seed=1", "model.remat=dots")
    assert str(caught.value) == (
        f"{run.path} was trained with other values of keys that affect its result:\n  seed: 0 -> 1\n"
        "restore these values to resume it, or choose\n  name=...: a new run from the beginning"
    )
    complete(run, 30)
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path, "stages.0.mixture.digits=5.0", "stages.0.steps=70")
    said = str(caught.value)
    assert re.search(r"stages\.0\.steps: \d+ -> 70\n", said)
    assert re.search(rf"name=\.\.\. --branch-from {run.path}@30: a new run from its weights and optimizer state", said)
    assert re.search(rf"name=\.\.\. init_from={run.path}: a new run from its weights alone", said)
    assert re.search(r"stages\.N\.mixture_changes=\S+ \{SOURCE: WEIGHT\}\}: this run, .* from step 30 on", said)
    assert run.config_file.read_text() == before


def test_a_refusal_is_short(tmp_path: Path) -> None:
    """Long values are cut to where they differ, and a part that only one config has is one line."""
    system = "You answer questions about pictures. " * 20
    trained(tmp_path, f"sequence.system={system}one")
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path, f"sequence.system={system}two", "data.sources.more={reader: digits}", "stages=[]")
    lines = str(caught.value).splitlines()
    assert '  sequence.system: ...t pictures. one" -> ...t pictures. two"' in lines
    assert any(re.fullmatch(r"  data\.sources\.more: added, \d+ keys", line) for line in lines)
    assert any(re.fullmatch(r"  stages\.0: removed, \d+ keys", line) for line in lines)
    assert len(lines) < 10
    assert max(map(len, lines)) < 200


@pytest.mark.parametrize("broken", [False, True])
def test_a_run_that_has_not_trained_a_step_takes_any_config(tmp_path: Path, broken: bool) -> None:
    run, _ = opened(tmp_path)
    append_json_line(run.metrics_file, {"kind": "plan", "step": 1})
    if broken:
        run.config_file.write_text("colour: blue")
    run, notes = opened(tmp_path, "seed=1", "mesh.fsdp=2")
    said = [
        f"{run.path} has not trained a step yet and accepts a change of {change}"
        for change in ("seed: 0 -> 1", "mesh.fsdp: -1 -> 2")
    ]
    assert notes == ([] if broken else said)
    assert load_config(run.config_file).seed == 1
    assert run.changes == ()
    trained(tmp_path, "seed=1", "mesh.fsdp=2")
    with pytest.raises(ConfigError, match="seed: 1 -> 0"):
        opened(tmp_path)


def test_what_happens_after_a_bad_loss_may_change_on_resume(tmp_path: Path) -> None:
    trained(tmp_path)
    run, _ = opened(tmp_path, "safety.policy=skip", "safety.max_skips=3")
    assert changed_values(run.changes) == {"safety.policy": ["stop", "skip"], "safety.max_skips": [10, 3]}
    with pytest.raises(ConfigError, match=r"safety\.spike_factor: null -> 2\.0"):
        opened(tmp_path, "safety.spike_factor=2.0")


def keys(kind: type[Section], where: str = "") -> Iterator[tuple[str, frozenset[str]]]:
    """All keys of the schema with what they decide; `*` stands for a name or number."""
    for key, info in kind.model_fields.items():
        inner = [part for part in [info.annotation, *parts(info.annotation)] if isinstance(part, type)]
        found = [part for part in inner if issubclass(part, Section)]
        listed = typing.get_origin(info.annotation) in (dict, tuple)
        if not found:
            yield f"{where}{key}", what_decides(kind, key)
        for section in found:
            yield from keys(section, f"{where}{key}.*." if listed else f"{where}{key}.")


def parts(annotation: object) -> list[object]:
    found = typing.get_args(annotation)
    return [*found, *(inner for part in found for inner in parts(part))]


def test_the_documentation_lists_the_keys_that_may_change() -> None:
    """Whoever adds a key says what it decides; if a resumed run may change it, the table says so, too."""
    text = Path("docs/training.md").read_text().partition("## What may change")[2].partition("\n## ")[0]
    listed = [
        key for row in text.splitlines() if row.startswith("| `") for key in re.findall(r"`([^`]+)`", row.split("|")[1])
    ]
    found = dict(keys(Config))
    assert len(found) > 150
    may_change = {key for key, decided in found.items() if decided <= {"nothing", "evaluation"}}
    matched = {key: [pattern for pattern in listed if fnmatch.fnmatchcase(key, pattern)] for key in found}
    assert {key for key, patterns in matched.items() if patterns} == may_change
    assert {pattern for patterns in matched.values() for pattern in patterns} == set(listed)


def test_a_run_with_old_keys_is_refused_with_the_new_names_and_what_to_do(tmp_path: Path) -> None:
    run = trained(tmp_path)
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
    assert notes == [f"checkpoint {run.checkpoints}/6 is incomplete; it was renamed to 6.incomplete1"]
    names = sorted(path.name for path in run.checkpoints.iterdir())
    assert names == ["4", "6.incomplete", "6.incomplete1", "6.orbax-checkpoint-tmp"]
    assert opened(tmp_path)[1] == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "report.html", "tokenizer.json"])
def test_a_folder_of_the_users_is_not_written_over(tmp_path: Path, name: str) -> None:
    config = load_config("configs/quickstart.yaml", [f"folder={tmp_path}"])
    config.run_folder.mkdir()
    (config.run_folder / name).write_text("mine")
    with pytest.raises(ConfigError, match=rf"has no config\.yaml.*it has {name}.*choose another name"):
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
    run = trained(tmp_path, trained_on_all)
    sources = ", ".join(load_config(run.config_file).data.sources)
    changed = [trained_on_all, "stages.0.mixture_changes={20: {digits: 0.5}}"]
    run, notes = opened(tmp_path, *changed)
    assert notes == ["resumed with a change of stages.0.mixture_changes.20.digits: not set -> 0.5"]
    run.take_up(load_config("configs/quickstart.yaml", [f"folder={tmp_path}", *changed]))
    complete(run, 30)
    for refused in ("{}", "{20: {digits: 0.7}}", "{20: {digits: 0.5}, 29: {digits: 0.6}}"):
        with pytest.raises(ConfigError, match="with other weights from step 30 on"):
            opened(tmp_path, trained_on_all, f"stages.0.mixture_changes={refused}")
    added = ["stages.0.mixture_changes={20: {digits: 0.5}, 30: {more: 0.6}}", "data.sources.more={reader: digits}"]
    with pytest.raises(ConfigError, match=r"the run's tokenizer was trained .* data\.tokenizer\.train_on=\["):
        opened(tmp_path, trained_on_all, *added)
    amended = [*added, f"data.tokenizer.train_on=[{sources}]"]
    run, _ = opened(tmp_path, *amended)
    run.take_up(load_config("configs/quickstart.yaml", [f"folder={tmp_path}", *amended]))
    with pytest.raises(ConfigError, match=r"data\.sources\.other"):
        opened(tmp_path, *added, f"data.tokenizer.train_on=[{sources}]", "data.sources.other={reader: digits}")
