"""The printed script, run by bash, does the same as the executed plan."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from solo.cli import main
from solo.launch.plan import Command, File, Plan, load_record
from tests.launch.tiny_run import REPOSITORY, write_config

_PROGRAMS = ("gcloud", "kubectl", "sbatch", "squeue", "python3")

# Writes down how it was called, and does nothing else.
_FAKE = """#!/bin/sh
for word in "$(basename "$0")" "$@"; do printf '%s\\n' "$word" >> {log}; done
case "$*" in *" rm "*) exit 1;; esac
"""

_TARGETS = {
    "local": ["--on", "cpu-8", "--hosts", "2"],
    "slurm": ["--on", "h100-8", "--time", "01:00:00"],
    "gke": ["--on", "v6e-8", "--image", "pkg.dev/p/solo:1", "--bucket", "gs://bucket", "--context", "a context"],
    "tpu-vm": ["--on", "v6e-8", "--image", "pkg.dev/p/solo:1", "--bucket", "gs://bucket", "--zone", "us-east5-a"],
}


def config(folder: Path) -> str:
    """A config whose folders are relative, as those of clouds must be."""
    path = write_config(folder)
    path.write_text(path.read_text().replace(str(folder) + "/", ""))
    return str(path)


def everything(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("target", _TARGETS)
def test_the_printed_script_does_the_same_as_yes(target: str, tmp_path: Path, monkeypatch, capsys) -> None:
    arguments = ["launch", target, config(tmp_path), "name=Odd_Name.1", *_TARGETS[target]]
    bin = tmp_path / "bin"
    bin.mkdir()
    for program in _PROGRAMS:
        (bin / program).write_text(_FAKE.format(log="calls"))
        (bin / program).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bin / "python3"))
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
    found = {}
    for way in ("printed", "done"):
        folder = tmp_path / way
        folder.mkdir()
        monkeypatch.chdir(folder)
        if way == "done":
            assert main([*arguments, "--yes"]) == 0
        else:
            assert main(arguments) == 0
            assert everything(folder) == {}, "a dry run wrote something"
            subprocess.run(["bash", "-s"], input=capsys.readouterr().out, text=True, check=True)
        found[way] = everything(folder)
    assert found["printed"] == found["done"]
    assert found["done"]["calls"]
    assert "launches/odd-name-1/plan.json" in found["done"]


def test_a_failing_command_ends_the_plan_unless_it_may_fail(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran: list[str] = []

    def run(command: Command) -> int:
        ran.append(str(command))
        return int(command.argv[0] != "true")

    commands = (Command(("no",), may_fail=True), Command(("true",)), Command(("no", "more")), Command(("never",)))
    assert Plan("run", "local", (), commands, (), (), ()).execute(run) == 1
    assert ran == ["no", "true", "no more"]


def test_the_record_restores_the_commands(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd = Command(("echo", "a 'quoted' || true", "$HOME"), may_fail=True)
    Plan("run", "local", (), (), (odd,), (Command(("ls",)),), ()).execute()
    record = load_record("run")
    assert record["status"] == (odd,)
    assert record["logs"] == (Command(("ls",)),)
    assert record["watch"] is None


def test_a_file_that_would_end_the_script_is_refused() -> None:
    with pytest.raises(ValueError, match="END_OF_FILE"):
        File("x", "END_OF_FILE\n")


def test_a_missing_program_is_named(tmp_path: Path, monkeypatch, capsys) -> None:
    path = config(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    assert main(["launch", "slurm", path, "--on", "h100-8", "--yes"]) == 2
    assert "squeue is not installed" in capsys.readouterr().err


def test_the_dockerfile_copies_existing_files() -> None:
    lines = (REPOSITORY / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]]
    assert {"solo", "configs", "pyproject.toml"} <= set(copied)
    assert all((REPOSITORY / name).exists() for name in copied)


@pytest.mark.parametrize("module", ["restarts", "supervisor"])
def test_the_programs_of_hosts_need_only_the_standard_library(module: str) -> None:
    command = [sys.executable, "-S", "-m", f"solo.launch.{module}", "--help"]
    done = subprocess.run(command, env={"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python -m solo.launch.{module}")


@pytest.mark.parametrize(("hosts", "which"), [("1", "step has been completed"), ("2", "process has begun")])
def test_a_run_that_did_no_step_is_told_so(hosts: str, which: str, tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", "true")  # the run ends at once
    assert main(["launch", "local", config(tmp_path), "name=run", "--on", "cpu-4", "--hosts", hosts, "--yes"]) == 0
    capfd.readouterr()
    assert main(["launch", "status", "run"]) == 0
    assert capfd.readouterr().out == "launch: no step has been completed yet\n"
    assert main(["launch", "logs", "run"]) == 0
    assert capfd.readouterr().out == f"launch: no {which} yet\n"
    Path("runs/run").mkdir(parents=True)
    Path("runs/run/metrics.jsonl").write_text('{"kind": "branched"}\n')
    assert main(["launch", "status", "run"]) == 0
    assert capfd.readouterr().out == "launch: no step has been completed yet\n"
    lines = ['{"kind": "train", "step": 1}\n', '{"kind": "train", "step": 2}\n', '{"kind": "evaluation"}\n']
    Path("runs/run/metrics.jsonl").write_text("".join(lines))
    assert main(["launch", "status", "run"]) == 0
    assert capfd.readouterr().out == lines[1]
