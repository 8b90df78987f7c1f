"""Files that a user names are overwritten only by the option that wrote them."""

import os
import threading
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from solo.cli import main
from solo.outputs import Output, refuse_override
from solo.scaling.sweep.plots import SUFFIXES, _save
from tests.scaling.samples import OVERTRAIN
from tests.scaling.sweep.tiny_sweep import write_sweep

MINE = "#!/bin/bash\nsolo sweep x.yaml --slurm jobs.sh\n"
TEXTS = ["", "a: 1\nb: 2\n", "#!/bin/bash\ntrue\n", "<!doctype html>\n<p>", "no end of line"]


@pytest.mark.parametrize("suffix", [".yaml", ".html", ".hlo", ""])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("last", [False, True])
def test_text_keeps_its_lines_and_is_overwritten_until_it_is_edited(tmp_path, suffix, text, last) -> None:
    out = Output(tmp_path / "new" / f"file{suffix}", "solo fit --config")
    out.write_text(text, last)
    out.write_text(text, last)
    lines = out.path.read_text().splitlines()
    (marked,) = (line for line in lines if "written by solo fit --config, sha256 " in line)
    assert [line for line in lines if line != marked] == text.splitlines()
    assert marked.startswith({".html": "<!-- ", ".hlo": "// "}.get(suffix, "# "))
    assert lines.index(marked) == (len(lines) - 1 if last else int(text.startswith(("#!", "<!"))))
    out.path.write_text(out.path.read_text() + "edited\n")
    with pytest.raises(FileExistsError, match=r"was edited after solo fit --config wrote it; .* --force"):
        out.write_text(text, last)
    Output(out.path, out.command, force=True).write_text(text, last)
    assert "edited" not in out.path.read_text()


def test_json_is_overwritten_until_it_is_edited(tmp_path) -> None:
    out = Output(tmp_path / "a.json", "solo fit --json")
    out.write_json({"value": 1})
    out.write_json({"value": 2})
    out.path.write_text(out.path.read_text().replace('"value": 2', '"value": 3'))
    with pytest.raises(FileExistsError, match="was edited"):
        out.write_json({"value": 2})


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_images_say_who_wrote_them(tmp_path, suffix) -> None:
    out = Output(tmp_path / f"rates{suffix}", "solo sweep --rates")
    figure = Figure()
    figure.subplots().plot(range(5000))
    _save(figure, out)
    _save(figure, out)
    with pytest.raises(FileExistsError, match="solo sweep --coord-check did not write it"):
        Output(out.path, "solo sweep --coord-check").check()


def test_a_file_of_another_option_or_without_a_mark_stays(tmp_path) -> None:
    Output(tmp_path / "a", "solo fit --json").write_json({})
    with pytest.raises(FileExistsError, match="solo fit --report did not write it"):
        Output(tmp_path / "a", "solo fit --report").write_text("x")
    words = Output(tmp_path / "b", "solo plan --search")
    words.write_unmarked("mesh.fsdp=8\n")
    with pytest.raises(FileExistsError):
        words.write_unmarked("mesh.fsdp=4\n")
    assert words.path.read_text() == "mesh.fsdp=8\n"


def test_an_empty_file_a_link_and_a_pipe(tmp_path) -> None:
    """mktemp makes an empty file; a link stays a link; a pipe is written into."""
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    target.touch()
    link.symlink_to(target)
    Output(link, "solo fit --json").write_json({})
    assert link.is_symlink()
    assert "solo fit --json" in target.read_text()
    os.mkfifo(pipe)
    writer = threading.Thread(target=Output(pipe, "solo fit --json").write_json, args=[{}])
    writer.start()
    assert "solo fit --json" in pipe.read_text()
    writer.join()
    assert pipe.is_fifo()


FIT = ["fit", str(OVERTRAIN), "--n", "N", "--d", "D", "--loss", "loss_c4_val", "--draws", "100"]
INSPECT = ["inspect", "config.yaml"]
PLAN = ["plan", str(Path(__file__).parents[1] / "configs" / "quickstart.yaml"), "--on", "cpu-1"]


@pytest.mark.parametrize(
    ("words", "option", "name"),
    [
        *((FIT, option, "file") for option in ("--config", "--json", "--report")),
        (["fit", "simulate", "design.yaml"], "--json", "file"),
        *((["sweep"], option, "file") for option in ("--json", "--slurm")),
        *((["sweep"], option, "file.png") for option in ("--rates", "--coord-check")),
        *((PLAN, option, "file") for option in ("--search", "--json")),
        (INSPECT, "--out", "file"),
    ],
)
def test_no_option_overwrites_what_it_did_not_write(tmp_path, capsys, monkeypatch, words, option, name) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    file = tmp_path / name
    file.write_text(MINE)
    words = [*words, str(write_sweep(tmp_path / "sweep"))] if words == ["sweep"] else words
    assert main([*words, option, str(file)]) == 2
    message = f"solo: {file} exists, and solo {words[0]} {option} did not write it; choose another name, or overwrite"
    assert message in capsys.readouterr().err
    assert file.read_text() == MINE
    folder = tmp_path / f"folder{file.suffix}"
    folder.mkdir()
    assert main([*words, option, str(folder)]) == 2
    assert f"solo: {option} {folder}: cannot be written: it is a folder" in capsys.readouterr().err


def test_compiled_programs_are_checked_before_they_are_compiled(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    file = tmp_path / "quickstart_captions_cpu-1.hlo"
    file.write_text(MINE)
    assert main([*PLAN, "--hlo", str(tmp_path), "--stage", "captions"]) == 2
    assert f"{file} exists, and solo plan --hlo did not write it" in capsys.readouterr().err
    assert file.read_text() == MINE


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "configs/quickstart.yaml", "--count", "--json", "stages.0.steps=50"),
        ("plan", "configs/quickstart.yaml", "--on", "v5e-8", "--search", "data.folder=/a/b"),
        ("plan", "configs/quickstart.yaml", "--on", "v5e-8", "--hlo", "name=program"),
        ("sweep", "configs/sweeps/laptop.yaml", "--configs", "name=configs"),
        ("inspect", "configs/quickstart.yaml", "--out", "name=page"),
    ],
)
def test_an_override_is_not_taken_for_the_file_to_write(words, capsys) -> None:
    assert main(list(words)) == 2
    option, value = words[-2:]
    assert f"{option} {value}: is this an override? {option} takes the name" in capsys.readouterr().err
    assert not Path(value).exists()


def test_a_name_with_an_equals_sign_is_written_by_its_path_or_if_it_exists(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is this an override"):
        refuse_override("--json", Path("lr=1.json"))
    refuse_override("--json", tmp_path / "lr=1.json")
    Path("lr=1.json").touch()
    refuse_override("--json", Path("lr=1.json"))
