"""Requests that are refused before machines are paid for."""

from pathlib import Path

import pytest

from solo.cli import main
from solo.config import ConfigError, MeshConfig
from solo.launch.request import run_name
from solo.sharding.axes import mesh_sizes
from tests.launch.tiny_run import write_config

SLOTS = [f"stages.{number}.{kind}_slots=16" for number in (0, 1) for kind in ("patch", "text")]


@pytest.mark.parametrize(
    ("name", "label"), [("solo_7b.v2", "solo-7b-v2"), ("Quick", "quick"), ("7b", "run-7b"), ("_a_", "a")]
)
def test_names_are_dns_labels(name: str, label: str) -> None:
    assert run_name(name) == label


def test_a_long_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="--as"):
        run_name("a" * 29)


def test_the_open_axis_takes_the_remaining_devices() -> None:
    assert mesh_sizes(MeshConfig(replica=2, tensor=4), 64)["fsdp"] == 8
    with pytest.raises(ConfigError, match="does not make 6 devices"):
        mesh_sizes(MeshConfig(tensor=4), 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["local", "--on", "cpu-3"], "set batch_rows to a multiple of 3"),
        (["local", "--on", "cpu-8", "mesh.tensor=3"], "does not make 8 devices"),
        (["local", "--on", "h100-16", "mesh.context=2"], "has 2 hosts, but this machine is one"),
        (["local", "--on", "v5-128"], "did you mean 'v5p'"),
        (["local", "--on", "v5p-7"], "is offered; there are v5p-8"),
        (["local", "--on", "cpu-8", "stages.0.setps=3"], "did you mean 'steps'"),
        (["gke", "--on", "v6e-8"], "set --image"),
        (["gke", "--on", "v6e-8", "--image", "i"], "set --bucket"),
        (["gke", "--on", "v6e-8", "--image", "i", "--bucket", "buc"], "does not exist on those machines"),
        (["tpu-vm", "--on", "tpu7x-8"], "as TPU VMs; use gke"),
        (["tpu-vm", "--on", "v6e-8", "--bucket", "buc"], "set --zone"),
        (["slurm", "--on", "cpu-8", "--hosts", "3"], "not 3 equal hosts"),
        (["slurm", "--on", "cpu-8", "--hosts", "0"], "0 hosts of cpu-8: expected at least 1"),
        (["local", "--on", "cpu-8", "--slices", "0"], "0 slices of cpu-8: expected at least 1"),
        (["local", "--on", "cpu-8", "--max-restarts", "-1"], "--max-restarts -1: expected at least 0"),
        (["local", "--on", "cpu-8", "--max-idle-restarts", "0"], "--max-idle-restarts 0: expected at least 1"),
        (["local", "--on", "cpu-8", "--as", ""], "--as '': expected a name"),
        (["local", "--on", "cpu-8", "stages.0.train=[]"], "train: [] trains nothing"),
        (["slurm", "--on", "cpu-8", "--array", ""], "--array: expected a file"),
        (["slurm", "--on", "cpu-8", "--array", "nowhere"], "--array: cannot read nowhere"),
        (["slurm", "--on", "cpu-8", "--array", "."], "--array: cannot read .: Is a directory"),
        (["slurm", "--on", "cpu-8", "--array", "/dev/null"], "--array: /dev/null has no line"),
        (["slurm", "--on", "cpu-8", "--time", "1 h"], "--time '1 h'"),
        (["gke", "--on", "v6e-8", "--image", "i", "--bucket", "s3://b"], "expected gs://BUCKET"),
        (["gke", "--on", "v6e-8", "--spot", "--reservation", "r"], "exclude each other"),
        (["tpu-vm", "--on", "v6e-8", "--spot", "--reserved"], "exclude each other"),
        (
            [
                "local",
                "--on",
                "cpu-3",
                *(f"stages.{n}.{k}" for n in (0, 1) for k in ("patch_slots=16", "text_slots=16")),
                "mesh.context=3",
                "mesh.fsdp=1",
            ],
            "cannot be sharded evenly over mesh.context=3",
        ),
    ],
)
def test_a_usage_error_is_one_line_and_status_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    target, *rest = arguments
    path = write_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["launch", target, str(path), *rest]) == 2
    error = capsys.readouterr().err
    assert error.startswith("solo: ")
    assert message in error
    assert not (tmp_path / "launches").exists()
