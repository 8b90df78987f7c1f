"""An overview of the runs in a folder: their states and latest figures, even if some of their files are damaged."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from solo.config import ConfigError, load_config
from solo.files import is_remote, place
from solo.locks import is_held
from solo.training.heartbeat import SECONDS, Heartbeat, read_heartbeat
from solo.training.ledger import goodput
from solo.training.metrics_file import end_of, lines_backwards, parse_line
from solo.training.run_folder import RunFolder

_SILENT_SECONDS = 4 * SECONDS  # a copy in a bucket is up to 30 s older than the file
_STUCK_SECONDS = 600.0
_READ = 2_000  # lines at the end of the metrics
_FILES = ("config.yaml", "metrics.jsonl", "goodput.jsonl", "heartbeat.json", "checkpoints")


@dataclass(frozen=True)
class Overview:
    """The state and latest figures of a run. None means that a value is not known.

    name               name of its folder
    state              running, done, interrupted, failed, killed, new, unreadable, or unknown (it has metrics, but no
                       record of its attempts)
    doing              its activity if it is running; the reason if it is unreadable
    step, steps        the last step, and the number of steps of the whole run
    loss               loss of the last step; None if it was not finite
    held_out           the latest held-out losses, by name
    tokens_per_second  tokens per second of the last step
    goodput            share of time in steps that count
    last               time of the last sign of life, in seconds since 1970
    """

    name: str
    state: str
    doing: str = ""
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    held_out: dict[str, float | None] | None = None
    tokens_per_second: float | None = None
    goodput: float | None = None
    last: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Returns all fields, for JSON."""
        return asdict(self)


def overviews(folder: str | Path) -> list[Overview]:
    """Returns the runs in a folder or bucket: running ones first, then by their last sign of life.

    Raises:
        ConfigError: there is no such folder, or its bucket cannot be reached.
    """
    found = [overview(path) for path in _runs(place(folder))]
    return sorted(found, key=lambda run: (run.state != "running", -(run.last or 0.0), run.name))


def overview(path: Path) -> Overview:
    """Returns the state and figures of a run. Raises no error if a file of the run is damaged."""
    try:
        run = RunFolder(path)
        if is_remote(path):
            run = RunFolder.existing(path)
        return _overview(run)
    except Exception as error:  # an error in one folder must not hide the other runs
        return Overview(path.name, "unreadable", str(error).partition("\n")[0])


def _runs(folder: Path) -> Iterator[Path]:
    if is_remote(folder):
        from solo.storage import Bucket

        bucket = Bucket(str(folder))
        bucket.connect()
        yield from (folder / name for name in sorted(bucket.folders_with("config.yaml")))
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder; give a folder of runs, such as runs")
    for path in sorted(folder.iterdir()):
        if path.is_dir() and any((path / name).exists() for name in _FILES):
            yield path


def _overview(run: RunFolder) -> Overview:
    beat = read_heartbeat(run.heartbeat_file)
    try:
        spent = goodput(run.goodput_file)
    except ConfigError:
        spent = None
    step, held_out = _latest(run.metrics_file)
    signs = [spent.last if spent else None, beat.at if beat else None, _changed(run.metrics_file)]
    last = max((sign for sign in signs if sign is not None), default=None)
    state = _state(run, spent.state if spent else None, beat)
    timing = step.get("timing")
    return Overview(
        name=run.path.name,
        state=state,
        doing=_doing(beat) if state == "running" else "",
        step=step.get("step", 0 if spent else None),
        steps=_steps(run, beat),
        loss=step.get("loss"),
        held_out=held_out or None,
        tokens_per_second=timing.get("tokens_per_second") if isinstance(timing, dict) else None,
        goodput=spent.share_of("step") if spent else None,
        last=last,
    )


def _state(run: RunFolder, ended: str | None, beat: Heartbeat | None) -> str:
    if ended is None and beat is None:
        return "unknown" if run.metrics_file.exists() else "new"
    if ended is not None and ended != "running or killed":
        return ended
    if not is_remote(run.path) and is_held(run.lock_file):
        return "running"
    if beat is None or time.time() - beat.at > _SILENT_SECONDS:
        return "killed"
    if beat.host == socket.gethostname() and not os.path.exists(f"/proc/{beat.pid}") and os.path.exists("/proc/self"):
        return "killed"
    return "running"


def _doing(beat: Heartbeat | None) -> str:
    if beat is None:
        return ""
    still = time.time() - beat.moved
    return f"{beat.activity}, nothing done for {still / 60:.0f} min" if still > _STUCK_SECONDS else beat.activity


def _steps(run: RunFolder, beat: Heartbeat | None) -> int | None:
    if beat is not None and beat.steps:
        return beat.steps
    try:
        steps = [stage.steps for stage in load_config(run.config_file).stages]
    except (ConfigError, OSError):
        return None
    return sum(step for step in steps if step is not None) if steps and None not in steps else None


def _latest(path: Path) -> tuple[dict[str, Any], dict[str, float | None]]:
    """Returns the last step's line, and the latest held-out losses. Reads only the end of the file."""
    step: dict[str, Any] = {}
    held_out: dict[str, float | None] = {}
    if not path.exists():
        return step, held_out
    with path.open("rb") as file:
        for number, (_, text) in enumerate(lines_backwards(file, end_of(path))):
            if number > _READ:
                break
            line = parse_line(text)
            if line is None:
                continue
            if line["kind"] == "train" and not step:
                step = line
            if line["kind"] == "held_out" and "weights" not in line:
                held_out.setdefault(str(line.get("task")), line.get("loss"))
    return step, held_out


def _changed(path: Path) -> float | None:
    return path.stat().st_mtime if path.exists() else None
