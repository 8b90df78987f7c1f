"""Decides whether a run is restarted.

    python -m solo.launch.restarts --state FILE --run-folder FOLDER [--max-restarts N] [--max-idle-restarts N]

runs before every start of a job that a scheduler restarts. It counts the start in FILE, and exits with status 1 if the
run was started too often, or several times in a row without a new checkpoint. Unless the run is in a bucket, it only
imports the standard library, so it works where nothing is installed yet.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from solo.files import COMMIT_MARKER, complete_checkpoints, is_remote, place, write_whole

MAX_RESTARTS = 100
MAX_IDLE_RESTARTS = 5
_FIRST_WAIT, _LONGEST_WAIT = 5.0, 300.0


def newest_step(run_folder: Path) -> int | None:
    """Returns the step of the newest complete checkpoint; None if there is none, or its bucket cannot be reached."""
    try:
        return max((int(path.name) for path in complete_checkpoints(run_folder / "checkpoints")), default=None)
    except OSError as error:
        print(f"launch: {error}", file=sys.stderr)
        return None


def newest_of(paths: list[str]) -> int | None:
    """Returns the highest step among paths that end in <step>/<marker of a complete checkpoint>, or None."""
    steps = [path.rstrip().split("/")[-2] for path in paths if path.rstrip().endswith(f"/{COMMIT_MARKER}")]
    return max((int(step) for step in steps if step.isdigit()), default=None)


@dataclass
class Restarts:
    """Counts the starts of a run.

    starts  number of starts so far
    idle    number of latest starts in a row without a newer checkpoint
    step    newest checkpoint of all starts. If it is damaged later and saved again, this is not counted as progress
    """

    maximum: int = MAX_RESTARTS
    max_idle: int = MAX_IDLE_RESTARTS
    starts: int = 0
    idle: int = 0
    step: int | None = None

    def start(self, step: int | None) -> str | None:
        """Count a start that finds this checkpoint. Returns a reason to refuse it, or None."""
        progress = step is not None and (self.step is None or step > self.step)
        if self.starts:
            self.idle = 0 if progress else self.idle + 1
        self.starts, self.step = self.starts + 1, step if progress else self.step
        if self.starts > self.maximum + 1:
            return f"it was restarted {self.maximum} times"
        if self.idle >= self.max_idle:
            where = "without a checkpoint" if self.step is None else f"without a checkpoint after step {self.step}"
            return f"it was restarted {self.idle} times in a row {where}"
        return None

    @property
    def wait(self) -> float:
        """Seconds before the next start, doubled after every start without progress."""
        return min(_FIRST_WAIT * 2**self.idle, _LONGEST_WAIT)


def main(arguments: list[str] | None = None) -> int:
    """Count a start. Returns 0, or 1 if it is refused."""
    parser = argparse.ArgumentParser(prog="python -m solo.launch.restarts", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--state", type=place, required=True)
    add_options(parser)
    parsed = parser.parse_args(arguments)
    try:
        return count(parsed.state, parsed.run_folder, parsed.max_restarts, parsed.max_idle_restarts)
    except OSError as error:
        if not is_remote(parsed.state):
            raise
        print(f"launch: this start is not counted: {error}", file=sys.stderr)
        return 0


def count(state: Path, run_folder: Path, max_restarts: int, max_idle_restarts: int) -> int:
    """Count a start in a file. Returns 0, or 1 if it is refused."""
    kept = _read(state)
    restarts = Restarts(**{**kept, "maximum": max_restarts, "max_idle": max_idle_restarts})
    refusal = restarts.start(newest_step(run_folder))
    _write(state, json.dumps(asdict(restarts)) + "\n")
    if refusal:
        print(f"launch: not restarted: {refusal}", file=sys.stderr)
        return 1
    print(f"launch: start {restarts.starts}, newest checkpoint {restarts.step}", file=sys.stderr)
    return 0


def _read(state: Path) -> dict[str, Any]:
    """Returns the counts of earlier starts; none if they are missing or damaged."""
    try:
        if is_remote(state):
            from solo.storage import Bucket

            return json.loads(Bucket(str(state.parent)).read(state.name) or "{}")
        return json.loads(state.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _write(state: Path, text: str) -> None:
    if is_remote(state):
        from solo.storage import Bucket

        Bucket(str(state.parent)).write(state.name, text.encode())
    else:
        write_whole(state, text)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that limit restarts."""
    parser.add_argument("--run-folder", type=place, required=True)
    parser.add_argument("--max-restarts", type=int, default=MAX_RESTARTS)
    parser.add_argument("--max-idle-restarts", type=int, default=MAX_IDLE_RESTARTS)


if __name__ == "__main__":
    sys.exit(main())
