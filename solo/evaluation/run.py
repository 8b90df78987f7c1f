"""Evaluation as part of a run: load its newest checkpoint, answer its tasks, write metrics and report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from solo.config import Config, ConfigError, load_config
from solo.data.store.prepare import Prepared, open_prepared
from solo.evaluation.losses import held_out_losses
from solo.evaluation.report import write_report
from solo.evaluation.results import losses_lines, results_lines
from solo.evaluation.tasks import TaskResult, evaluate
from solo.files import append_json_line
from solo.inference.loading import load_run, newest_checkpoint
from solo.training.metrics import read_metrics
from solo.training.observer import Observer
from solo.training.run_folder import RunFolder


def evaluate_run(run: RunFolder, config: Config, prepared: Prepared, observer: Observer) -> list[TaskResult]:
    """Answer a run's tasks with its newest checkpoint, and measure its held-out losses; into metrics and `report.html`.

    Scores that are there already are not written again. Every process answers; the first one writes.

    Raises:
        ValueError: the run has no complete checkpoint.
        ConfigError: a task's source has no record, or one without an answer to ask for.
    """
    checkpoint = newest_checkpoint(run.path)
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
    """`evaluate_run` for a run that was trained before, `folder` being `runs/<name>`. Raises as that, and ConfigError
    where the folder is no run or its prepared data is gone.
    """
    run = RunFolder(Path(folder))
    if not run.config_file.is_file():
        raise ConfigError(f"{run.path} is no run of solo: it has no {run.config_file.name}")
    config = load_config(run.config_file)
    return evaluate_run(run, config, open_prepared(config), observer)


def _record(run: RunFolder, lines: list[dict[str, Any]]) -> None:
    """Append scores and losses to the metrics, unless they stand there already.

    Only appends, because the run may be training, and writing the same file, at this moment.
    """

    def what_counts(line: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in line.items() if name != "timing"}

    known = [what_counts(line) for line in read_metrics(run.metrics_file)]
    for line in lines:
        if what_counts(line) not in known:
            append_json_line(run.metrics_file, line)
