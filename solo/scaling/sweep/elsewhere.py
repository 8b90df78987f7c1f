"""Hands out runs to a SLURM job array, `solo train` or `launch`, and collects their results."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from solo.config import dump_config
from solo.files import json_text, write_whole
from solo.locks import is_held
from solo.outputs import Output
from solo.scaling.sweep.execute import measured, start_branch, versions
from solo.scaling.sweep.folder import SweepFolder
from solo.scaling.sweep.points import Point
from solo.training.metrics import read_metrics
from solo.training.run_folder import RunFolder

_SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=1-{tasks}%{at_once}
#SBATCH --output={folder}/logs/slurm-%A-%a.log
#SBATCH --requeue
#SBATCH --signal=TERM@120
# Add the options of your cluster: --partition, --account, --time, --gpus-per-task.
# A task trains its runs one after the other. If it is submitted again, the array trains the missing runs.
set -uo pipefail
cd {here} || exit 1
runs=$(sed -n "${{SLURM_ARRAY_TASK_ID}}p" {list})
exec {python} -m solo.cli sweep {sweep} --run $runs
"""


def groups(points: Sequence[Point]) -> list[list[Point]]:
    """Groups runs into tasks: a stable run with its branches, or a single run."""
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point.stable_run or point.id, []).append(point)
    return list(found.values())


def write_array(out: Output, name: str, folder: Path, points: Sequence[Point], at_once: int) -> int:
    """Writes the script of a job array, and next to it the list of runs that its tasks read.

    Args:
        out: the script; the list is `<script>.runs`.
        name: name of the job.
        folder: the sweep's folder, on a file system that all nodes share.
        points: the missing runs.
        at_once: largest number of concurrent tasks.

    Returns:
        The number of tasks.

    Raises:
        ValueError: no run is missing.
        FileExistsError: one of the files may not be overwritten; see `Output.check`.
    """
    tasks = groups(points)
    if not tasks:
        raise ValueError("no run is missing: there is no job to write")
    path = out.path
    listed = replace(out, path=path.with_name(path.name + ".runs"))
    listed.check()
    out.check()
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    # Each task reads the line of its number.
    listed.write_text("".join(" ".join(point.id for point in task) + "\n" for task in tasks), last=True)
    quoted = {
        "folder": folder.absolute(),
        "here": shlex.quote(str(Path.cwd())),
        "list": shlex.quote(str(listed.path.absolute())),
        "python": shlex.quote(sys.executable),
        "sweep": shlex.quote(str(folder.absolute())),
    }
    out.write_text(_SCRIPT.format(name=name, tasks=len(tasks), at_once=at_once, **quoted))
    path.chmod(0o755)
    return len(tasks)


def write_configs(folder: SweepFolder, missing: Sequence[Point], place: Path, force: bool = False) -> list[Path]:
    """Writes the configs of the missing runs that can start now, as `<place>/<id>.yaml`. Returns their paths.

    A branch can start once its stable run has reached the branch point. That checkpoint is linked into the branch.

    Raises:
        FileExistsError: a file may not be overwritten; see `Output.check`.
    """
    ready: list[tuple[Point, Output]] = []
    for point in missing:
        waits = point.stable_run is not None and not folder.has_checkpoint(point.stable_run, point.branch_step)
        if not waits and folder.status(point.id) != "running":
            ready.append((point, Output(place / f"{point.id}.yaml", "solo sweep --configs", force)))
            ready[-1][1].check()
    for point, out in ready:
        start_branch(folder, point)
        out.write_text(dump_config(point.config))
    return [out.path for _, out in ready]


def collect(folder: SweepFolder, points: Sequence[Point], say: Callable[[str], None] = print) -> list[Point]:
    """Writes the results of runs that finished training elsewhere. Returns these runs.

    Runs with incomplete files get no result; `say` is called with a line for each of them.
    """
    found = []
    for point in points:
        if folder.result(point.id) is None and not is_held(folder.lock_file(point.id)) and _is_finished(folder, point):
            try:
                result = measured(folder, point)
            except (RuntimeError, ValueError, KeyError) as error:
                say(f"not collected: {point.id}, {error}")
                continue
            write_whole(folder.result_file(point.id), json_text({**result, **versions()}) + "\n")
            found.append(point)
    if found and folder.plan_file.exists():
        folder.write_results()
    return found


def _is_finished(folder: SweepFolder, point: Point) -> bool:
    """Returns whether a run has taken its last step and has all its evaluations."""
    file = RunFolder(folder.run(point.id)).metrics_file
    if not file.exists():
        return False
    lines = read_metrics(file)
    if max((line["step"] for line in lines if line["kind"] == "train"), default=0) != point.steps:
        return False
    if point.is_stable:
        return folder.has_checkpoint(point.id, point.steps)
    losses, tasks = ({line["task"] for line in lines if line["kind"] == kind} for kind in ("held_out", "evaluation"))
    return losses >= set(point.config.evaluation.losses) and tasks >= set(point.config.evaluation.tasks)
