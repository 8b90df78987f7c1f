"""Evaluation of a run: its newest checkpoint answers the tasks; metrics and report are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from solo.config import Config, load_config
from solo.data.store.access import contents, reading
from solo.data.store.bucket import local_folder
from solo.data.store.prepare import Prepared, open_prepared
from solo.evaluation.losses import held_out_losses
from solo.evaluation.report import write_report
from solo.evaluation.results import losses_lines, results_lines
from solo.evaluation.tasks import TaskResult, evaluate
from solo.files import append_json_line
from solo.inference.loading import load_run
from solo.training.bucket_run import adding_results
from solo.training.metrics import read_metrics
from solo.training.observer import Observer
from solo.training.reference import find_checkpoint
from solo.training.run_folder import RunFolder


def evaluate_run(run: RunFolder, config: Config, prepared: Prepared, observer: Observer) -> list[TaskResult]:
    """Answers a run's tasks with its newest checkpoint, measures held-out losses, and writes metrics and report.

    Scores that the metrics already hold are not written again. Every process answers; the first one writes.

    Raises:
        ValueError: the run has no complete checkpoint.
        ConfigError: a task's source has no record, or a record without an answer.
    """
    checkpoint = find_checkpoint(run.path)
    model = load_run(checkpoint)

    def note(task: str, done: int, total: int) -> None:
        observer.note(f"evaluating {task}: {done} of {total}")

    results = evaluate(model, config.evaluation, prepared.sources, note)
    losses = held_out_losses(model, config, prepared, note)
    if jax.process_index() == 0:
        observer.note("writing the report")
        step = int(checkpoint.name)
        _record(run, [*results_lines(results, step), *losses_lines(losses, step)])
        write_report(run.report_file, config, model.definition, results, read_metrics(run.metrics_file))
    return results


def evaluate_folder(folder: str | Path, observer: Observer) -> list[TaskResult]:
    """Evaluates a run that was trained before; `folder` is `runs/<name>`. See `evaluate_run`.

    Raises:
        ConfigError: also if the folder is not a run, or its prepared data is missing.
    """
    run = RunFolder.existing(folder)
    config = load_config(run.config_file)
    prepared = open_prepared(config)
    with reading(local_folder(config), contents(config), observer.note), adding_results(run, observer.note):
        return evaluate_run(run, config, prepared, observer)


def _record(run: RunFolder, lines: list[dict[str, Any]]) -> None:
    """Appends scores and losses that the metrics do not hold yet.

    The file is not rewritten, because the run may be training and appending to it.
    """

    def without_timing(line: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in line.items() if name != "timing"}

    known = [without_timing(line) for line in read_metrics(run.metrics_file)]
    for line in lines:
        if without_timing(line) not in known:
            append_json_line(run.metrics_file, line)
