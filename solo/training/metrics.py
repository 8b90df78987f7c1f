"""`metrics.jsonl`: one line per training step, plan of a stage, and evaluation result.

Every line is a JSON object with a `kind` and the `step` of the run that it belongs to. The line of a step
holds the measurements of the loss terms (`solo.training.losses`) and the counts of the trainer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from solo.config import Difference
from solo.data.planning.stage_plan import StagePlan
from solo.files import JsonLinesFile, json_line, read_json_lines, write_whole
from solo.training.boards import Board, Shown
from solo.training.metrics_file import cut, end_of, missing_lines, repair, whole_line
from solo.training.run_folder import RunFolder


class Metrics:
    """Writes nothing. Processes other than the first use it."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Takes one line."""

    def sync(self) -> None:
        """Returns once all lines are stored durably."""

    def close(self) -> None:
        """Closes the files."""


class MetricsStream(Metrics):
    """Writes `metrics.jsonl`, and passes its lines to boards such as TensorBoard.

    When a run resumes, lines after the step that it resumes from are dropped, so the file contains every step once.
    This takes no longer for a long run than for a short one: the rest of the file is checked while the run continues,
    and boards receive the lines that they lack.

    Args:
        run: the run's folder.
        resume_step: the step that the run resumes after.
        began_after: the step after which its first attempt began: 0, or the step of a branch. None if it is unknown.
        boards: boards that show the lines.
        tell: called with every message for the user, from any thread.

    damage  messages about lines that are missing up to `resume_step`: a machine may stop before the file is stored.
            The list is complete after the stream is closed
    """

    def __init__(
        self,
        run: RunFolder,
        resume_step: int,
        began_after: int | None = None,
        boards: Sequence[Board] = (),
        tell: Callable[[str], None] = lambda text: None,
    ):
        self.damage: list[str] = []
        self._path, self._tell = run.metrics_file, tell
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        if aside := cut(self._path, resume_step):
            self._say(f"left out: lines at its end that cannot be read; the file as it was is {aside}")
        self._file = JsonLinesFile(self._path)
        end = end_of(self._path)
        self._shown = [Shown(board, self._path, end, resume_step, tell) for board in boards]
        self._check = threading.Thread(
            target=self._look, args=(end, resume_step, began_after), name="metrics-check", daemon=True
        )
        self._check.start()

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends one line; it has a `kind` and a `step`. Numbers that are not finite are written as null."""
        with self._lock:
            self._file.write(line)
        for shown in self._shown:
            shown.put(line)

    def sync(self) -> None:
        """Returns once all lines are stored durably."""
        with self._lock:
            self._file.sync()

    def close(self) -> None:
        """Closes the file after it has been checked, and the boards after they have shown all lines."""
        self._check.join()
        with self._lock:
            self._file.close()
        for shown in self._shown:
            shown.close()

    def _look(self, end: int, resume_step: int, began_after: int | None) -> None:
        """Checks the lines before `end`. Damaged lines are removed, and a copy of the original file is kept."""
        try:
            damage = missing_lines(self._path, end, resume_step, began_after)
            if damage.needs_repair:
                with self._lock:
                    self._file.close()
                    try:
                        aside = repair(self._path, end, resume_step)
                    finally:
                        self._file = JsonLinesFile(self._path)
                self._say(f"{damage.what_was_wrong}; the file as it was is {aside}")
            for text in damage.missing:
                self._say(text)
        except OSError as error:
            self._say(f"could not be checked: {error}")

    def _say(self, text: str) -> None:
        self.damage.append(f"{self._path}: {text}")
        self._tell(self.damage[-1])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads a metrics file. Damaged lines, such as those truncated by a kill, are left out."""
    return [line for line in read_json_lines(path)[0] if whole_line(line)]


def plan_line(plan: StagePlan, step: int) -> dict[str, Any]:
    """Returns the line that precedes a stage's first step: row shape, documents and their repetitions."""
    return {
        "kind": "plan",
        "step": step,
        "stage": plan.stage.name,
        "patch_slots": plan.shape.patch_slots,
        "text_slots": plan.shape.text_slots,
        "target_slots": plan.shape.target_slots,
        "sources": {
            name: {
                "documents": found.documents,
                "split": found.split,
                "dropped": dict(found.dropped),
                "expected_passes": plan.expected_passes[name],
            }
            for name, found in plan.chunks.items()
        },
    }


def changed_values(changes: Iterable[Difference]) -> dict[str, list[Any]]:
    """Returns dotted key -> [old value, new value]."""
    return {change.key: [change.old, change.new] for change in changes}


def resumed_line(step: int, changes: Iterable[Difference], machine: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the line of a run that resumes after a step with changed keys, on a machine; see `changed_values`.

    A run that resumes with an unchanged config writes no such line, so its metrics equal those of a run that never
    stopped.
    """
    return {"kind": "resumed", "step": step, "changes": changed_values(changes), "on": dict(machine)}


def drop_quarantined_after(path: Path, step: int) -> list[str]:
    """Drops entries of later steps from the quarantine, because a resumed run repeats these steps.

    Returns:
        Messages about damaged lines, which are dropped, too.
    """
    found, broken = read_json_lines(path)
    whole = [line for line in found if type(line.get("step", 0)) is int]
    broken += len(found) - len(whole)
    kept = [line for line in whole if line.get("step", 0) <= step]
    if broken or len(kept) < len(found):
        write_whole(path, "".join(map(json_line, kept)))
    return [f"{path}: {broken} damaged lines were left out"] if broken else []
