"""Reads the curves of runs from their `metrics.jsonl`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from solo.config import Config, ConfigError, load_config
from solo.files import place
from solo.training.evaluators import without_replaced
from solo.training.metrics import read_metrics
from solo.training.overview import Overview, overview
from solo.training.run_folder import RunFolder

# The axes on which curves are drawn: name -> title.
AXES = {"steps": "steps", "tokens": "tokens", "flops": "FLOPs", "hours": "hours in steps"}


@dataclass(frozen=True)
class Parent:
    """Where a run branched off.

    path  folder of the other run
    step  the step after which this run began
    """

    path: Path
    step: int


@dataclass(frozen=True)
class Run:
    """The curves of a run.

    label      unique name on the page
    config     config of the run; None if it cannot be read
    axes       name of `AXES` -> [S], increasing
    loss       [S], NaN where it was not finite
    by_source  source -> [S], NaN where no target of the source was in the batch
    held_out   name -> ([E] steps, [E] losses)
    glance     latest metrics of the run
    parent     where the run branched off, or None
    """

    label: str
    path: Path
    config: Config | None
    axes: dict[str, np.ndarray]
    loss: np.ndarray
    by_source: dict[str, np.ndarray]
    held_out: dict[str, tuple[np.ndarray, np.ndarray]]
    glance: Overview
    parent: Parent | None = None
    lines: int = field(default=0)

    @property
    def steps(self) -> np.ndarray:
        """[S] steps that have a line in `metrics.jsonl`."""
        return self.axes["steps"]

    @property
    def diverged_at(self) -> int | None:
        """The first step after which no loss was finite, or None."""
        bad = ~np.isfinite(self.loss)
        if not len(bad) or not bad[-1]:
            return None
        finite = np.flatnonzero(~bad)
        return int(self.steps[finite[-1] + 1 if len(finite) else 0])

    def at(self, axis: str, steps: np.ndarray) -> np.ndarray:
        """Returns the positions of steps on an axis. Step 0, before the first step, is at 0."""
        return np.interp(steps, np.insert(self.steps, 0, 0.0), np.insert(self.axes[axis], 0, 0.0))


def read_runs(folders: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Reads runs.

    Returns:
        The runs that have trained a step, and messages about the others.

    Raises:
        ConfigError: a folder is not that of a run, or no run has trained a step.
    """
    found = [RunFolder.existing(folder) for folder in folders]
    notes, runs = [], []
    for run, label in zip(found, labels([str(run.path) for run in found]), strict=True):
        read = read_run(run, label)
        if len(read.steps):
            runs.append(read)
        else:
            notes.append(f"{run.path} has no line of a step, and is left out")
    if not runs:
        raise ConfigError("; ".join(notes))
    return runs, notes


def labels(paths: Sequence[str]) -> list[str]:
    """Returns the names of folders, with as many parent folders as are needed to make them unique."""
    unique = list(dict.fromkeys(paths))
    if len(unique) < len(paths):
        again = next(path for path, count in Counter(paths).items() if count > 1)
        raise ConfigError(f"{again} is named twice")
    parts = [path.rstrip("/").split("/") for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def read_run(run: RunFolder, label: str) -> Run:
    """Reads a run. Damaged lines are skipped."""
    lines = without_replaced(read_metrics(run.metrics_file))
    last = {line["step"]: line for line in lines if line["kind"] == "train"}
    steps = [last[step] for step in sorted(last)]
    numbers = np.array([line["step"] for line in steps], np.float64)
    seconds = _numbers([_mapping(line, "timing").get("step_seconds") for line in steps])
    axes = {
        "steps": numbers,
        "tokens": _totals(steps, "tokens"),
        "flops": _totals(steps, "flops"),
        "hours": np.cumsum(np.nan_to_num(seconds)) / 3600,
    }
    sources = dict.fromkeys(name for line in steps for name in _mapping(line, "loss_by_source"))
    by_source = {name: _numbers([_mapping(line, "loss_by_source").get(name) for line in steps]) for name in sources}
    held_out: dict[str, dict[int, Any]] = {}
    for line in lines:
        if line["kind"] == "held_out" and "weights" not in line:
            held_out.setdefault(str(line.get("task")), {})[line["step"]] = line.get("loss")
    measured = {
        name: (np.array(sorted(found), np.float64), _numbers([found[step] for step in sorted(found)]))
        for name, found in held_out.items()
    }
    try:
        config = load_config(run.config_file)
    except ConfigError:
        config = None
    loss = _numbers([line.get("loss") for line in steps])
    return Run(
        label, run.path, config, axes, loss, by_source, measured, overview(run.path), parent_of(config), len(lines)
    )


def parent_of(config: Config | None) -> Parent | None:
    """Returns where a run branched off according to its config, or None if it is not a branch."""
    branch = getattr(config, "branch", None)
    return None if branch is None or branch.step is None else Parent(place(branch.run), int(branch.step))


def _totals(steps: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """Returns [S] totals up to each step. Totals stored in the lines stay correct even if other lines are lost."""
    totals = _numbers([line.get(f"total_{name}") for line in steps])
    sums = np.cumsum(np.nan_to_num(_numbers([line.get(name) for line in steps])))
    return np.maximum.accumulate(np.where(np.isfinite(totals), totals, sums)) if len(steps) else sums


def _mapping(line: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Returns a mapping that a line holds; an empty one if it holds none, or something else."""
    found = line.get(name)
    return found if isinstance(found, Mapping) else {}


def _numbers(values: Sequence[Any]) -> np.ndarray:
    good = [value if isinstance(value, int | float) and math.isfinite(value) else math.nan for value in values]
    return np.array(good, np.float64)
