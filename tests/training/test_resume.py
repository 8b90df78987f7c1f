"""A run that is killed, stopped or runs out of disk resumes exactly where it was."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from solo.training.ledger import goodput, read_ledger
from solo.training.metrics import read_metrics
from tests.compiler import QUICK

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
STEPS = 40


class Runs:
    """Starts `solo train` in a process of its own; data and compiled code are shared between runs."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))

    def start(self, name: str, *overrides: str, **popen) -> subprocess.Popen:
        environment = {
            **os.environ,
            "XLA_FLAGS": QUICK,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        settings = (f"name={name}", f"folder={self.folder / 'runs'}", f"data.folder={self.folder / 'data'}")
        command = [sys.executable, "-m", "solo.cli", "train", str(self.folder / "config.yaml"), *settings, *overrides]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen
        )

    def finish(self, name: str, *overrides: str) -> None:
        process = self.start(name, *overrides)
        _, error = process.communicate(timeout=240)
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


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("resume"))
    runs.finish("whole")
    return runs


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
def test_ten_kills_change_nothing(runs: Runs) -> None:
    """kill -9 at ten random moments, every other one while a checkpoint is being written."""
    rng = random.Random(0)
    folder = runs.path("killed")

    def saving() -> bool:
        return any(folder.glob("checkpoints/*orbax*"))

    def moved_on(before: int) -> bool:
        return len(runs.metrics("killed")) not in (0, before)

    while_saving = 0
    for kill in range(10):
        before = len(runs.metrics("killed"))
        process = runs.start("killed")
        wait_until(lambda before=before: moved_on(before), process)
        if kill % 2:
            wait_until(saving, process)
        else:
            time.sleep(rng.uniform(0, 0.3))
        while_saving += saving()
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert while_saving >= 3
    runs.finish("killed")
    assert runs.lines("killed") == runs.lines("whole")
    assert [line["step"] for line in runs.steps("whole")] == list(range(1, STEPS + 1))
    assert [line["stage"] for line in runs.metrics("whole") if line["kind"] == "plan"] == ["first", "second"]
    spent = goodput(folder / "goodput.jsonl")
    assert (spent.attempts, spent.steps, spent.state) == (11, STEPS, "done")
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
def test_sigterm_saves_and_exits_42_and_the_same_command_resumes(runs: Runs) -> None:
    process = runs.start("terminated", "checkpoint.every_steps=1000")
    wait_until(lambda: len(runs.steps("terminated")) > 4, process)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 42, error
    done = len(runs.steps("terminated"))
    saved = [int(path.parent.name) for path in (runs.path("terminated") / "checkpoints").glob("*/commit_success.txt")]
    assert max(saved) == done < STEPS
    runs.finish("terminated", "checkpoint.every_steps=1000")
    assert runs.lines("terminated") == runs.lines("whole")


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
    process = runs.start("whole")  # only for its command line
    process.kill()
    process.communicate()
    arguments = [a.replace("name=whole", "name=full") for a in process.args[3:]]
    environment = {**os.environ, "XLA_FLAGS": QUICK}
    done = subprocess.run(
        [sys.executable, "-c", limited, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "could not save" in done.stderr
    assert "the last good checkpoint is step 3" in done.stderr
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
