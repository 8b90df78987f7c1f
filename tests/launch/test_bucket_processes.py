"""Two real processes, with no disk in common, train a run in a bucket."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from solo.cli import main
from solo.launch.supervisor import _free_port
from solo.storage import Bucket
from tests.data.buckets import _s3, s3  # noqa: F401
from tests.launch.tiny_run import STEPS, environment, outputs, wait_until, write_config

pytestmark = pytest.mark.slow


def start(folder: Path, url: str, machines: str) -> list[subprocess.Popen]:
    """Two processes of four devices; each has its own machine's copies."""
    port = _free_port()
    settings = (f"folder={url}", f"checkpoint.every_steps={STEPS // 2}")
    command = [sys.executable, "-m", "solo.cli", "train", str(folder / "config.yaml"), *settings]
    return [
        subprocess.Popen(
            command,
            env={
                **environment(),
                "SOLO_CACHE": str(folder / f"{machines}-{number}"),
                "JAX_NUM_CPU_DEVICES": "4",
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(number),
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]


def test_two_processes_are_killed_and_resume_on_other_machines(tmp_path, s3):  # noqa: F811
    assert main(["prepare", str(write_config(tmp_path)), "--workers", "1"]) == 0
    there = Bucket(f"{s3}/runs/run")
    first = start(tmp_path, f"{s3}/runs", "first")
    checkpoints = Bucket(f"{there.url}/checkpoints")
    wait_until(lambda: checkpoints.folders_with("commit_success.txt") or first[0].poll() is not None)
    for process in first:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    before = len(checkpoints.folders())
    second = start(tmp_path, f"{s3}/runs", "second")
    said = "".join(error for _, error in outputs(second))
    assert [process.returncode for process in second] == [0, 0], said
    assert before > 0
    lines = [json.loads(line) for line in there.read("metrics.jsonl").splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, STEPS + 1))
    files = there.sizes(f"checkpoints/{STEPS}")
    for number in range(2):  # each process has written its own shards
        assert any(f"/parameters/ocdbt.process_{number}/" in name for name in files)
    assert sum(json.loads(line).get("began") is not None for line in there.read("goodput.jsonl").splitlines()) == 2
