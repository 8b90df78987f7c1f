"""Measures the host's work per step: `python -m tests.benchmarks.loop` runs the loop around steps that are free.

The compiled step runs once. Its results are then used again, and so is one batch. What is left is the loop's own work:
the transfer of the batch, the line of the step, its files, TensorBoard, the ledger and the log. Evaluation and
profiling are off. Seconds are those of the loop's thread on a core, whatever else runs on the machine.

It also measures how long a run with 50,000 lines takes to open its metrics, against one with 500.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

from solo.config import load_config
from solo.data.store.prepare import prepare
from solo.files import json_line
from solo.training.feeding import Feeder
from solo.training.heartbeat import Beating
from solo.training.ledger import Ledger
from solo.training.log_lines import LogLines
from solo.training.metrics import MetricsStream, read_metrics
from solo.training.recording import Recorder
from solo.training.run_folder import RunFolder
from solo.training.tensorboard import TensorBoard
from solo.training.trainer import Trainer

STEPS = 1000
WARM_UP = 100
STEP_SECONDS = 0.1


def main() -> None:
    """Prints the host's seconds per step, and the seconds to open metrics."""
    with tempfile.TemporaryDirectory() as folder:
        base = load_config("configs/quickstart.yaml", [f"folder={folder}", f"checkpoint.every_steps={STEPS}"])
        stage = base.stages[1].model_copy(update={"steps": STEPS})
        config = base.model_copy(update={"stages": (stage,)})
        run = RunFolder.open(config)
        ledger = Ledger()
        ledger.open(run.goodput_file)
        with open(os.path.join(folder, "log"), "w") as log:
            observer = Beating(run.heartbeat_file, LogLines(1.0, log))
            _measure(Trainer(config, prepare(config), run, observer, ledger=ledger))
            observer.close()
        lines = read_metrics(run.metrics_file)
        line = next(line for line in lines if line["kind"] == "train")
        for _ in range(2):
            for count in (500, 50_000):
                print(f"opening metrics with {count:,} lines: {_open_seconds(Path(folder), line, count) * 1e3:.1f} ms")


def _measure(trainer: Trainer) -> None:
    real, finish = trainer._compile, Recorder.finish
    begun: list[float] = []
    recorded: list[float] = []
    result: list = []

    def compile_once(*arguments):
        step = real(*arguments)

        def again(state, batch):
            if not result:
                result.append(step(state, batch))
                result[0][1]["loss"].block_until_ready()
            begun.append(time.thread_time())
            return result[0]

        return again

    def batches(self, start):
        feed = original(self, start)
        info, batch = next(feed)
        for number in range(STEPS):
            yield info._replace(step=number + 1, stage_step=number + 1), batch

    def timed(self, *arguments):
        start = time.thread_time()
        finish(self, *arguments)
        recorded.append(time.thread_time() - start)

    original = Feeder.batches
    with (
        patch.object(trainer, "_compile", compile_once),
        patch.object(Feeder, "batches", batches),
        patch.object(Recorder, "finish", timed),
    ):
        trainer.train()
    whole = [after - before for before, after in zip(begun[WARM_UP:], begun[WARM_UP + 1 :], strict=False)]
    middle = statistics.median(whole)
    highest = sorted(whole)[-(len(whole) // 100)]
    share = middle / STEP_SECONDS
    print(f"host's work per step: median {middle * 1e3:.2f} ms, {share:.2%} of a step of {STEP_SECONDS * 1e3:.0f} ms")
    print(f"  its 99th percentile: {highest * 1e3:.2f} ms")
    print(
        f"  its line (read, metrics, boards, ledger, log): median {statistics.median(recorded[WARM_UP:]) * 1e3:.2f} ms"
    )


def _open_seconds(folder: Path, line: dict, count: int) -> float:
    run = RunFolder(folder / f"opened-{count}-{time.monotonic_ns()}")
    run.path.mkdir()
    run.metrics_file.write_text("".join(json_line({**line, "step": step}) for step in range(1, count + 1)))
    os.sync()
    start = time.perf_counter()
    stream = MetricsStream(run, count, 0, [TensorBoard(run.tensorboard)])
    seconds = time.perf_counter() - start
    stream.close()
    return seconds


if __name__ == "__main__":
    main()
