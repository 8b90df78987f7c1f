"""Names of checkpoints: `RUN`, `RUN@STEP`, `RUN@latest` and `RUN@best`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal, NamedTuple

from solo.config import load_config
from solo.files import complete_checkpoints, is_complete, is_remote, place
from solo.storage import Bucket
from solo.training.best import best_steps
from solo.training.metrics import read_metrics
from solo.training.newest import fault, newest_whole
from solo.training.run_folder import RunFolder

_log = logging.getLogger(__name__)

# A step, or the newest or the best checkpoint of a run.
Which = int | Literal["latest", "best"]


class Reference(NamedTuple):
    """A folder and the requested checkpoint; None if no checkpoint was named."""

    folder: Path
    which: Which | None


def parse_reference(text: str | Path) -> Reference:
    """Splits `FOLDER[@STEP|@latest|@best]`. If a folder with the whole name exists, it is that folder.

    Raises:
        ValueError: the text after the last `@` is neither a step, nor `latest`, nor `best`; or the folder is in a
            bucket that cannot be reached.
    """
    whole = place(text)
    if is_remote(whole):
        Bucket(str(whole)).connect()
    folder, at, which = whole.name.rpartition("@")
    if not at or not folder or whole.exists():
        return Reference(whole, None)
    return Reference(whole.with_name(folder), parse_which(which))


def parse_which(text: str) -> Which:
    """Returns the checkpoint that a text names. Raises ValueError if it is neither a step, nor `latest`, nor `best`."""
    if text == "latest":
        return "latest"
    if text == "best":
        return "best"
    if text.isascii() and text.isdecimal():
        return int(text)
    raise ValueError(f"expected a step, latest or best, got {text!r} (RUN@STEP, RUN@latest, RUN@best)")


def find_checkpoint(folder: Path, which: Which = "latest", below: int | None = None) -> Path:
    """Returns the folder of a run's checkpoint. Damaged ones are logged and skipped, unless the step is given.

    Args:
        folder: folder of the run.
        which: a step, `latest`, or `best` (the best existing one by `checkpoint.best` of the run's config).
        below: with `latest`, only consider checkpoints of earlier steps than this.

    Raises:
        ValueError: the run has no complete checkpoint, or not the requested one; or its config names no metric.
    """
    run = RunFolder(folder)
    complete = complete_checkpoints(run.checkpoints)
    if not complete:
        raise ValueError(f"{folder} has no complete checkpoint yet: train it, or wait until its first one is saved")
    if which == "latest":
        newest, passed = newest_whole(run.checkpoints, below)
        for text in passed:
            _log.warning("%s", text)
        if newest is None:
            raise ValueError("; ".join([f"{folder} has no checkpoint that can be read", *passed]))
        return newest
    steps = [int(path.name) for path in complete]
    if which == "best":
        which = _best(run, steps)
    if which in steps:
        return complete[steps.index(which)]
    named = run.checkpoints / str(which)
    if named.is_dir() and not is_complete(named):
        raise ValueError(f"{named} is not a complete checkpoint")
    raise ValueError(f"{folder} has no checkpoint of step {which}; it has steps {', '.join(map(str, steps))}")


def _best(run: RunFolder, steps: list[int]) -> int:
    run = RunFolder.existing(run.path)
    best = load_config(run.config_file).checkpoint.best
    if best is None:
        raise ValueError(f"{run.path}@best: the run's config names no metric; set checkpoint.best, or name a step")
    found = [
        step
        for step in best_steps(read_metrics(run.metrics_file), best)
        if step in steps and not fault(run.checkpoints / str(step))
    ]
    if not found:
        raise ValueError(f"{run.path}@best: no checkpoint has a finite value of {best.metric} yet")
    return found[0]
