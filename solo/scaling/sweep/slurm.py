"""A sweep as a job array of SLURM: one task for each trunk with its branches, and for each run without one."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from solo.scaling.sweep.points import Point

_SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=1-{tasks}%{at_once}
#SBATCH --output={folder}/logs/slurm-%A-%a.log
#SBATCH --requeue
#SBATCH --signal=TERM@120
# Add what your cluster asks for: --partition, --account, --time, --gpus-per-task.
# A task does its runs one after the other. Sent again, the array does what is missing.
set -uo pipefail
cd {here} || exit 1
runs=$(sed -n "${{SLURM_ARRAY_TASK_ID}}p" {list})
exec {python} -m solo.cli sweep {spec} --run $runs
"""


def groups(points: Sequence[Point]) -> list[list[Point]]:
    """Runs that belong into one process: a trunk and its branches."""
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point.trunk or point.id, []).append(point)
    return list(found.values())


def write_array(path: Path, spec: Path, name: str, folder: Path, points: Sequence[Point], at_once: int) -> int:
    """Write the script, and beside it the list of runs that its tasks read.

    Args:
        path: of the script; the list is `<path>.runs`.
        spec: the sweep's file.
        name: of the job.
        folder: of the sweep, on a file system that all nodes see.
        points: the runs that are missing.
        at_once: tasks that run at a time, at most.

    Returns:
        How many tasks there are.

    Raises:
        ValueError: nothing is missing.
    """
    tasks = groups(points)
    if not tasks:
        raise ValueError("nothing is missing: there is no job to write")
    listed = path.with_name(path.name + ".runs")
    path.parent.mkdir(parents=True, exist_ok=True)
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    listed.write_text("".join(" ".join(point.id for point in task) + "\n" for task in tasks))
    quoted = {
        "folder": folder.absolute(),
        "here": shlex.quote(str(Path.cwd())),
        "list": shlex.quote(str(listed.absolute())),
        "python": shlex.quote(sys.executable),
        "spec": shlex.quote(str(spec.absolute())),
    }
    path.write_text(_SCRIPT.format(name=name, tasks=len(tasks), at_once=at_once, **quoted))
    path.chmod(0o755)
    return len(tasks)
