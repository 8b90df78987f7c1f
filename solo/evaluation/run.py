"""The report of a run, and the evaluation of one of its checkpoints after training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from solo.config import Config, load_config
from solo.data.store.access import contents, reading
from solo.data.store.bucket import local_folder
from solo.data.store.prepare import Prepared, open_prepared
from solo.evaluation.loop import RunEvaluators
from solo.evaluation.report import write_report
from solo.evaluation.results import task_results
from solo.evaluation.samples import samples_shown
from solo.evaluation.tasks import TaskResult
from solo.files import append_json_line
from solo.inference.loading import read_parameters
from solo.inference.trained import local_mesh
from solo.model.parameters import define
from solo.training.bucket_run import adding_results
from solo.training.evaluators import TRAINED, without_replaced
from solo.training.metrics import read_metrics
from solo.training.metrics_file import reportable
from solo.training.observer import Observer
from solo.training.reference import find_checkpoint, parse_reference
from solo.training.run_folder import RunFolder


def report_run(run: RunFolder, config: Config, prepared: Prepared, observer: Observer) -> list[TaskResult]:
    """Writes the report from a run's metrics. Returns the newest result of every task."""
    observer.note("writing the report")
    lines = reportable(without_replaced(read_metrics(run.metrics_file)))
    results = task_results(lines, config.evaluation, prepared.sources)
    samples = samples_shown(lines, config.evaluation, prepared.sources)
    write_report(run.report_file, config, define(config, prepared.tokenizer.vocab_size), results, lines, samples)
    return results


def evaluate_folder(reference: str | Path, observer: Observer, weights: str = TRAINED) -> list[TaskResult]:
    """Evaluates a checkpoint of a run on this process's devices, and writes the report again.

    The checkpoint is loaded onto the devices in shards. Lines that are already in the metrics are not written again.

    Args:
        reference: a run's folder (its newest checkpoint), `RUN@STEP` or `RUN@best`.
        observer: shows the progress.
        weights: `trained`, or the name of an average.

    Raises:
        ValueError: the run has no such checkpoint.
        CheckpointError: the checkpoint does not belong to the run's model, or is damaged.
        ConfigError: the folder is not a run, its prepared data is missing, or a task has no record with an answer.
    """
    folder, which = parse_reference(reference)
    run = RunFolder.existing(folder)
    config = load_config(run.config_file)
    checkpoint = find_checkpoint(folder, "latest" if which is None else which)
    prepared = open_prepared(config)
    with reading(local_folder(config), contents(config), observer.note), adding_results(run, observer.note):
        mesh, definition = local_mesh(), define(config, prepared.tokenizer.vocab_size)
        section = config.evaluation.model_copy(update={"weights": (weights,)})
        evaluators = RunEvaluators(
            config.model_copy(update={"evaluation": section}), prepared, definition, mesh, observer
        )
        parameters = {weights: read_parameters(checkpoint, definition, mesh, weights)}
        lines = list(evaluators.run(parameters, int(checkpoint.name), True, stop=lambda: False))
        _record(run, lines)
        report_run(run, config, prepared, observer)
        return task_results(lines, section, prepared.sources)


def _record(run: RunFolder, lines: list[dict[str, Any]]) -> None:
    """Appends the lines that are not in the metrics yet.

    The file is not rewritten, because the run may be training and appending to it.
    """

    def without_timing(line: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in line.items() if name != "timing"}

    known = [without_timing(line) for line in without_replaced(read_metrics(run.metrics_file))]
    for line in lines:
        if without_timing(line) not in known:
            append_json_line(run.metrics_file, line)
