"""A sweep on disk: what was planned, where each run lives, what came of it.

    plan.json        the runs of the file as it was when the sweep was last started, each with its whole config
    runs/<id>/       a run's folder; result.json in it, once there is a result, appears whole or not at all
    locks/           see `lock`
    logs/<id>.log    what the process of a run said
    results.jsonl    one line for each run of the plan; what `solo fit` reads

Runs are known by their id alone. Those of an earlier file stay where they are, and are no part of the results.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solo.config import ConfigError, parse_config
from solo.files import is_complete, write_whole
from solo.scaling.laws.table_file import RESULTS
from solo.scaling.sweep.estimate import Estimate
from solo.scaling.sweep.identity import digest, run_id
from solo.scaling.sweep.lock import is_held
from solo.scaling.sweep.points import Point
from solo.scaling.sweep.spec import SweepSpec

# What a run can be: no result yet (pending, running, stale), or one (done, trunk, failed, diverged).
DONE = ("done", "trunk")
BAD = ("failed", "diverged")


@dataclass(frozen=True)
class SweepFolder:
    """`<folder>/<name>` of a sweep."""

    path: Path

    @property
    def plan_file(self) -> Path:
        """The planned runs."""
        return self.path / "plan.json"

    @property
    def results_file(self) -> Path:
        """One JSON object a run."""
        return self.path / RESULTS

    @property
    def locks(self) -> Path:
        """Who works on what."""
        return self.path / "locks"

    def run(self, id: str) -> Path:
        """The folder of a run."""
        return self.path / "runs" / id

    def result_file(self, id: str) -> Path:
        """What came of a run."""
        return self.run(id) / "result.json"

    def log(self, id: str) -> Path:
        """What its process said."""
        return self.path / "logs" / f"{id}.log"

    def result(self, id: str) -> dict[str, Any] | None:
        """What came of a run, or None."""
        try:
            found: dict[str, Any] = json.loads(self.result_file(id).read_text())
        except FileNotFoundError:
            return None
        return found

    def write_result(self, id: str, result: dict[str, Any]) -> None:
        """Write it whole, and bring the results up to date."""
        write_whole(self.result_file(id), json.dumps(result, indent=1) + "\n")
        self.write_results()

    def forget(self, id: str) -> None:
        """Take a bad result away, so that the run is started again; its last checkpoint stays."""
        self.result_file(id).unlink(missing_ok=True)

    def status(self, id: str) -> str:
        """pending, running, stale (begun, and nobody works on it), done, trunk, failed or diverged."""
        if result := self.result(id):
            return str(result["status"])
        if is_held(self.locks, id):
            return "running"
        # A result may have come between the two looks.
        if result := self.result(id):
            return str(result["status"])
        return "stale" if self.run(id).exists() else "pending"

    def has_checkpoint(self, id: str, step: int) -> bool:
        """Whether a run has saved a step."""
        return is_complete(self.run(id) / "checkpoints" / str(step))

    def write_plan(self, spec: SweepSpec, points: Sequence[Point]) -> None:
        """Write what is to be run."""
        plan = {"spec": spec.model_dump(mode="json"), "digest": spec_digest(spec), "points": list(map(_plain, points))}
        write_whole(self.plan_file, json.dumps(plan, indent=1) + "\n")

    def read_plan(self, spec: SweepSpec | None = None) -> list[Point]:
        """The planned runs. Raises ConfigError where there is no plan, or it is of another file than this one."""
        try:
            plan = json.loads(self.plan_file.read_text())
        except FileNotFoundError:
            raise ConfigError(
                f"{self.path} has no plan yet: start the sweep with --yes, or write its --slurm"
            ) from None
        if spec is not None and plan["digest"] != spec_digest(spec):
            raise ConfigError(
                f"the sweep's file has changed since {self.plan_file} was written: plan it again, with --yes or --slurm"
            )
        return [_point(entry) for entry in plan["points"]]

    def write_results(self) -> None:
        """Write the results of all planned runs. Two processes may do so at once: none's result is left out."""
        points = self.read_plan()
        seen = None
        while seen != (there := {point.id: self._stamp(point.id) for point in points}):
            lines = [json.dumps(row) + "\n" for row in self.rows(points)]
            write_whole(self.results_file, "".join(lines))
            seen = there

    def rows(self, points: Sequence[Point]) -> Iterator[dict[str, Any]]:
        """A row of the results for each run, whether it has one or not."""
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
                "trunk": point.trunk or "",
                "budget": point.budget,
                "unique_tokens": found.unique_tokens,
                "planned": {"tokens": found.tokens, "flops": found.flops},
            }

    def strangers(self, points: Sequence[Point]) -> list[str]:
        """Ids of runs that lie here and are of none of these points."""
        known = {point.id for point in points}
        runs = self.path / "runs"
        return sorted(path.name for path in runs.iterdir() if path.name not in known) if runs.is_dir() else []

    def _stamp(self, id: str) -> int | None:
        try:
            return self.result_file(id).stat().st_mtime_ns
        except FileNotFoundError:
            return None


def spec_digest(spec: SweepSpec) -> str:
    """Of what decides the runs, not of how fast or on what they are started."""
    free = {"machine", "limits", "jobs"}
    return digest(spec.model_dump(mode="json", exclude=free))


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
        raise ConfigError(f"run {entry['id']} of the plan is {run_id(config)} now: it was planned by another version")
    return Point(**{**entry, "config": config, "estimate": Estimate(**entry["estimate"])})
