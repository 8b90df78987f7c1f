"""A run that is killed, stopped or runs out of disk resumes exactly where it was."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from solo.training.ledger import goodput, read_ledger
from solo.training.metrics import read_metrics

CONFIG = {
    "name": "run",
    "seed": 3,
    "data": {
        "sources": {
            "digits": {"reader": "digits", "options": {"split": "train", "copies": 1}, "limit": 200},
            "topics": {"reader": "topics", "options": {"split": "train"}, "limit": 60},
        },
        "tokenizer": {"vocab_size": 400},
        "packing_window": 16,
    },
    "image": {"patch_size": 8, "max_side": 64},
    "model": {"width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "ffn_width": 32, "experts": {"ffn": "modality"}},
    "stages": [
        {
            "name": name,
            "mixture": {"digits": 1.0, "topics": 1.0},
            "steps": 20,
            "batch_rows": 2,
            "row_slots": 256,
            "train": train,
            "optimizer": {"learning_rate": 1e-3},
            "optimizer_state": "carry",
        }
        for name, train in (("first", ["patch_embed", "layers/ffn/patches/*"]), ("second", ["*"]))
    ],
    "checkpoint": {"every_steps": 3},
}
STAGE_STEPS, STEPS = 12, 24


class Runs:
    """Starts `solo train` in a process of its own; data and compiled code are shared between runs.

    Args:
        folder: holds the config, the data and the runs.
        devices: of each process, at most 8. A batch has a row for each, and two at least.
    """

    def __init__(self, folder: Path, devices: int = 1):
        self.folder = folder
        stages = [{**stage, "steps": STAGE_STEPS, "batch_rows": max(devices, 2)} for stage in CONFIG["stages"]]
        model = {**CONFIG["model"], "attention_implementation": "dense"}  # compiles faster
        (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "stages": stages, "model": model}))
        self._devices = devices

    @property
    def environment(self) -> dict[str, str]:
        flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={self._devices}")
        return {**os.environ, "XLA_FLAGS": flags}

    def arguments(self, name: str, *overrides: str) -> list[str]:
        """Those of `solo`."""
        settings = (f"name={name}", f"folder={self.folder / 'runs'}", f"data.folder={self.folder / 'data'}")
        return ["train", str(self.folder / "config.yaml"), *settings, *overrides]

    def start(self, name: str, *overrides: str, program: Sequence[str] = ("-m", "solo.cli"), **popen):
        """Starts a process that trains; `program` is what Python runs."""
        command = [sys.executable, *program, *self.arguments(name, *overrides)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=self.environment, text=True, **pipes, **popen)

    def finish(self, name: str, *overrides: str) -> None:
        process = self.start(name, *overrides)
        _, error = process.communicate(timeout=400)
        assert process.returncode == 0, error

    def path(self, name: str) -> Path:
        return self.folder / "runs" / name

    def lines(self, name: str) -> list[str]:
        """The metrics without timing, which differs between runs."""
        lines = [{k: v for k, v in line.items() if k != "timing"} for line in self.metrics(name)]
        return [json.dumps(line) for line in lines]

    def metrics(self, name: str) -> list[dict]:
        return read_metrics(self.path(name) / "metrics.jsonl")

    def steps(self, name: str) -> list[dict]:
        return [line for line in self.metrics(name) if line["kind"] == "train"]


def wait_until(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if condition():
            return
        time.sleep(0.002)
    assert process.poll() is not None, "nothing happened"


def test_the_wait_for_the_first_batch_is_no_part_of_its_step(runs: Runs) -> None:
    """Or a log shows waits of several times the step."""
    firsts = [line["timing"]["data_wait_seconds"] for line in runs.steps("whole") if line["stage_step"] == 1]
    assert firsts == [0.0, 0.0]


@pytest.mark.slow
def test_kills_and_a_stop_change_nothing(runs: Runs) -> None:
    """kill -9 at random moments, every other one while a checkpoint is being written; then SIGTERM, which saves."""
    rng = random.Random(0)
    folder = runs.path("killed")

    def saving() -> bool:
        return any(folder.glob("checkpoints/*orbax*")) and any(folder.glob("checkpoints/*/commit_success.txt"))

    def stepped(attempt: int) -> bool:
        """Whether this attempt has made a step; until it has, the metrics are those of the attempt before."""
        lines, _ = read_ledger(folder / "goodput.jsonl")
        return any(line["try"] == attempt and line.get("spent") == "step" for line in lines)

    while_saving = 0
    for attempt in range(1, 5):
        process = runs.start("killed")
        wait_until(lambda attempt=attempt: stepped(attempt), process)
        if attempt % 2:
            time.sleep(rng.uniform(0, 0.2))
        else:
            wait_until(saving, process)
        while_saving += saving()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert while_saving >= 1
    process = runs.start("killed", "checkpoint.every_steps=1000")
    wait_until(lambda: stepped(5), process)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 42, error
    saved = [int(path.parent.name) for path in (folder / "checkpoints").glob("*/commit_success.txt")]
    assert max(saved) == len(runs.steps("killed"))
    runs.finish("killed")
    assert [line for line in runs.lines("killed") if '"resumed"' not in line] == runs.lines("whole")
    assert [line["step"] for line in runs.steps("whole")] == list(range(1, STEPS + 1))
    assert [line["stage"] for line in runs.metrics("whole") if line["kind"] == "plan"] == ["first", "second"]
    spent = goodput(folder / "goodput.jsonl")
    assert (spent.attempts, spent.steps, spent.state) == (6, STEPS, "done")
    again = sum(line.get("spent") == "step" for line in read_ledger(folder / "goodput.jsonl")[0]) - STEPS
    assert again > 0
    assert spent.seconds["lost to restarts"] > 0
    assert spent.seconds["between attempts"] > 0


@pytest.mark.slow
def test_all_time_of_a_run_is_accounted_for(runs: Runs) -> None:
    lines, broken = read_ledger(runs.path("whole") / "goodput.jsonl")
    spent = goodput(runs.path("whole") / "goodput.jsonl")
    assert (spent.attempts, spent.steps, spent.state, broken) == (1, STEPS, "done", 0)
    assert spent.total == pytest.approx(spent.last - lines[0]["began"], abs=0.1)
    assert spent.seconds["lost to restarts"] == spent.seconds["between attempts"] == 0
    assert all(spent.seconds[part] > 0 for part in ("start-up", "compile", "step", "checkpoint", "evaluation"))
    assert [line["step"] for line in lines if line.get("spent") == "step"] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_full_disk_while_saving_keeps_the_last_good_checkpoint(runs: Runs) -> None:
    """From the sixth step on, files may not be as large as those of a checkpoint."""
    limited = (
        "import resource, sys\n"
        "import solo.training.checkpoint as c\n"
        "save = c.Checkpoints.save\n"
        "def limit(self, state, progress):\n"
        "    self.wait()  # or the step before is still being written\n"
        "    if progress.step > 3: resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))\n"
        "    return save(self, state, progress)\n"
        "c.Checkpoints.save = limit\n"
        "import solo.cli\n"
        "sys.exit(solo.cli.main(sys.argv[1:]))\n"
    )
    process = runs.start("full", program=("-c", limited))
    _, error = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "could not save" in error
    assert "the last good checkpoint is step 3" in error
    runs.finish("full")
    assert runs.lines("full") == runs.lines("whole")


@pytest.mark.slow
def test_another_architecture_is_refused_by_name(runs: Runs) -> None:
    process = runs.start("whole", "model.width=32")
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "model.width: 16 -> 32" in error


def test_tensorboard_shows_the_metrics(runs: Runs) -> None:
    from tensorboardX.proto import event_pb2

    (file,) = (runs.path("whole") / "tensorboard").glob("events*")
    data, seen = file.read_bytes(), {}
    while data:  # TFRecord framing: length (8), its checksum (4), payload, its checksum (4)
        length = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]
        for value in event.summary.value:
            seen[value.tag, event.step] = value.simple_value
    for line in runs.steps("whole"):
        assert seen["train/loss", line["step"]] == pytest.approx(line["loss"], rel=1e-6)
