"""A sweep on disk: the plan, the runs, and their results.

    plan.json        the runs as of the last start of the sweep, each with its whole config
    runs/<id>/       folder of a run; result.json is written atomically once there is a result
    locks/<id>       held by the process that trains the run
    logs/<id>.log    output of that process
    results.jsonl    one line for each run of the plan; `solo fit` reads it

Runs are identified by their ids, and are trained as planned even if the sweep's file changes in the meantime. Runs of
an earlier version of the file stay in the folder, but are not part of the results.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from solo.config import ConfigError, parse_config, parse_section
from solo.files import is_complete, json_text, write_whole
from solo.locks import is_held
from solo.scaling.laws.table_file import RESULTS
from solo.scaling.sweep.estimate import Estimate
from solo.scaling.sweep.identity import run_id
from solo.scaling.sweep.points import Point
from solo.scaling.sweep.spec import SweepSpec

T = TypeVar("T")

# Without a result, a run is pending, running or interrupted; with a result, it is done, stable, failed or diverged.
DONE = ("done", "stable")
BAD = ("failed", "diverged")


@dataclass(frozen=True)
class SweepFolder:
    """The folder `<folder>/<name>` of a sweep."""

    path: Path

    @property
    def plan_file(self) -> Path:
        """The file of the planned runs."""
        return self.path / "plan.json"

    @property
    def results_file(self) -> Path:
        """The file of results, with one JSON object per run."""
        return self.path / RESULTS

    def lock_file(self, id: str) -> Path:
        """Returns the lock of a run; see `lock`."""
        return self.path / "locks" / id

    def run(self, id: str) -> Path:
        """Returns the folder of a run."""
        return self.path / "runs" / id

    def result_file(self, id: str) -> Path:
        """Returns the file of a run's result."""
        return self.run(id) / "result.json"

    def log(self, id: str) -> Path:
        """Returns the log file of a run's process."""
        return self.path / "logs" / f"{id}.log"

    def result(self, id: str) -> dict[str, Any] | None:
        """Returns the result of a run, or None."""
        try:
            found: dict[str, Any] = json.loads(self.result_file(id).read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ConfigError(f"{self.result_file(id)} is damaged ({error}); delete it, and the run resumes") from None
        return found

    def write_result(self, id: str, result: dict[str, Any]) -> None:
        """Writes a run's result atomically, and updates `results.jsonl`."""
        write_whole(self.result_file(id), json_text(result, indent=1) + "\n")
        self.write_results()

    def forget(self, id: str) -> None:
        """Deletes a result, so that the run resumes from its last checkpoint."""
        self.result_file(id).unlink(missing_ok=True)

    def status(self, id: str) -> str:
        """Returns pending, running, interrupted, done, stable (a finished stable run), failed or diverged."""
        if result := self.result(id):
            return str(result["status"])
        if is_held(self.lock_file(id)):
            return "running"
        # The run may have finished since the first check.
        if result := self.result(id):
            return str(result["status"])
        return "interrupted" if self.run(id).exists() else "pending"

    def has_checkpoint(self, id: str, step: int) -> bool:
        """Returns whether a run has a complete checkpoint at a step."""
        return is_complete(self.run(id) / "checkpoints" / str(step))

    def write_plan(self, spec: SweepSpec, points: Sequence[Point]) -> None:
        """Writes the plan."""
        plan = {"spec": spec.model_dump(mode="json"), "points": list(map(_plain, points))}
        write_whole(self.plan_file, json_text(plan, indent=1) + "\n")

    def read_plan(self) -> list[Point]:
        """Returns the planned runs. Raises ConfigError if there is no plan, or it has another version."""
        return self._planned(lambda plan: [_point(entry) for entry in plan["points"]])

    def read_spec(self) -> SweepSpec:
        """Returns the sweep's file as it was when planned. Raises ConfigError as `read_plan` does."""
        return self._planned(lambda plan: parse_section(SweepSpec, plan["spec"], str(self.plan_file), "sweep"))

    def _planned(self, part: Callable[[Any], T]) -> T:
        try:
            return part(json.loads(self.plan_file.read_text()))
        except FileNotFoundError:
            raise ConfigError(
                f"{self.path} has no plan yet: start the sweep with --yes, or write a job array with --slurm"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{self.plan_file} cannot be used; another version may have written it. Write it again: solo sweep with"
                f" the sweep's file and --yes, --slurm or --configs. {type(error).__name__}: {error}"
            ) from None

    def write_results(self) -> None:
        """Writes the results of all planned runs. No result is lost if several processes call this at once."""
        points = self.read_plan()
        seen = None
        while seen != (there := {point.id: self._stamp(point.id) for point in points}):
            lines = [json_text(row) + "\n" for row in self.rows(points)]
            write_whole(self.results_file, "".join(lines))
            seen = there

    def rows(self, points: Sequence[Point]) -> Iterator[dict[str, Any]]:
        """Yields a row for each run, with or without a result."""
        for point in points:
            result = self.result(point.id) or {"status": self.status(point.id)}
            found = point.estimate
            yield {
                "id": point.id,
                **result,
                **point.labels,
                "width": point.config.model.width,
                "layers": point.config.model.layers,
                "steps": point.steps,
                "seed": point.config.seed,
                "n_active": found.n_active,
                "n_total": found.n_total,
                "stable_run": point.stable_run or "",
                "decay": point.decayed,
                "budget": point.budget,
                "unique_tokens": found.unique_tokens,
                "planned": {"tokens": found.tokens, "flops": found.flops},
            }

    def strangers(self, points: Sequence[Point]) -> list[str]:
        """Returns the ids of runs in the folder that are not among `points`."""
        known = {point.id for point in points}
        runs = self.path / "runs"
        return sorted(path.name for path in runs.iterdir() if path.name not in known) if runs.is_dir() else []

    def _stamp(self, id: str) -> int | None:
        try:
            return self.result_file(id).stat().st_mtime_ns
        except FileNotFoundError:
            return None


def _plain(point: Point) -> dict[str, Any]:
    fields = {field.name: getattr(point, field.name) for field in dataclasses.fields(point)}
    return {
        **fields,
        "config": point.config.model_dump(mode="json"),
        "estimate": dataclasses.asdict(point.estimate),
    }


def _point(entry: dict[str, Any]) -> Point:
    config = parse_config(entry["config"], origin=f"run {entry['id']} of the plan")
    if run_id(config) != entry["id"]:
        raise ConfigError(f"run {entry['id']} of the plan is {run_id(config)} now: another version planned it")
    return Point(**{**entry, "config": config, "estimate": Estimate(**entry["estimate"])})
