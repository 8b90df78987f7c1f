"""Random sources and settings: rows fit, and nothing is lost or placed twice."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings

from tests.fuzz.packer import GEOMETRIES, SHAPES, SOURCES, STAGES, check_plan


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(SOURCES, GEOMETRIES, SHAPES, STAGES)
def test_plans_place_everything_once(sources: Any, geometry: Any, shape: Any, stage: Any) -> None:
    check_plan(sources, geometry, shape, stage)
