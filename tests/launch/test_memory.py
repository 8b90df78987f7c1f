"""A launch estimates memory before machines are paid for."""

from pathlib import Path

import pytest

from solo.cli import main
from tests.launch.tiny_run import write_config

LARGE = ["model.width=8192", "model.heads=64", "model.kv_heads=8", "model.ffn_width=65536", "model.layers=80"]


@pytest.mark.parametrize(("machine", "status"), [("v5e-8", 2), ("cpu-8", 0)])
def test_a_launch_that_cannot_fit_is_refused(machine: str, status: int, tmp_path: Path, monkeypatch, capsys) -> None:
    path = write_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["launch", "local", str(path), "--on", machine, *LARGE]) == status
    assert ("does not fit v5e-8" in capsys.readouterr().err) == (status == 2)


def test_a_launch_that_fits_is_planned(tmp_path: Path, monkeypatch, capsys) -> None:
    path = write_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["launch", "local", str(path), "--on", "v5e-8"]) == 0
    assert "may not fit" not in capsys.readouterr().err
