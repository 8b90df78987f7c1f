"""A whole run: prepare the data, train every stage, evaluate, write the report. What `solo train` does."""

from __future__ import annotations

import json
from typing import NamedTuple

from solo.config import Config
from solo.data.prepare import prepare
from solo.evaluation.run import evaluate_run
from solo.evaluation.tasks import TaskResult
from solo.training.loop import Trainer
from solo.training.observer import Observer
from solo.training.run import RunFolder


class Trained(NamedTuple):
    """A finished run: its folder, the results of its evaluation, and how many records and batches were set aside."""

    run: RunFolder
    results: list[TaskResult]
    quarantined: int


def train(config: Config, observer: Observer | None = None) -> Trained:
    """Prepare, train, evaluate; go on from the last checkpoint where an earlier try stopped.

    Args:
        config: the run; it lives in `<folder>/<name>`.
        observer: is told how it goes; silent unless given.

    Raises:
        ConfigError: the config does not fit its data, the devices, or the run that the folder holds.
        CheckpointError: a checkpoint could not be written, or read back.
        BadStepError: a loss was not finite or jumped, and the config says to stop.
        Interrupted: SIGTERM came, and the observer listens for it; all is saved.
    """
    observer = observer or Observer()
    run = RunFolder.open(config)
    prepared = prepare(config, observer.note)
    prepared.tokenizer.save(run.tokenizer_file)
    observer.note("planning")
    trainer = Trainer(config, prepared, run, observer)
    observer.start(trainer.num_steps)
    trainer.train()
    observer.finish()
    results = evaluate_run(run, config, prepared, observer)
    return Trained(run, results, prepared.quarantined + _set_aside(run))


def _set_aside(run: RunFolder) -> int:
    """Documents that could not be read, and batches whose update was not applied, while training."""
    if not run.quarantine_file.exists():
        return 0
    return sum(1 for line in run.quarantine_file.read_text().splitlines() if json.loads(line))
