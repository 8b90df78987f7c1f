"""`metrics.jsonl`: one line per training step, plan of a stage, and evaluation result.

Every line is a JSON object with a `kind` and the `step` of the run that it belongs to. The line of a step
holds the measurements of the loss terms (`solo.training.losses`) and the counts of the trainer.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from solo.config import Difference
from solo.data.planning.stage_plan import StagePlan
from solo.files import JsonLinesFile, json_line, read_json_lines, write_whole
from solo.training.run_folder import RunFolder


class Metrics:
    """Writes nothing, for processes other than the first."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Takes one line."""

    def sync(self) -> None:
        """Returns once all lines are stored durably."""

    def close(self) -> None:
        """Closes the files."""


class MetricsStream(Metrics):
    """Writes `metrics.jsonl`, and TensorBoard files made from its lines.

    When a run resumes, lines after the step that it resumes from are dropped and the TensorBoard files are rewritten
    from the rest, so that both show every step once.

    Args:
        run: the run's folder.
        resume_step: the step that the run resumes after.
        began_after: the step that its first attempt began after: 0, or that of a branch. None if it is unknown.

    damage  messages about lines that the file lacks up to `resume_step`: a machine may stop before the file is stored
    """

    def __init__(self, run: RunFolder, resume_step: int, began_after: int | None = None):
        # Imported here: it is slow, and help does not need it.
        from tensorboardX import SummaryWriter

        found, broken = _read_metrics(run.metrics_file)
        kept = _without_repeats(_up_to(found, resume_step))
        self.damage = [f"{run.metrics_file}: {text}" for text in _damage(kept, broken, resume_step, began_after)]
        write_whole(run.metrics_file, "".join(map(json_line, kept)))
        shutil.rmtree(run.tensorboard, ignore_errors=True)
        self._board = SummaryWriter(str(run.tensorboard))
        self._file = JsonLinesFile(run.metrics_file)
        for line in kept:
            self._show(line)

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends one line; it has a `kind` and a `step`. Numbers that are not finite are written as null."""
        self._file.write(_finite(line))
        self._show(line)

    def sync(self) -> None:
        """Returns once all lines are stored durably."""
        self._file.sync()

    def close(self) -> None:
        """Closes the file and TensorBoard's."""
        self._file.close()
        self._board.close()

    def _show(self, line: Mapping[str, Any]) -> None:
        prefix = "/".join(str(line[name]) for name in ("kind", "task") if name in line)
        for name, value in _scalars(_finite(line), prefix):
            self._board.add_scalar(name, value, line["step"])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads a metrics file. Lines that are damaged, as by a kill, are left out."""
    return _read_metrics(path)[0]


def _read_metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    found, broken = read_json_lines(path)
    whole = [line for line in found if isinstance(line.get("kind"), str) and type(line.get("step")) is int]
    return whole, broken + len(found) - len(whole)


def _up_to(lines: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    """Leaves out lines of later steps. Changed keys stay in force, also if the run resumes from an earlier step."""
    kept = [line for line in lines if line["step"] <= step]
    return kept + [{**line, "step": step} for line in lines if line["kind"] == "resumed" and line["step"] > step]


def _without_repeats(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leaves out lines of steps that have a later line."""
    last = {line["step"]: number for number, line in enumerate(lines) if line["kind"] == "train"}
    return [line for number, line in enumerate(lines) if line["kind"] != "train" or last[line["step"]] == number]


def _damage(kept: list[dict[str, Any]], broken: int, resume_step: int, began_after: int | None) -> list[str]:
    """Returns messages about lines missing up to the step that a run resumes from."""
    found = [f"{broken} damaged lines were left out"] if broken else []
    steps = {line["step"] for line in kept if line["kind"] == "train"}
    first = min(steps, default=resume_step + 1) if began_after is None else began_after + 1
    if missing := sorted(set(range(first, resume_step + 1)) - steps):
        where = f"steps {missing[0]} to {missing[-1]}" if len(missing) > 1 else f"step {missing[0]}"
        found.append(f"{len(missing)} lines are missing in {where}, although a later checkpoint was saved")
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(line: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}/{name}")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
            yield f"{prefix}/{name}", value


def plan_line(plan: StagePlan, step: int) -> dict[str, Any]:
    """Returns the line that precedes a stage's first step: its row shape, its documents and their repetitions."""
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

    Runs that resume with their config write none, so that their metrics are those of a run that never stopped.
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
