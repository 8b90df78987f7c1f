"""The smallest run worth launching, and what its folder shows."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from solo.training.metrics import read_metrics
from tests.compiler import QUICK
from tests.training.test_resume import CONFIG

REPOSITORY = Path(__file__).parents[2]
STEPS = 12


def write_config(folder: Path, evaluates: bool = False) -> Path:
    """A config of two stages of six steps, eight rows each, whose data and runs lie in `folder`.

    If it `evaluates`, it measures a held-out loss and a task in the loop, on a source that is not trained on.
    """
    config = {
        **CONFIG,
        "folder": str(folder / "runs"),
        "data": {**CONFIG["data"], "folder": str(folder / "data")},
        "model": {**CONFIG["model"], "attention_implementation": "dense"},  # compiles faster
        "stages": [{**stage, "steps": STEPS // 2, "batch_rows": 8} for stage in CONFIG["stages"]],
    }
    if evaluates:
        trained = CONFIG["data"]["sources"]
        held_out = {"reader": "digits", "options": {"split": "held_out"}, "limit": 10}
        config["data"] |= {
            "sources": {**trained, "digits_held_out": held_out},
            "tokenizer": {**CONFIG["data"]["tokenizer"], "train_on": list(trained)},
        }
        config["evaluation"] = {
            "every_steps": 4,
            "losses": {"digits": {"source": "digits_held_out", "batch_rows": 3}},
            "tasks": {"naming": {"source": "digits_held_out", "limit": 3, "max_new_tokens": 2, "every_steps": 8}},
        }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def environment() -> dict[str, str]:
    """Variables for a launch from any folder."""
    return {
        **os.environ,
        "XLA_FLAGS": QUICK,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(REPOSITORY),
    }


def outputs(processes: Sequence[subprocess.Popen], seconds: float = 400) -> list[tuple[str, str]]:
    """Waits for the ends of processes, and returns what each wrote.

    All are read at the same time: one whose pipe is full would wait, and let those wait that need it.
    """
    with ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(lambda process: process.communicate(timeout=seconds), processes))


def metrics(folder: Path, name: str) -> list[dict]:
    """What a run wrote, without the clock's readings."""
    lines = read_metrics(folder / "runs" / name / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key != "timing"} for line in lines]


def steps(folder: Path, name: str) -> list[int]:
    """Steps that a run wrote metrics of."""
    return [line["step"] for line in metrics(folder, name) if line["kind"] == "train"]


def saved(folder: Path, name: str) -> list[int]:
    """Steps of its checkpoints that were written whole."""
    found = (folder / "runs" / name / "checkpoints").glob("*/commit_success.txt")
    return sorted(int(path.parent.name) for path in found)


def wait_until(condition: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
