"""Files of a sweep that another version wrote, or that are damaged; and the speed of its finished runs."""

import json
from pathlib import Path

import pytest

from solo.config import ConfigError
from solo.scaling.sweep.costs import costs, finished
from solo.scaling.sweep.folder import SweepFolder
from solo.scaling.sweep.points import expand
from tests.scaling.sweep.tiny_sweep import planned


def test_plans_of_other_versions_and_damaged_results_are_explained(tmp_path: Path) -> None:
    spec = planned(tmp_path)
    (point,), folder = expand(spec), SweepFolder(spec.path)
    folder.write_plan(spec, [point])
    assert folder.read_plan() == [point]
    assert folder.read_spec() == spec
    whole = folder.plan_file.read_text()
    for damaged in (whole[:200], "[]", "{}", whole.replace('"stable_run"', '"trunk"')):
        folder.plan_file.write_text(damaged)
        with pytest.raises(ConfigError, match=r"plan.json cannot be used; .* Write it again"):
            folder.read_plan()
    folder.run(point.id).mkdir(parents=True)
    folder.result_file(point.id).write_text('{"status": "do')
    with pytest.raises(ConfigError, match=r"result.json is damaged .* delete it, and the run resumes"):
        folder.status(point.id)


def test_missing_runs_are_costed_at_the_speed_of_the_finished_ones(tmp_path: Path) -> None:
    spec = planned(tmp_path, design={"grid": {"steps": [10, 20]}})
    points, folder = expand(spec), SweepFolder(spec.path)
    folder.run(points[0].id).mkdir(parents=True)
    folder.result_file(points[0].id).write_text(json.dumps({"status": "done", "flops_per_second": 1e6}))
    found = costs(spec, points[1:], finished(points, folder))
    seconds = spec.machine.startup_seconds + points[1].estimate.flops / 1e6
    assert found.seconds == {points[1].id: pytest.approx(seconds)}
    assert found.hours == pytest.approx(seconds / 3600)
