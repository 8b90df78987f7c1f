"""One run of a sweep, from wherever it stands to its result."""

from __future__ import annotations

import math
import os
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
from solo.model.parameters import define
from solo.pipeline import train
from solo.scaling.sweep.folder import BAD, SweepFolder
from solo.scaling.sweep.lock import RunLock
from solo.scaling.sweep.points import Point
from solo.training.metrics import read_metrics
from solo.training.observer import Observer
from solo.training.run_folder import RunFolder
from solo.training.trainer import BadStepError, Interrupted

_POLL_SECONDS = 2.0


def execute(folder: SweepFolder, point: Point, trunk: Point | None, observer: Observer) -> str:
    """Do a run, unless it has a result or another process is at it. Its trunk is trained first, where that is missing.

    Args:
        folder: of the sweep.
        point: the run.
        trunk: what it branches from.
        observer: is told how it goes.

    Returns:
        Its status afterwards; "running" where another process has it.

    Raises:
        Interrupted: SIGTERM came, and the observer listens for it; all is saved, and there is no result yet.
    """
    if folder.result(point.id):
        return folder.status(point.id)
    lock = RunLock.acquire(folder.locks, point.id, on_loss=_stop_at_once)
    if lock is None:
        return folder.status(point.id)
    try:
        if folder.result(point.id) is None:  # it may have come before the lock did
            folder.write_result(point.id, _attempt(folder, point, trunk, observer))
    finally:
        lock.release()
    return folder.status(point.id)


def _stop_at_once() -> None:
    """Another process took this one for dead and does the run: writing on would spoil it."""
    os._exit(75)


def _attempt(folder: SweepFolder, point: Point, trunk: Point | None, observer: Observer) -> dict[str, Any]:
    started = time.monotonic()
    try:
        if trunk is not None:
            branch(folder, point, trunk, observer)
        train(point.config, observer)
        found = measured(folder, point)
    except BadStepError as error:
        found = {"status": "diverged", "error": str(error)}
    except Interrupted:
        raise
    except Exception as error:  # whatever it is, it is this run's, and the others go on
        traceback.print_exc()
        found = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    return {**found, "seconds": time.monotonic() - started, **versions()}


def branch(folder: SweepFolder, point: Point, trunk: Point, observer: Observer) -> None:
    """Begin with the trunk's checkpoint, unless the run has one of its own already."""
    checkpoints = folder.run(point.id) / "checkpoints"
    if complete_checkpoints(checkpoints):
        return
    while not folder.has_checkpoint(trunk.id, point.branch_step):
        status = execute(folder, trunk, None, observer)
        if status in BAD:
            raise RuntimeError(f"its trunk {trunk.id} {status} before step {point.branch_step}")
        if status == "trunk" and not folder.has_checkpoint(trunk.id, point.branch_step):
            raise RuntimeError(f"its trunk {trunk.id} has no checkpoint of step {point.branch_step} any more")
        time.sleep(_POLL_SECONDS)
    # The name is not one that a checkpoint can have, so that half a copy is none.
    partial, place = checkpoints / ".branch", checkpoints / str(point.branch_step)
    shutil.rmtree(partial, ignore_errors=True)
    checkpoints.mkdir(parents=True, exist_ok=True)
    source = folder.run(trunk.id) / "checkpoints" / str(point.branch_step)
    shutil.copytree(source, partial, copy_function=_link)
    partial.rename(place)


def _link(source: str, target: str) -> None:
    """A checkpoint's files are never written again, so that a second name serves as a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def measured(folder: SweepFolder, point: Point) -> dict[str, Any]:
    """The result of a run that was trained to its end."""
    run = RunFolder(folder.run(point.id))
    lines = read_metrics(run.metrics_file)
    steps = [line for line in lines if line["kind"] == "train"]
    if point.trunk is not None:
        before = read_metrics(RunFolder(folder.run(point.trunk)).metrics_file)
        steps = [line for line in before if line["kind"] == "train" and line["step"] <= point.branch_step] + steps
    visual, tokens = (sum(line[name] for line in steps) for name in ("visual_tokens", "tokens"))
    found: dict[str, Any] = {
        "status": "trunk" if point.is_trunk else "done",
        "tokens": tokens,
        "visual_tokens": visual,
        "text_tokens": tokens - visual,
        "flops": sum(line["flops"] for line in steps),
        "step_seconds": sum(line["timing"]["step_seconds"] for line in steps if line["step"] > point.branch_step),
        "flops_per_second": _rate(steps),
    }
    if [line["step"] for line in steps] != list(range(1, point.steps + 1)):
        raise RuntimeError(f"metrics of {len(steps)} steps for a run of {point.steps}; see {run.metrics_file}")
    if point.is_trunk:
        return found
    prepared = open_prepared(point.config)
    vocab = define(point.config, prepared.tokenizer.vocab_size).vocab_size
    losses = {line["task"]: line["loss"] for line in lines if line["kind"] == "held_out"}
    scores = {line["task"]: line["score"] for line in lines if line["kind"] == "evaluation"}
    found |= {
        "losses": losses,
        "scores": scores,
        "tokenizer": prepared.tokenizer.fingerprint,
        "evaluation_set": evaluation_set(point.config, prepared),
    }
    if bad := [name for name, loss in losses.items() if loss is None or not loss < math.log(vocab)]:
        found |= {"status": "diverged", "error": f"worse than guessing evenly: {', '.join(bad)}"}
    return found


def _rate(steps: list[dict[str, Any]]) -> float:
    """FLOPs per second, the median over the steps: the first of them compiled."""
    rates = sorted(line["flops"] / line["timing"]["step_seconds"] for line in steps)
    return float(rates[len(rates) // 2])


def versions() -> dict[str, Any]:
    """What the result was made by."""
    place = Path(solo.__file__).parent
    try:
        words = ["git", "-C", str(place), "rev-parse", "HEAD"]
        commit = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = ""
    return {"version": solo.__version__, "commit": commit}
