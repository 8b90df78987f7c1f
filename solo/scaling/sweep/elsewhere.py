"""Runs of a sweep that are trained elsewhere, by `solo train` or `launch`: their configs out, their results in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from solo.config import dump_config
from solo.files import write_whole
from solo.scaling.sweep.execute import branch, measured, versions
from solo.scaling.sweep.folder import SweepFolder
from solo.scaling.sweep.lock import is_held
from solo.scaling.sweep.points import Point
from solo.training.metrics import read_metrics
from solo.training.observer import Observer
from solo.training.run_folder import RunFolder


def write_configs(folder: SweepFolder, points: Sequence[Point], missing: Sequence[Point], place: Path) -> list[Path]:
    """Write the configs of runs that can be trained elsewhere now, by `solo train` or `launch`.

    A branch can, once its trunk has come to where it branches; its checkpoint is laid ready.

    Args:
        folder: of the sweep.
        points: all of its runs.
        missing: those to be written.
        place: folder for the files, `<id>.yaml`.
    """
    by_id, written = {point.id: point for point in points}, []
    for point in missing:
        if folder.status(point.id) == "running":
            continue
        if point.trunk is not None:
            if not folder.has_checkpoint(point.trunk, point.branch_step):
                continue
            branch(folder, point, by_id[point.trunk], Observer())
        path = place / f"{point.id}.yaml"
        write_whole(path, dump_config(point.config))
        written.append(path)
    return written


def collect(folder: SweepFolder, points: Sequence[Point]) -> list[Point]:
    """Write the results of runs that were trained to their end elsewhere. Returns them."""
    found = []
    for point in points:
        if folder.result(point.id) is None and not is_held(folder.locks, point.id) and _is_over(folder, point):
            write_whole(folder.result_file(point.id), json.dumps({**measured(folder, point), **versions()}) + "\n")
            found.append(point)
    return found


def _is_over(folder: SweepFolder, point: Point) -> bool:
    """Whether a run has taken its last step, and its losses are measured."""
    file = RunFolder(folder.run(point.id)).metrics_file
    if not file.exists():
        return False
    lines = read_metrics(file)
    last = max((line["step"] for line in lines if line["kind"] == "train"), default=0)
    if point.is_trunk:
        return last == point.steps and folder.has_checkpoint(point.id, point.steps)
    measured = {line["task"] for line in lines if line["kind"] == "held_out"}
    asked = {line["task"] for line in lines if line["kind"] == "evaluation"}
    evaluation = point.config.evaluation
    return last == point.steps and measured >= set(evaluation.losses) and asked >= set(evaluation.tasks)
