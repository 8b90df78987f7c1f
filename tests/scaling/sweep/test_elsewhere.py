"""Runs that are trained elsewhere: by a job array, and from configs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from solo.cli import main
from solo.config import load_config
from solo.outputs import Output
from solo.scaling.sweep.elsewhere import collect, write_array, write_configs
from solo.scaling.sweep.folder import SweepFolder
from solo.scaling.sweep.points import expand
from solo.scaling.sweep.spec import load_spec
from tests.launch.test_slurm import tools
from tests.scaling.sweep.tiny_sweep import ENVIRONMENT, planned, write_sweep

HORIZONS = {"horizons": {"steps": 8, "at": [0.5, 1.0], "decay": 0.5}}


@pytest.mark.slow
def test_configs_are_written_and_results_collected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained with `solo train` only: first the stable run, then its branches."""
    spec, configs = write_sweep(tmp_path, design=HORIZONS, warmup=0.1), tmp_path / "configs"
    folder = SweepFolder(load_spec(spec).path)
    stable, *branches = expand(load_spec(spec))
    assert main(["sweep", str(spec), "--configs", str(configs)]) == 0
    said = capsys.readouterr().out
    assert f"solo launch TARGET {configs / stable.id}.yaml --on cpu-1" in said
    assert "2 more are running, or wait for the result of their stable run" in said
    assert [path.stem for path in configs.iterdir()] == [stable.id]
    assert load_config(configs / f"{stable.id}.yaml") == stable.config

    def train(id: str) -> None:
        words = [sys.executable, "-m", "solo.cli", "train", str(configs / f"{id}.yaml")]
        subprocess.run(words, env=ENVIRONMENT, check=True, timeout=200)

    train(stable.id)
    assert main(["sweep", str(spec), "--configs", str(configs)]) == 0
    assert folder.status(stable.id) == "stable"
    for point in branches:
        assert folder.has_checkpoint(point.id, point.branch_step)
        assert collect(folder, branches) == []
    train(branches[0].id)
    assert main(["sweep", str(spec)]) == 0
    assert [folder.status(point.id) for point in branches] == ["done", "interrupted"]
    assert folder.result(branches[0].id)["tokens"] == branches[0].estimate.tokens
    # `solo fit` finds the collected results.
    rows = [json.loads(line) for line in folder.results_file.read_text().splitlines()]
    assert [row["status"] for row in rows] == ["stable", "done", "interrupted"]
    # Lost metrics do not keep the table from being printed.
    folder.forget(stable.id)
    metrics = folder.run(stable.id) / "metrics.jsonl"
    plan, first, *rest = metrics.read_text().splitlines(keepends=True)
    assert [json.loads(line)["kind"] for line in (plan, first)] == ["plan", "train"]
    metrics.write_text("".join([plan, *rest]))
    assert main(["sweep", str(spec)]) == 0
    assert f"not collected: {stable.id}, found metrics of {stable.steps - 1} steps" in capsys.readouterr().err


def test_a_job_array(tmp_path: Path) -> None:
    """One task per stable run with its branches; valid shell; a task runs its line of the list."""
    spec = planned(tmp_path, design=HORIZONS, warmup=0.1, ladder={"width": [16, 32]})
    points, script = expand(spec), tmp_path / "jobs.sh"
    out = Output(script, "solo sweep --slurm")
    for _ in range(2):  # again, for the runs that are still missing
        assert write_array(out, "tiny", spec.path, points, at_once=4) == 2
    subprocess.run(["shellcheck", "--severity=warning", str(script)], env=tools(), check=True)
    *lines, mark = [line.split() for line in (tmp_path / "jobs.sh.runs").read_text().splitlines()]
    assert mark[0] == "#"
    assert lines == [[point.id for point in points[:3]], [point.id for point in points[3:]]]
    text = script.read_text()
    assert "#SBATCH --array=1-2%4\n" in text
    # Run with a fake Python that prints its arguments.
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    script.write_text(text.replace(sys.executable, str(fake)))
    done = subprocess.run(
        ["bash", str(script)],
        env={**os.environ, "SLURM_ARRAY_TASK_ID": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["-m", "solo.cli", "sweep", str(spec.path), "--run", *lines[1]]
    with pytest.raises(ValueError, match="no run is missing"):
        write_array(out, "tiny", spec.path, [], at_once=4)
    with pytest.raises(FileExistsError, match=r"jobs\.sh was edited after solo sweep --slurm wrote it"):
        write_array(out, "tiny", spec.path, points, at_once=4)
    script.unlink()
    (tmp_path / "jobs.sh.runs").write_text("mine\n")
    with pytest.raises(FileExistsError, match=r"jobs\.sh\.runs exists, and solo sweep --slurm did not write it"):
        write_array(out, "tiny", spec.path, points, at_once=4)
    assert not script.exists()


def test_a_branch_waits_for_its_stable_run(tmp_path: Path) -> None:
    spec = planned(tmp_path, design=HORIZONS, warmup=0.1)
    points, folder = expand(spec), SweepFolder(spec.path)
    folder.write_plan(spec, points)
    for _ in range(2):
        (written,) = write_configs(folder, points, tmp_path / "c")
    assert written.stem == points[0].id
    written.write_text("mine: 1\n")
    with pytest.raises(FileExistsError, match=f"{points[0].id}.yaml exists, and solo sweep --configs did not write it"):
        write_configs(folder, points, tmp_path / "c")
    write_configs(folder, points, tmp_path / "c", force=True)
    assert load_config(written) == points[0].config
    assert collect(folder, points) == []
