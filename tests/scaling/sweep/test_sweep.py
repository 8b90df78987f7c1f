"""A whole sweep of tiny models: killed, resumed by two processes at once, and collected."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from solo.config import dump_config, load_config
from solo.locks import is_held
from solo.scaling.sweep.folder import SweepFolder
from solo.scaling.sweep.points import Point, expand
from solo.scaling.sweep.spec import load_spec
from solo.training.metrics import read_metrics
from solo.training.run_folder import RunFolder
from tests.launch.tiny_run import outputs
from tests.scaling.sweep.tiny_sweep import ENVIRONMENT, write_sweep

pytestmark = pytest.mark.slow
HORIZONS = {"horizons": {"steps": 200, "at": [0.1, 1.0], "decay": 0.5}}


def start(spec: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "solo.cli", "sweep", str(spec), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT)


def wait(until: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def children(process: subprocess.Popen) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
    return [int(number) for number in found.stdout.split()]


class Sweep:
    """The sweep's folder."""

    def __init__(self, spec: Path):
        self.spec = spec
        self.folder = SweepFolder(load_spec(spec).path)
        self.points = expand(load_spec(spec))

    def metrics(self, point: Point) -> list[dict[str, Any]]:
        file = RunFolder(self.folder.run(point.id)).metrics_file
        lines = read_metrics(file) if file.exists() else []
        return [line for line in lines if line["kind"] == "train"]

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.folder.results_file.read_text().splitlines()]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Returns a sweep whose first process was killed with its children, and that two others finished concurrently."""
    spec = write_sweep(tmp_path_factory.mktemp("sweep"), design=HORIZONS, warmup=0.1)
    sweep = Sweep(spec)
    stable = sweep.points[0]
    first = start(spec, "--yes")
    wait(lambda: len(sweep.metrics(stable)) > 5)
    under_way = children(first)
    assert under_way
    for number in [first.pid, *under_way]:
        os.kill(number, signal.SIGKILL)
    first.wait()
    # The children may take a moment longer to end.
    wait(lambda: sweep.folder.status(stable.id) == "interrupted", 10)
    both = [start(spec, "--yes"), start(spec, "--yes")]
    said = [out for out, _ in outputs(both)]
    assert [process.returncode for process in both] == [0, 0], said
    return sweep


def test_no_run_is_lost_or_trained_twice(swept: Sweep) -> None:
    stable, short, long = swept.points
    assert [row["id"] for row in swept.rows()] == [stable.id, short.id, long.id]
    assert [row["status"] for row in swept.rows()] == ["stable", "done", "done"]
    # Every step of every run was trained once, by one process.
    assert [line["step"] for line in swept.metrics(stable)] == list(range(1, 101))
    assert [line["step"] for line in swept.metrics(short)] == list(range(11, 21))
    assert [line["step"] for line in swept.metrics(long)] == list(range(101, 201))
    said = [swept.folder.log(point.id).read_text() for point in swept.points]
    assert [text.count(": done") + text.count(": stable") for text in said] == [1, 1, 1]
    assert not any(is_held(swept.folder.lock_file(point.id)) for point in swept.points)


def test_a_finished_sweep_starts_nothing(swept: Sweep) -> None:
    before = {path: path.stat().st_mtime_ns for path in swept.folder.path.glob("runs/*/metrics.jsonl")}
    process = start(swept.spec, "--yes")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert "started" not in output
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_branch_equals_the_run_of_its_length(swept: Sweep, tmp_path: Path) -> None:
    """Step for step it has the losses of the same config trained in one go."""
    short = swept.points[1]
    config = load_config(swept.folder.run(short.id) / "config.yaml")
    path = tmp_path / "whole.yaml"
    path.write_text(dump_config(config.model_copy(update={"name": "whole", "folder": str(tmp_path)})))
    subprocess.run([sys.executable, "-m", "solo.cli", "train", str(path)], env=ENVIRONMENT, check=True)
    whole = read_metrics(RunFolder(tmp_path / "whole").metrics_file)
    by_step = {line["step"]: line["loss"] for line in whole if line["kind"] == "train"}
    branch = {line["step"]: line["loss"] for line in swept.metrics(short)}
    stable_run = {
        line["step"]: line["loss"] for line in swept.metrics(swept.points[0]) if line["step"] <= short.branch_step
    }
    assert {**stable_run, **branch} == pytest.approx(by_step, rel=1e-5)
    held_out = next(line["loss"] for line in whole if line["kind"] == "held_out")
    assert swept.rows()[1]["losses"]["text"] == pytest.approx(held_out, rel=1e-5)


def test_results_match_the_estimates(swept: Sweep) -> None:
    for point, row in zip(swept.points, swept.rows(), strict=True):
        assert row["tokens"] == pytest.approx(point.estimate.tokens, rel=1e-3)
        assert row["flops"] == pytest.approx(point.estimate.flops, rel=0.02)
        assert row["text_tokens"] + row["visual_tokens"] == row["tokens"]


def test_a_changed_file_does_not_mix_with_old_runs(swept: Sweep) -> None:
    """In the same folder, another learning rate gives other runs; the old ones are named and ignored."""
    base = yaml.safe_load((swept.spec.parent / "base.yaml").read_text())
    base["stages"][0]["optimizer"]["learning_rate"] = 2e-2
    (swept.spec.parent / "other_base.yaml").write_text(yaml.safe_dump(base))
    other = swept.spec.with_name("other.yaml")
    other.write_text(swept.spec.read_text().replace("base.yaml", "other_base.yaml"))
    points, folder = expand(load_spec(other)), swept.folder
    assert not {point.id for point in points} & {point.id for point in swept.points}
    assert [folder.status(point.id) for point in points] == ["pending"] * 3
    assert set(folder.strangers(points)) == {point.id for point in swept.points}
    # Processes of the old plan still find their runs.
    assert folder.read_plan() == swept.points
    before = folder.plan_file.read_bytes()
    folder.write_plan(load_spec(other), points)
    folder.write_results()
    assert [row["status"] for row in swept.rows()] == ["pending"] * 3
    folder.plan_file.write_bytes(before)
    folder.write_results()
    assert [row["status"] for row in swept.rows()] == ["stable", "done", "done"]
