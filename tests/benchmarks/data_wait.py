"""Measures how long steps wait for data: `python -m tests.benchmarks.data_wait` trains 40 steps of the quickstart.

Prints the share of step time spent waiting after five steps of warm-up (target: under 2%), and how full the rows are.
Prepared data stays in data/quickstart.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from solo.config import load_config
from solo.data.store.prepare import prepare
from solo.training.metrics import read_metrics
from solo.training.observer import Observer
from solo.training.run_folder import RunFolder
from solo.training.trainer import Trainer

STEPS = 40
WARM_UP = 5


def main() -> None:
    """Trains the mixture stage of the quickstart for a few steps, and prints sums of its metrics."""
    with tempfile.TemporaryDirectory() as folder:
        base = load_config("configs/quickstart.yaml", [f"folder={folder}"])
        stage = base.stages[1].model_copy(update={"steps": STEPS})
        config = base.model_copy(update={"stages": (stage,)})
        run = RunFolder.open(config)
        trainer = Trainer(config, prepare(config), run, Observer())
        trainer.train()
        lines = [line for line in read_metrics(Path(run.metrics_file)) if line["kind"] == "train"][WARM_UP:]
        fill = trainer.plans[0].fill(STEPS)
    waited = sum(line["timing"]["data_wait_seconds"] for line in lines)
    total = sum(line["timing"]["step_seconds"] for line in lines)
    print(f"waiting for data: {waited / total:.2%} of {total:.1f} s in {len(lines)} steps; rows are {fill:.2%} full")


if __name__ == "__main__":
    main()
