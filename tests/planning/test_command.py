"""`solo plan`: what it refuses before it compiles, and the figures of --count."""

import json
from pathlib import Path

import pytest

from solo.cli import main
from solo.config import ConfigError, StageConfig
from solo.sharding.axes import check_slots

MODEL = "configs/models/solo_30m.yaml"
PLAN = "configs/plans/solo_7b_8k.yaml"


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch) -> None:
    def compile_step(*_, **__) -> None:
        raise AssertionError("it was compiled")

    monkeypatch.setattr("solo.planning.forecast.compile_step", compile_step)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--slices", "0"], "0 slices of cpu-8: expected at least 1"),
        (["--tries", "0"], "--tries 0: expected at least 1"),
        (["--document-slots", "0"], "--document-slots 0: expected at least 1"),
        (["--rows-per-device", "0"], "--rows-per-device 0: expected at least 1"),
        (["--usd-per-chip-hour", "-1"], "--usd-per-chip-hour -1: expected a price of at least 0"),
        (["--usd-per-chip-hour", "nan"], "--usd-per-chip-hour nan: expected a price of at least 0"),
        (["stages.0.train=[]"], "train: [] trains nothing"),
        (
            ["mesh.context=3", "mesh.fsdp=1", "--on", "cpu-3"],
            "mesh.context=3; set the stage's patch_slots and text_slots to multiples of 3",
        ),
    ],
)
def test_a_mistake_is_one_line_and_status_2(words: list[str], message: str, capsys) -> None:
    assert main(["plan", PLAN, "--on", "cpu-8", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize("option", ["--json", "--search", "--search-options", "--hlo"])
def test_files_that_cannot_be_written_are_refused_before_compiling(option: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    assert main(["plan", PLAN, "--on", "cpu-8", option, str(tmp_path / "file" / "x")]) == 2
    error = capsys.readouterr().err
    assert f"{option} {tmp_path}/file/x: cannot be written: " in error
    assert "Not a directory" in error or "File exists" in error
    if option != "--hlo":
        assert main(["plan", PLAN, "--on", "cpu-8", option, str(tmp_path)]) == 2
        assert "it is a folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_overrides_may_follow_every_option(tmp_path: Path, capsys) -> None:
    for words in (
        ["--on", "cpu-8", "mesh.fsdp=5", "--stage", "pretrain"],
        ["--json", str(tmp_path / "x"), "mesh.fsdp=5", "--on", "cpu-8"],
        ["--on", "cpu-8", "--quick", "mesh.fsdp=5"],
    ):
        assert main(["plan", PLAN, *words]) == 2
        assert "fsdp 5 x context 1 x tensor 1 does not make 8 devices" in capsys.readouterr().err
    assert main(["plan", "--on", "cpu-8", PLAN, "mesh.fsdp=5", "--slices", "1", "mesh.tensor=7"]) == 2
    assert "fsdp 5 x context 1 x tensor 7 does not make 8 devices" in capsys.readouterr().err


def test_count_writes_what_it_prints(tmp_path: Path, capsys) -> None:
    path = tmp_path / "deep" / "count.json"
    assert main(["plan", MODEL, "--count", "--json", str(path), "model.layers=3"]) == 0
    said, found = capsys.readouterr().out, json.loads(path.read_text())
    assert found["parameters"] == sum(each["parameters"] for each in found["components"].values())
    assert f"as native: {found['layouts']['native']['tensors']} tensors, {found['parameters']:,} parameters" in said
    assert f"vocabulary {found['vocab_size']:,}" in said
    for name, each in found["components"].items():
        assert any(name in line and f"{each['of_text']:,}" in line for line in said.splitlines())


@pytest.mark.parametrize("words", [["--slices", "2"], ["--stage", "x"], ["--quick"], ["--usd-per-chip-hour", "1"]])
def test_options_that_count_would_ignore_are_refused(words: list[str], capsys) -> None:
    assert main(["plan", MODEL, "--count", *words]) == 2
    assert f"{words[0]} goes with --on" in capsys.readouterr().err


def test_slots_are_sharded_evenly_over_the_context_axis() -> None:
    stage = StageConfig.model_validate(
        {"name": "s", "mixture": {"a": 1}, "steps": 1, "batch_rows": 1, "optimizer": {"learning_rate": 1}}
    )
    check_slots(stage, 48, 16, {"context": 8})
    with pytest.raises(ConfigError, match=r"48 patches and 20 text tokens .* slot_multiple=8"):
        check_slots(stage, 48, 20, {"context": 8})
    stated = stage.model_copy(update={"patch_slots": 48, "text_slots": 20})
    with pytest.raises(ConfigError, match="patch_slots and text_slots to multiples of 8"):
        check_slots(stated, 48, 20, {"context": 8})


def test_a_search_for_options_writes_what_it_keeps(tmp_path: Path, capsys, monkeypatch) -> None:
    """Also what it had kept when a trial ends the process."""
    path, written = tmp_path / "options", []

    def search_options(config, stage, machine, first, report, document_slots, keep):
        keep(("compiler_options.xla_a=1",))
        written.append(path.read_text())
        keep(("compiler_options.xla_a=1", "compiler_options.xla_b=true"))
        raise ConfigError("ended here")

    monkeypatch.setattr("solo.planning.option_search.search_options", search_options)
    assert main(["plan", PLAN, "--on", "cpu-8", "--search-options", str(path)]) == 2
    assert "ended here" in capsys.readouterr().err
    assert written == ["compiler_options.xla_a=1\n"]
    assert path.read_text() == "compiler_options.xla_a=1 compiler_options.xla_b=true\n"
    assert main(["plan", PLAN, "--on", "cpu-8", "--quick", "--search-options", str(tmp_path / "other")]) == 2
    assert "--quick does not give" in capsys.readouterr().err


def test_a_search_for_options_that_cannot_begin_leaves_no_file(tmp_path: Path, capsys) -> None:
    path = tmp_path / "options"
    for _ in range(2):  # a file would need --force the second time
        assert main(["plan", PLAN, "--on", "cpu-8", "--search-options", str(path)]) == 2
        assert "no compiler options to try for cpu" in capsys.readouterr().err
    path.write_text("mine\n")
    assert main(["plan", PLAN, "--on", "cpu-8", "--search-options", str(path), "--force"]) == 2
    assert path.read_text() == "mine\n"


def test_two_outputs_in_one_file_are_refused_before_compiling(tmp_path: Path, capsys) -> None:
    both = str(tmp_path / "best.txt")
    assert main(["plan", PLAN, "--on", "v5e-256", "--search", both, "--search-options", both]) == 2
    assert f"--search and --search-options both write {both}; name two files" in capsys.readouterr().err
    assert main(["plan", PLAN, "--on", "v5e-256", "--json", both, "--search", str(tmp_path / "." / "best.txt")]) == 2
    assert "--json and --search both write" in capsys.readouterr().err
