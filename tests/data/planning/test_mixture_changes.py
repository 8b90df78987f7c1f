"""Weights that change over the steps of a stage, and caps on how often a source is read."""

from __future__ import annotations

import json

import numpy as np
import pytest

from solo.config import ConfigError, StageConfig
from solo.data.planning.draws import interleave
from solo.data.planning.stage_plan import StagePlan
from tests.benchmarks.mixtures import IMAGES, data_config, stage, text_source

FIXED = {"patch_slots": 0, "text_slots": 400, "target_slots": 400}
SOURCES = {name: text_source(np.full(count, 40)) for name, count in (("a", 3000), ("b", 500), ("new", 700))}


def plan(mixture: dict[str, float], **settings: object) -> StagePlan:
    """Windows of 16 rows, which are 4 steps; 10 documents fill a row, and 40 a step."""
    config = stage(mixture, **{"batch_rows": 4, "steps": 2000, **FIXED, **settings})
    sources = {name: SOURCES[name] for name in config.sources}
    return StagePlan(config, sources, IMAGES, data_config(sources, packing_window=16), 5)


def shares(found: StagePlan, start: int, stop: int) -> np.ndarray:
    documents = np.asarray(found.statistics(start, stop).documents)
    return documents / documents.sum()


def rows(found: StagePlan, start: int, stop: int) -> list[list[tuple[int, int]]]:
    return [[(c.source, c.record) for c in row] for step in range(start, stop) for row in found.rows(step)]


def test_steps_of_a_schedule_change_the_shares_at_once() -> None:
    found = plan({"a": 3.0, "b": 1.0}, mixture_schedule={100: {"a": 1.0}, 200: {"a": 0.0}})
    for start, stop, expected in ((0, 100, 0.75), (108, 200, 0.5), (208, 300, 0.0)):
        assert shares(found, start, stop)[0] == pytest.approx(expected, abs=0.01)
    assert found.weights(99) == {"a": 3.0, "b": 1.0}
    assert found.weights(100) == {"a": 1.0, "b": 1.0}


def test_a_linear_schedule_is_followed_in_every_window_of_steps() -> None:
    found = plan({"a": 1.0, "b": 0.0}, mixture_between="linear", mixture_schedule={400: {"a": 0.0, "b": 1.0}})
    for start in range(0, 400, 40):
        assert shares(found, start, start + 40)[1] == pytest.approx((start + 20) / 400, abs=0.02)
    assert shares(found, 412, 500)[1] == 1.0


def test_draws_keep_to_their_shares_to_within_a_document() -> None:
    credit, drawn, wanted = np.zeros(3), np.zeros(3), np.zeros(3)
    rng = np.random.default_rng(0)
    for _ in range(200):
        share = rng.dirichlet([0.3, 1, 1])
        count = int(rng.integers(1, 50))
        source = interleave(share, credit, count)
        assert len(source) == count
        for length in range(1, count + 1):
            taken = np.bincount(source[:length], minlength=3)
            assert np.abs(wanted + share * length - drawn - taken).max() < 1.6
        drawn, wanted = drawn + np.bincount(source, minlength=3), wanted + share * count
        credit = wanted - drawn


def test_a_change_leaves_the_steps_before_it_as_they_were() -> None:
    before = plan({"a": 3.0, "b": 1.0})
    after = plan({"a": 3.0, "b": 1.0}, mixture_changes={102: {"b": 5.0, "new": 2.0}})
    assert after.shape == before.shape
    assert rows(after, 0, 104) == rows(before, 0, 104), "a window is 4 steps: the change takes effect at step 104"
    assert rows(after, 104, 112) != rows(before, 104, 112)
    assert after.weights(103) == {"a": 3.0, "b": 1.0, "new": 0.0}
    assert after.weights(104) == {"a": 3.0, "b": 5.0, "new": 2.0}
    assert shares(after, 112, 300) == pytest.approx([0.3, 0.5, 0.2], abs=0.01)
    snapshot = before.snapshot(103)
    after.seek(snapshot)  # a run that stopped before the change resumes with it


@pytest.mark.parametrize("change", [100, 102, 300])
def test_no_document_is_lost_or_repeated_where_the_mixture_changes(change: int) -> None:
    found = plan({"a": 3.0, "b": 1.0}, mixture_changes={change: {"a": 1.0, "new": 1.0}})
    placed = np.asarray([chunk for row in rows(found, 0, 600) for chunk in row])
    waiting = np.asarray(found.snapshot(600)["waiting"], np.int64)
    first = np.asarray([0, 3000, 3500])  # chunks are counted over all sources
    drawn = np.concatenate([first[placed[:, 0]] + placed[:, 1], waiting])
    for times in np.split(np.bincount(drawn, minlength=4200), [3000, 3500]):
        assert times.max() - times.min() <= 1, "every chunk has been drawn equally often, to within one"


def test_a_plan_continues_from_a_snapshot_after_a_change() -> None:
    settings = {"mixture_between": "linear", "mixture_schedule": {300: {"a": 0.5}}}
    whole = plan({"a": 3.0, "b": 1.0}, **settings)
    snapshot = json.loads(json.dumps(whole.snapshot(150)))
    resumed = plan({"a": 3.0, "b": 1.0}, **settings)
    resumed.seek(snapshot)
    assert rows(resumed, 150, 170) == rows(whole, 150, 170)


def test_learned_weights_hold_from_the_next_window_on() -> None:
    found, changed = plan({"a": 1.0, "b": 1.0}), plan({"a": 1.0, "b": 1.0})
    changed.rows(30)
    assert changed.change_weights(21, {"a": 0.2, "b": 0.8}) == 24
    assert rows(changed, 0, 24) == rows(found, 0, 24)
    assert shares(changed, 32, 200)[1] == pytest.approx(0.8, abs=0.01)


def test_expected_passes_are_those_that_are_drawn() -> None:
    for settings in ({}, {"mixture_schedule": {500: {"b": 3.0}}, "mixture_between": "linear"}):
        found = plan({"a": 1.0, "b": 1.0}, steps=1000, **settings)
        documents = found.statistics(0, 1000).documents
        for name, count, size in zip("ab", documents, (3000, 500), strict=True):
            assert found.expected_passes[name] == pytest.approx(count / size, rel=0.01)


def test_a_source_of_a_tiny_weight_is_named() -> None:
    found = plan({"a": 1.0, "b": 1e-6})
    assert found.rounded_up == {"b": pytest.approx(1e6 / 4096, rel=1e-3)}, "one in every block of 4,096"
    assert found.expected_passes["b"] == pytest.approx(2000 * 40 / 4096 / 500, rel=0.01)
    assert plan({"a": 1.0, "b": 0.1}).rounded_up == {}


def test_a_source_beyond_its_cap_is_refused_with_the_figures() -> None:
    with pytest.raises(ConfigError, match=r"b: about 40\.00 times, 4 allowed \(20,000 draws from 500 chunks\)"):
        plan({"a": 1.0, "b": 1.0}, steps=1000, max_epochs={"b": 4.0})
    assert plan({"a": 1.0, "b": 1.0}, steps=1000, max_epochs={"b": 41.0}).expected_passes["b"] == pytest.approx(40)


def test_an_exhausted_source_gives_its_weight_to_the_others() -> None:
    caps = {"max_epochs": {"b": 4.0}, "when_exhausted": "redistribute"}
    found = plan({"a": 1.0, "b": 1.0}, steps=400, **caps)
    documents = found.statistics(0, 400).documents
    assert documents[1] == 2000, "every document of b exactly four times"
    assert sum(documents) == pytest.approx(16_000, rel=0.01)
    assert found.expected_passes == {"a": pytest.approx(14_000 / 3000, rel=0.01), "b": 4.0}
    times = np.zeros(500, np.int64)
    for row in rows(found, 0, 400):
        np.add.at(times, [record for source, record in row if source == 1], 1)
    assert set(times.tolist()) == {4}


def test_a_stage_that_exhausts_every_source_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"every source reaches max_epochs after about 88 of 400 steps"):
        plan({"a": 1.0, "b": 1.0}, steps=400, max_epochs=1.0, when_exhausted="redistribute")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixture": {"a": 0.0, "b": 1.0}}, "the weight of 'a' is 0; it must be above 0, or leave it out"),
        ({"mixture": {"a": 1e12}}, "the weight of 'a' is 1e\\+12, above 1e\\+09"),
        ({"mixture_changes": {50: {"a": 1e12}}}, "mixture_changes.50: the weight of 'a' is 1e\\+12, above 1e\\+09"),
        ({"mixture_schedule": {5000: {"a": 1.0}}}, "mixture_schedule: step 5000 is not reached"),
        ({"mixture_schedule": {50: {"c": 1.0}}}, "mixture_schedule.50: 'c' is not a source"),
        ({"mixture_schedule": {50: {"a": 0.0, "b": 0.0}}}, "at every step some source needs a weight above 0"),
        ({"mixture_changes": {50: {"a": 0.0, "b": 0.0}}}, "at every step some source needs a weight above 0"),
        ({"max_epochs": {"c": 1.0}}, "max_epochs: 'c' is not a source"),
        ({"steps": None, "epochs": 1.0, "max_epochs": 1.0}, "max_epochs goes with steps"),
        ({"steps": None, "epochs": 1.0, "mixture_changes": {1: {"a": 1.0}}}, "mixture_changes counts steps"),
    ],
)
def test_mixtures_that_make_no_sense_are_refused(settings: dict, message: str) -> None:
    base = stage({"a": 1.0, "b": 1.0}, steps=2000).model_dump()
    with pytest.raises(ValueError, match=message):
        StageConfig.model_validate({**base, **settings})


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0])
def test_weights_that_are_no_weights_are_refused_by_name(weight: float) -> None:
    base = stage({"a": 1.0, "b": 1.0}, steps=2000).model_dump()
    for settings in ({"mixture": {"a": weight}}, {"mixture_schedule": {5: {"a": weight}}}):
        with pytest.raises(ValueError, match=r"mixture(_schedule\.5)?\.a\n"):
            StageConfig.model_validate({**base, **settings})
