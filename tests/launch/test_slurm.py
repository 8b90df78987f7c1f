"""SLURM: the script as shellcheck and sbatch read it, and a real cluster of two nodes where one can be made."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from solo.cli import main
from solo.config import ConfigError, load_config
from solo.launch import slurm
from solo.launch.environment import Secret
from solo.launch.plan import Plan
from solo.launch.request import Request
from solo.machines import parse_machine
from tests.launch.slurm_cluster import cluster, missing
from tests.launch.tiny_run import STEPS, environment, saved, steps, wait_until, write_config

SECOND_STEPS = 60  # of the second stage: enough for a run to be stopped in the middle


def plan(
    folder: Path,
    on: str,
    hosts: int | None = None,
    names: tuple[str, ...] = ("run",),
    variables: dict[str, str] | None = None,
    secrets: tuple[Secret, ...] = (),
    **options,
) -> Plan:
    path = write_config(folder)
    configs = tuple(load_config(path, [f"name={name}"]) for name in names)
    return slurm.plan(Request("run", configs, parse_machine(on, 1, hosts), 100, 5, options, variables or {}, secrets))


def script(plan: Plan) -> str:
    (text,) = [file.text for file in plan.files if file.path.endswith("job.sbatch")]
    return text


def directives(plan: Plan) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in script(plan).splitlines() if line.startswith("#SBATCH")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_every_gpu_gets_a_task(tmp_path: Path) -> None:
    made = directives(plan(tmp_path, "h100-16", partition="big", time="04:00:00", constraint="a|b", reservation="r"))
    assert (made["nodes"], made["ntasks-per-node"], made["gpus-per-node"]) == ("2", "8", "8")
    assert (made["partition"], made["time"], made["signal"]) == ("big", "04:00:00", "TERM@120")
    assert (made["constraint"], made["reservation"]) == ("a|b", "r")
    assert made["requeue"] == ""
    assert made["open-mode"] == "append"


def test_an_array_has_a_config_for_each_run(tmp_path: Path) -> None:
    made = plan(tmp_path, "cpu-8", 2, names=("a", "b", "c"))
    assert directives(made)["array"] == "0-2"
    assert directives(made)["output"].endswith("slurm-%A_%a.log")
    names = [load_text(file.text, tmp_path).name for file in made.files if "config-" in file.path]
    assert names == ["a", "b", "c"]
    assert f"run_folders=({tmp_path}/runs/a {tmp_path}/runs/b {tmp_path}/runs/c)" in script(made)
    with pytest.raises(ConfigError, match="need different names"):
        plan(tmp_path, "cpu-8", 2, names=("a", "a"))


def load_text(text: str, folder: Path):
    path = folder / "again.yaml"
    path.write_text(text)
    return load_config(path)


def test_tpus_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use gke or tpu-vm"):
        plan(tmp_path, "v6e-8")


@pytest.mark.parametrize("names", [("run",), ("a", "b")])
def test_shellcheck_has_nothing_to_say(tmp_path: Path, names: tuple[str, ...]) -> None:
    path = tmp_path / "job.sbatch"
    token = tmp_path / "a token"
    token.touch(0o600)
    given = {"variables": {"A": "it's"}, "secrets": (Secret("B", str(token)),)}
    path.write_text(script(plan(tmp_path, "h100-16", names=names, sbatch=["--exclusive"], **given)))
    done = subprocess.run(["shellcheck", str(path)], env=tools(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def tools() -> dict[str, str]:
    """The environment, with the programs that pip installed beside Python in reach."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("statuses", "srun", "final", "again"),
    [
        (["0", "0"], 0, 0, False),
        (["42", "143"], 143, 42, True),
        (["137", "134"], 137, 137, True),
        (["2", "134"], 137, 2, False),  # a fault of one task's own, although the others were killed for it
        (["0", "1"], 1, 1, False),
        ([], 1, 1, False),  # srun itself failed
    ],
)
def test_the_first_task_to_end_decides(
    tmp_path: Path, statuses: list[str], srun: int, final: int, again: bool, monkeypatch
) -> None:
    """The script itself, with an srun that only tells how its tasks ended."""
    monkeypatch.chdir(tmp_path)
    bin = tmp_path / "bin"
    bin.mkdir()
    echoes = "".join(f"echo {status} >> $SOLO_STATUSES; " for status in statuses)
    for name, text in (
        ("srun", f"{echoes}exit {srun}"),
        ("scontrol", 'echo "$@" >> requeued'),
        ("sleep", ":"),
    ):
        (bin / name).write_text(f"#!/bin/bash\n{text}\n")
        (bin / name).chmod(0o755)
    replace(plan(tmp_path, "cpu-8", 2), taken=None).execute(run=lambda command: 0)
    variables = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(tmp_path), "PATH": f"{bin}:{os.environ['PATH']}"}
    job = subprocess.run(
        ["bash", "launches/run/job.sbatch"], env={**environment(), **variables}, capture_output=True, text=True
    )
    assert job.returncode == final, job.stderr
    assert (tmp_path / "requeued").exists() == again
    assert json.loads((tmp_path / "launches/run/restarts-7.json").read_text())["starts"] == 1


def test_a_task_of_an_array_requeues_itself_alone(tmp_path: Path, monkeypatch) -> None:
    """The number of its last task is that of the array, by which `scontrol` would requeue all tasks."""
    monkeypatch.chdir(tmp_path)
    for name, text in (("srun", "exit 42"), ("scontrol", 'echo "$@" >> requeued'), ("sleep", ":")):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    replace(plan(tmp_path, "cpu-8", 2, names=("a", "b")), taken=None).execute(run=lambda command: 0)
    variables = {
        **environment(),
        "SLURM_JOB_ID": "7",
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "1",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
    }
    job = subprocess.run(["bash", "launches/run/job.sbatch"], env=variables, capture_output=True, text=True)
    assert job.returncode == 42, job.stderr
    assert (tmp_path / "requeued").read_text() == "requeue 7_1\n"


def test_a_value_that_looks_like_a_part_of_the_script_is_kept(tmp_path: Path) -> None:
    text = script(plan(tmp_path, "cpu-8", 2, variables={"A": "@CONFIGS@", "B": "a@PYTHON@b"}))
    assert "export A=@CONFIGS@\nexport B=a@PYTHON@b\n" in text


@pytest.mark.slow
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_two_real_nodes_save_at_sigterm_and_resume_when_requeued(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    config, variables = write_config(tmp_path), environment()
    subprocess.run([sys.executable, "-m", "solo.cli", "prepare", str(config)], env=variables, check=True)
    launch = [sys.executable, "-m", "solo.cli", "launch", "slurm", str(config), "--on", "cpu-4", "--hosts", "2"]

    def submit(nodes, name: str, *overrides: str) -> None:
        done = nodes.run(*launch, *overrides, "--as", name, "--yes", env=variables)
        print(f"$ {' '.join(launch[1:])} {' '.join(overrides)} --as {name} --yes\n{done}")

    def over(nodes) -> bool:
        return not nodes.run("squeue", "-h").strip()

    def log(name: str) -> str:
        (path,) = (tmp_path / "launches" / name).glob("slurm-*.log")
        return path.read_text()

    longer = (f"stages.1.steps={SECOND_STEPS}", "checkpoint.every_steps=1000")
    with cluster(tmp_path) as nodes:
        print(nodes.run("sinfo", "-Nl"))
        # SIGTERM to the step, as before a time limit; only one checkpoint is made before the end, by that.
        submit(nodes, "stopped", *longer)
        wait_until(lambda: len(steps(tmp_path, "run")) > 2)
        print(nodes.run("squeue", "-o", "%i %j %T %D %N"))
        (job,) = nodes.run("squeue", "-h", "-o", "%i").split()
        nodes.run("scancel", "--signal=TERM", job)
        wait_until(lambda: "ended with 42" in log("stopped"), 120)
        at = saved(tmp_path, "run")
        print(f"saved by SIGTERM: {at}; queue: {nodes.run('squeue', '-h', '-o', '%i %T %r %Z')}")
        assert at
        wait_until(lambda: over(nodes), 600)
        print(log("stopped"))
        assert f"start 2, newest checkpoint {at[-1]}" in log("stopped")
        assert steps(tmp_path, "run") == list(range(1, STEPS // 2 + SECOND_STEPS + 1))

        # A fault of the run's own is not requeued.
        submit(nodes, "faulty", *longer, "seed=9")
        wait_until(lambda: over(nodes), 600)
        print(log("faulty"))
        assert "seed: 3 -> 9" in log("faulty")
        assert "start 0, ended with 2" in log("faulty")
        assert "start 2" not in log("faulty")


def test_the_verbs_of_a_launch(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    planned = plan(tmp_path, "cpu-8", 2)
    assert str(planned.status[0]).startswith("squeue --me --name solo-run ")
    replace(planned, taken=None).execute(run=lambda command: 0)
    assert main(["launch", "stop", "run"]) == 0
    shown = capsys.readouterr().out
    assert "scancel --me --signal=TERM --name solo-run || true" in shown
    assert "scancel --me --name solo-run\n" in shown
    assert main(["launch", "watch", "run"]) == 2
    assert "needs no watch" in capsys.readouterr().err
    assert main(["launch", "status", "walk"]) == 2
    assert "there are: run" in capsys.readouterr().err
