"""Trains one run of a sweep from its current state, and writes its result."""

from __future__ import annotations

import math
import shutil
import subprocess
import time
import traceback
from pathlib import Path
from typing import Any

import solo
from solo.data.store.prepare import open_prepared
from solo.evaluation.losses import evaluation_set
from solo.files import complete_checkpoints
from solo.locks import hold
from solo.model.parameters import define
from solo.pipeline import train
from solo.scaling.sweep.folder import BAD, SweepFolder
from solo.scaling.sweep.points import Point
from solo.training.lineage import link_folder
from solo.training.metrics import read_metrics
from solo.training.run_folder import RunFolder
from solo.training.stopping import Stop
from solo.training.trainer import BadStepError


def execute(folder: SweepFolder, point: Point, stop: Stop) -> str:
    """Trains a run and writes its result, unless it has one or another process trains it.

    A branch whose stable run has not reached the branch point is left pending.

    Returns:
        The status of the run afterwards; "running" if another process trains it.

    Raises:
        Interrupted: SIGTERM arrived while `stop` was listening. The run is saved, and has no result yet.
    """
    with hold(folder.lock_file(point.id)) as held:
        if not held:
            return "running"
        if folder.result(point.id) is None:
            result = _attempt(folder, point, stop)
            if result is not None:
                folder.write_result(point.id, result)
    return folder.status(point.id)


def _attempt(folder: SweepFolder, point: Point, stop: Stop) -> dict[str, Any] | None:
    started = time.monotonic()
    try:
        if not start_branch(folder, point):
            return None
        train(point.config, stop=stop)
        found = measured(folder, point)
    except BadStepError as error:
        found = {"status": "diverged", "error": str(error)}
    except Exception as error:  # recorded as the run's result, so that the other runs continue
        traceback.print_exc()
        found = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    return {**found, "seconds": time.monotonic() - started, **versions()}


def start_branch(folder: SweepFolder, point: Point) -> bool:
    """Links the checkpoint of the branch point into a branch, if the branch has no checkpoint.

    Returns:
        Whether the run can start: False if its stable run has not reached the branch point yet.

    Raises:
        RuntimeError: the stable run has ended without the checkpoint.
    """
    checkpoints = folder.run(point.id) / "checkpoints"
    if point.stable_run is None or complete_checkpoints(checkpoints):
        return True
    if not folder.has_checkpoint(point.stable_run, point.branch_step):
        status = folder.status(point.stable_run)
        if status == "stable" or status in BAD:
            ended = "has no checkpoint" if status == "stable" else f"{status} before the checkpoint"
            raise RuntimeError(f"its stable run {point.stable_run} {ended} of step {point.branch_step}")
        return False
    # A partial copy gets a name that no checkpoint can have.
    partial, place = checkpoints / ".branch", checkpoints / str(point.branch_step)
    shutil.rmtree(partial, ignore_errors=True)
    checkpoints.mkdir(parents=True, exist_ok=True)
    source = folder.run(point.stable_run) / "checkpoints" / str(point.branch_step)
    link_folder(source, partial)
    partial.rename(place)
    return True


def measured(folder: SweepFolder, point: Point) -> dict[str, Any]:
    """Returns the result of a run that has finished training."""
    run = RunFolder(folder.run(point.id))
    lines = read_metrics(run.metrics_file)
    steps = [line for line in lines if line["kind"] == "train"]
    if point.stable_run is not None:
        before = read_metrics(RunFolder(folder.run(point.stable_run)).metrics_file)
        steps = [line for line in before if line["kind"] == "train" and line["step"] <= point.branch_step] + steps
    if [line["step"] for line in steps] != list(range(1, point.steps + 1)):
        raise RuntimeError(f"found metrics of {len(steps)} steps for a run of {point.steps}; see {run.metrics_file}")
    visual, tokens = (sum(line[name] for line in steps) for name in ("visual_tokens", "tokens"))
    # The median is robust to the step that compiles.
    rates = sorted(line["flops"] / line["timing"]["step_seconds"] for line in steps)
    found: dict[str, Any] = {
        "status": "stable" if point.is_stable else "done",
        "tokens": tokens,
        "visual_tokens": visual,
        "text_tokens": tokens - visual,
        "flops": sum(line["flops"] for line in steps),
        "step_seconds": sum(line["timing"]["step_seconds"] for line in steps if line["step"] > point.branch_step),
        "flops_per_second": float(rates[len(rates) // 2]),
    }
    if point.is_stable:
        return found
    prepared = open_prepared(point.config)
    vocab = define(point.config, prepared.tokenizer.vocab_size).vocab_size
    final = [line for line in lines if line["step"] == point.steps and "weights" not in line]
    losses = {line["task"]: line["loss"] for line in final if line["kind"] == "held_out"}
    found |= {
        "losses": losses,
        "scores": {line["task"]: line["score"] for line in final if line["kind"] == "evaluation"},
        "tokenizer": prepared.tokenizer.fingerprint,
        "evaluation_set": evaluation_set(point.config, prepared),
    }
    if bad := [name for name, loss in losses.items() if loss is None or not loss < math.log(vocab)]:
        found |= {"status": "diverged", "error": f"worse than a uniform distribution: {', '.join(bad)}"}
    return found


def versions() -> dict[str, Any]:
    """Returns the version and the git commit of this package."""
    words = ["git", "-C", str(Path(solo.__file__).parent), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = ""
    return {"version": solo.__version__, "commit": commit}
