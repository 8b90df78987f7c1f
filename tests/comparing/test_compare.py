"""Several runs on one page, and the table of a folder's runs."""

import json
import math
import os
import socket
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from solo.cli import main
from solo.comparing.charts import smooth, thinned
from solo.comparing.page import differences, render
from solo.comparing.reading import labels, read_runs
from solo.config import ConfigError, dump_config, parse_config
from solo.locks import hold
from tests.training.test_resume import CONFIG

LOSSES = [4.0, 2.0, 1.0]


def write_run(folder: Path, losses: list[float | None] = LOSSES, ended: str | None = "done", **changes) -> Path:
    """Writes the files of a run without training it."""
    folder.mkdir(parents=True)
    stage = {**CONFIG["stages"][1], "steps": 10, **changes.pop("stage", {})}
    (folder / "config.yaml").write_text(dump_config(parse_config({**CONFIG, "stages": [stage], **changes})))
    with (folder / "metrics.jsonl").open("w") as file:
        for step, loss in enumerate(losses, start=1):
            counts = {"tokens": 100, "total_tokens": 100 * step, "flops": 7, "total_flops": 7 * step}
            timing = {"step_seconds": 1800.0, "tokens_per_second": 50.0, "data_wait_seconds": 0.0, "mfu": None}
            by_source = {"digits": loss, "topics": None}
            line = {"kind": "train", "step": step, "stage": "second", "loss": loss, "loss_by_source": by_source}
            file.write(json.dumps({**line, **counts, "timing": timing}) + "\n")
        held_out = {"kind": "held_out", "step": len(losses), "task": "digits", "loss": 0.5}
        file.write(json.dumps(held_out) + "\n" + json.dumps({**held_out, "weights": "ema", "loss": 0.25}) + "\n")
    now = time.time() - 100
    spent = [{"spent": "step", "step": step, "seconds": 5.0, "at": now + step} for step in range(1, len(losses) + 1)]
    lines = [{"began": now}, {"spent": "start-up", "seconds": 5.0, "at": now}, *spent]
    lines += [{"ended": ended, "at": now + 50}] if ended else []
    (folder / "goodput.jsonl").write_text("".join(json.dumps({"try": 1, **line}) + "\n" for line in lines))
    return folder


def beat(folder: Path, **changes) -> None:
    now = time.time()
    fields = {"at": now, "moved": now, "activity": "stage second", "step": 3, "steps": 10}
    (folder / "heartbeat.json").write_text(
        json.dumps({**fields, "host": socket.gethostname(), "pid": os.getpid(), **changes})
    )


@pytest.fixture
def runs(tmp_path: Path, capsys):
    def listed() -> dict[str, dict]:
        assert main(["runs", str(tmp_path), "--json"]) == 0
        return {run["name"]: run for run in json.loads(capsys.readouterr().out)}

    return listed


def test_the_table_has_the_latest_figures_of_every_run(tmp_path: Path, runs) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", [4.0, None], "failed")
    (tmp_path / "no run").mkdir()
    found = runs()
    assert set(found) == {"a", "b"}
    expected = {"state": "done", "step": 3, "steps": 10, "loss": 1.0, "held_out": {"digits": 0.5}, "goodput": 0.75}
    assert found["a"].items() >= {**expected, "tokens_per_second": 50.0}.items()
    assert (found["b"]["state"], found["b"]["step"], found["b"]["loss"]) == ("failed", 2, None)
    (tmp_path / "b" / "goodput.jsonl").unlink()
    assert runs()["b"]["state"] == "unknown"


def test_a_run_without_an_end_is_running_if_it_lives(tmp_path: Path, runs) -> None:
    for name in ("locked", "elsewhere", "gone", "silent", "stuck"):
        write_run(tmp_path / name, ended=None)
    beat(tmp_path / "elsewhere", host="another", pid=1)
    beat(tmp_path / "gone", pid=2**22 + 1)
    beat(tmp_path / "silent", host="another", at=time.time() - 1000)
    beat(tmp_path / "stuck", moved=time.time() - 1805)
    with hold(tmp_path / "locked" / "run.lock"):
        found = runs()
    states = {name: run["state"] for name, run in found.items()}
    assert states == {
        "locked": "running",
        "elsewhere": "running",
        "gone": "killed",
        "silent": "killed",
        "stuck": "running",
    }
    assert found["stuck"]["doing"] == "stage second, nothing done for 30 min"
    assert {run["state"] for run in list(found.values())[:3]} == {"running"}


def test_damaged_folders_do_not_hide_the_others(tmp_path: Path, runs, capsys) -> None:
    write_run(tmp_path / "whole")
    for name, file, content in (
        ("config", "config.yaml", b"\x00: ["),
        ("metrics", "metrics.jsonl", bytes(5000) + b'\n{"kind": "train"}\n'),
        ("beat", "heartbeat.json", b"[1]"),
        ("goodput", "goodput.jsonl", b"\xff\xff\n"),
    ):
        write_run(tmp_path / name)
        (tmp_path / name / file).write_bytes(content)
    (tmp_path / "folder" / "goodput.jsonl").mkdir(parents=True)
    found = runs()
    assert found["folder"]["state"] == "unreadable"
    assert {name: run["step"] for name, run in found.items()} == {
        "whole": 3, "config": 3, "metrics": 0, "beat": 3, "goodput": 3, "folder": None
    }  # fmt: skip
    assert main(["runs", str(tmp_path)]) == 0
    assert "unreadable" in capsys.readouterr().out


def test_a_folder_that_is_missing_is_a_mistake_of_the_user(tmp_path: Path, capsys) -> None:
    assert main(["runs", str(tmp_path / "none")]) == 2
    assert "is not a folder" in capsys.readouterr().err


class Checker(HTMLParser):
    """Collects what a page loads from elsewhere, and its headings."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attributes) -> None:
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        if tag in ("script", "link", "img", "iframe"):
            self.loaded.append(tag)


def test_the_page_shows_curves_differences_and_figures(tmp_path: Path, capsys) -> None:
    write_run(tmp_path / "x" / "same")
    write_run(tmp_path / "y" / "same", [4.0, 3.0, None, None], seed=7)
    out = tmp_path / "page.html"
    assert main(["compare", str(tmp_path / "x/same"), str(tmp_path / "y/same"), "--out", str(out)]) == 0
    text = out.read_text()
    checker = Checker()
    checker.feed(text)
    assert not checker.loaded
    assert len(set(checker.ids)) == len(checker.ids)
    for expected in ("x/same", "y/same", "not finite from step 3", "Held-out loss, digits", "Training loss on digits"):
        assert expected in text
    runs, _ = read_runs([str(tmp_path / "x/same"), str(tmp_path / "y/same")])
    assert differences(runs) == [("seed", ["3", "7"])]
    assert render(runs) == text
    np.testing.assert_array_equal(runs[0].axes["hours"], [0.5, 1.0, 1.5])
    np.testing.assert_array_equal(runs[0].axes["flops"], [7, 14, 21])
    assert runs[0].held_out["digits"][1].tolist() == [0.5]  # not that of an average of the weights


def test_runs_without_steps_are_left_out_and_reported(tmp_path: Path, capsys) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "new", [])
    out = str(tmp_path / "page.html")
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "new"), "--out", out]) == 0
    assert "new has no line of a step" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "new"), "--out", out]) == 2
    assert main(["compare", str(tmp_path), "--out", out]) == 2


def test_names_have_as_many_parents_as_they_need() -> None:
    assert labels(["runs/a", "runs/b"]) == ["a", "b"]
    assert labels(["x/runs/a", "y/runs/a"]) == ["x/runs/a", "y/runs/a"]
    with pytest.raises(ConfigError, match="runs/a is named twice"):
        labels(["runs/a", "runs/a"])


def test_long_curves_are_thinned_and_keep_their_extremes() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=100_003)
    y[[17, 50_000]] = 99.0, np.nan
    x, low, high = thinned(np.arange(100_003.0), y)
    assert len(x) == 400
    assert x[-1] == 100_002
    assert (high.max(), low.min()) == (99.0, np.nanmin(y))
    mean = smooth(y)
    assert math.isnan(mean[50_000])
    assert abs(mean[-1]) < 0.2


def test_an_evaluation_before_the_first_step_is_at_the_zero_of_every_axis(tmp_path: Path) -> None:
    run = read_runs([str(write_run(tmp_path / "a"))])[0][0]
    assert {axis: run.at(axis, np.array([0.0, 3.0])).tolist() for axis in run.axes} == {
        "steps": [0.0, 3.0],
        "tokens": [0.0, 300.0],
        "flops": [0.0, 21.0],
        "hours": [0.0, 1.5],
    }


def test_fields_of_another_type_cost_only_their_values(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines[1] |= {"timing": "x", "loss_by_source": [1.0], "loss": 2.5}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = read_runs([str(folder)])[0][0]
    assert run.loss.tolist() == [4.0, 2.5, 1.0]
    assert run.axes["hours"].tolist() == [0.5, 0.5, 1.0]
    np.testing.assert_equal(run.by_source["digits"], [4.0, math.nan, 1.0])
