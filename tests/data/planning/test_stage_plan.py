from __future__ import annotations

import hashlib
import json
import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from solo.config import ConfigError, DataConfig, StageConfig
from solo.data.planning.stage_plan import Chunk, StagePlan
from solo.data.store.index import make_index
from tests.benchmarks.mixtures import (
    CASES,
    IMAGES,
    data_config,
    grids,
    image_source,
    quickstart,
    stage,
    text_source,
)

FIXED = {"patch_slots": 184, "text_slots": 832, "target_slots": 824}


def small(**settings: object) -> StagePlan:
    """A plan with windows of 16 rows, 4 rows a batch."""
    sources = quickstart(400)
    settings = {"batch_rows": 4, **FIXED, **settings}
    return StagePlan(
        stage(dict.fromkeys(sources, 1.0), **settings), sources, IMAGES, data_config(sources, packing_window=16), 5
    )


@pytest.mark.parametrize(
    ("case", "fill"),
    [
        ("quickstart, by documents", 0.99),
        ("quickstart, by tokens", 0.99),
        ("quickstart, images only", 0.99),
        ("long-tailed, 50% text", 0.98),
        ("long-tailed, 70% text", 0.98),
    ],
)
def test_rows_are_full(case: str, fill: float) -> None:
    """At least `fill` of all slots hold something, in the first steps and later."""
    sources, config = CASES[case]()
    plan = StagePlan(config, sources, IMAGES, data_config(sources), seed=0)
    assert plan.statistics(0, 32).fill >= fill
    assert plan.statistics(128, 192).fill >= fill
    assert abs(plan.shape.slots / config.row_slots - 1) <= 0.12


def test_the_largest_image_has_room_however_rare() -> None:
    sources = {
        "text": text_source(np.full(500, 100)),
        "images": image_source(50, grids(range(12, 13), range(12, 13)), (1, 5), (1, 20), 0),
    }
    plan = StagePlan(stage({"text": 1.0, "images": 0.01}), sources, IMAGES, data_config(sources), 0)
    assert plan.shape.patch_slots >= 144
    assert not plan.chunks["images"].dropped


def test_text_alone_needs_no_patch_slots() -> None:
    sources = {"text": text_source(np.random.default_rng(0).integers(50, 401, 500))}
    plan = StagePlan(stage({"text": 1.0}), sources, IMAGES, data_config(sources), seed=0)
    assert plan.shape.patch_slots == 0
    assert plan.fill(32) > 0.99


def test_statistics_count_what_rows_hold() -> None:
    plan = small()
    chunks = [chunk for step in range(3, 9) for row in plan.rows(step) for chunk in row]
    found = plan.statistics(3, 9)
    assert (found.rows, found.slots) == (24, 24 * 1016)
    assert found.useful.tolist() == np.sum([chunk.needs for chunk in chunks], axis=0).tolist()
    assert found.documents == tuple(Counter(chunk.source for chunk in chunks)[source] for source in range(4))
    assert found.fill == found.useful[:2].sum() / found.slots


def test_chunks_are_those_of_the_index() -> None:
    plan = small()
    counts = [index.counts(IMAGES) for index in quickstart(400).values()]
    for chunk in (chunk for row in plan.rows(7) for chunk in row):
        assert list(chunk.needs) == counts[chunk.source][chunk.record].tolist()
        assert (chunk.start, chunk.stop) == (0, chunk.needs[0] + chunk.needs[1])


def test_any_order_of_access_gives_the_same_rows() -> None:
    steps = list(range(40))
    forwards = small()
    expected = [forwards.rows(step) for step in steps]
    backwards = small()
    assert [backwards.rows(step) for step in reversed(steps)] == expected[::-1]
    jumping = small()
    order = np.random.default_rng(0).permutation(40).tolist()
    assert [jumping.rows(step) for step in order] == [expected[step] for step in order]
    assert [forwards.rows(step) for step in steps] == expected, "again, from the start"


def test_threads_see_the_same_rows() -> None:
    plan = small()
    expected = [plan.rows(step) for step in range(32)]
    plan = small()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(plan.rows, range(32))) == expected


def test_a_snapshot_starts_planning_where_it_was_taken() -> None:
    plan = small()
    expected = plan.rows(30)
    snapshot = json.loads(json.dumps(plan.snapshot(30)))
    resumed = small()
    resumed.seek(snapshot)
    planned = []
    resumed._planner._plan = lambda number, state, plan=resumed._planner._plan: (
        planned.append(number) or plan(number, state)
    )  # type: ignore[method-assign,func-returns-value]
    assert resumed.rows(30) == expected
    assert planned == [7], "nothing before the snapshot's window is planned again"
    assert resumed.rows(2) == plan.rows(2), "what is before it can still be had"
    assert len(json.dumps(plan.snapshot(200))) < 20_000


@pytest.mark.parametrize("other", [{"batch_rows": 10}, {"name": "other"}, {"text_slots": 840}])
def test_a_snapshot_of_another_plan_is_refused(other: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="another plan"):
        small(**other).seek(small().snapshot(4))


def test_a_pickled_plan_goes_on() -> None:
    plan = small()
    expected = plan.rows(21)
    copy = pickle.loads(pickle.dumps(plan))
    assert copy.rows(21) == expected


def test_a_long_run_forgets_states_but_not_the_rows() -> None:
    plan = small()
    expected = plan.rows(3)
    last = plan.rows(4 * 140)
    assert len(plan._planner._states) <= 129
    assert plan.rows(3) == expected
    assert plan.rows(4 * 140) == last


def test_states_are_replayed_in_the_middle_too() -> None:
    plan = small()
    states = {number: plan._planner.state(number) for number in range(0, 180)}
    assert len(plan._planner._states) <= 129
    for number in range(1, 90):
        found = plan._planner.state(number)
        assert found.drawn == states[number].drawn
        assert np.array_equal(found.carry, states[number].carry)


def _placed(plan: StagePlan) -> list[Chunk]:
    return [chunk for step in range(plan.num_steps) for row in plan.rows(step) for chunk in row]


def test_a_length_in_tokens_is_as_many_steps_as_they_take() -> None:
    plan = small(steps=None, tokens=1_000_000)
    assert plan.statistics(0, plan.num_steps).useful[:2].sum() == pytest.approx(1_000_000, rel=0.02)
    same = small(steps=plan.num_steps)
    assert plan.rows(plan.num_steps - 1) == same.rows(plan.num_steps - 1)
    assert small(steps=None, tokens=1).num_steps == 1


def test_epochs_place_each_document_that_many_times() -> None:
    plan = small(steps=None, epochs=2.0)
    times = Counter((chunk.source, chunk.record) for chunk in _placed(plan))
    assert times == {(source, record): 2 for source in range(4) for record in range(400)}


def test_epochs_place_every_chunk_of_long_documents_once() -> None:
    lengths = np.random.default_rng(0).integers(10, 3000, 200)
    sources = {
        "text": text_source(lengths),
        "images": image_source(900, grids(range(2, 9), range(2, 9)), (1, 5), (1, 20), 1),
    }
    plan = StagePlan(
        stage({"text": 1.0, "images": 1.0}, epochs=1.0, batch_rows=4),
        sources,
        IMAGES,
        data_config(sources, packing_window=8),
        0,
    )
    assert plan.chunks["text"].split > 50
    slots: dict[tuple[int, int], list[int]] = {}
    for chunk in _placed(plan):
        slots.setdefault((chunk.source, chunk.record), []).extend(range(chunk.start, chunk.stop))
    counts = [index.counts(IMAGES)[:, :2].sum(axis=1) for index in sources.values()]
    assert len(slots) == 1100
    assert all(sorted(found) == list(range(counts[source][record])) for (source, record), found in slots.items())


def test_the_end_of_a_finite_stage_is_padded_with_empty_rows() -> None:
    sources = {"text": text_source(np.full(21, 100))}
    plan = StagePlan(
        stage({"text": 1.0}, epochs=1.0, batch_rows=4, patch_slots=0, text_slots=500),
        sources,
        IMAGES,
        data_config(sources),
        0,
    )
    assert plan.num_steps == 2
    assert [len(row) for step in range(2) for row in plan.rows(step)][5:] == [0, 0, 0]
    assert len(_placed(plan)) == 21
    assert plan.fill(2) == 21 * 100 / (8 * 500)
    with pytest.raises(IndexError, match="2 steps"):
        plan.rows(2)


@pytest.mark.parametrize(("settings", "digest"), [({}, "1ec3e238b6daeb2a"), ({"epochs": 2.0}, "73522f4b039799d0")])
def test_the_plan_of_a_constant_mixture_is_what_it_always_was(settings: dict[str, object], digest: str) -> None:
    """Runs of earlier versions can be repeated and resumed."""
    plan = small(**settings)
    found = hashlib.sha256()
    for step in [0, 1, 5, 20]:
        for row in plan.rows(step):
            found.update(repr([(c.source, c.record, c.start, c.stop) for c in row]).encode())
    assert found.hexdigest()[:16] == digest


def test_a_snapshot_of_an_earlier_version_is_continued() -> None:
    """It held the positions of the waiting documents in the stream, in place of their chunks."""
    plan, resumed = small(), small()
    snapshot = plan.snapshot(41)
    planner, cursor = plan._planner, snapshot["drawn"]["cursor"]
    drawn = planner.numbers(*planner.draws.stream.lookup(np.arange(cursor)))
    carry = [int(np.flatnonzero(drawn == chunk)[-1]) for chunk in snapshot["waiting"]]
    resumed.seek({"plan": snapshot["plan"], "window": snapshot["window"], "cursor": cursor, "carry": carry})
    assert resumed.rows(41) == plan.rows(41)
    assert resumed.rows(60) == plan.rows(60)


def test_no_document_waits_forever() -> None:
    """A text of nearly a whole row fits with almost nothing, but must still be placed."""
    sources = {
        "images": image_source(60_000, grids(range(3, 7), range(3, 7)), (1, 5), (1, 20), 0),
        "text": text_source(np.full(4000, 480)),
    }
    config = stage({"images": 20.0, "text": 1.0}, batch_rows=4, patch_slots=512, text_slots=512)
    plan = StagePlan(config, sources, IMAGES, data_config(sources, packing_window=16), 0)
    assert plan.statistics(0, 200).documents[1] > 50
    snapshot, planner = plan.snapshot(200), plan._planner
    cursor = snapshot["drawn"]["cursor"]
    assert cursor < 60_000, "no image is drawn twice"
    drawn = planner.numbers(*planner.draws.stream.lookup(np.arange(cursor)))
    assert cursor - np.flatnonzero(drawn == snapshot["waiting"][0])[-1] < 8000


def test_a_ratio_that_does_not_suit_the_data_costs_fill_but_works() -> None:
    plan = small(patch_slots=512, text_slots=512, target_slots=512)
    assert 0.4 < plan.statistics(60, 100).fill < 0.75


def test_a_lasting_surplus_is_not_carried_along() -> None:
    sources = {name: index for name, index in quickstart(400).items() if name in ("digits", "text")}
    config = stage({"digits": 0.001, "text": 1.0}, batch_rows=4, patch_slots=512, text_slots=512)
    plan = StagePlan(config, sources, IMAGES, data_config(sources, packing_window=16), 0)
    assert len(plan.snapshot(40)["waiting"]) < 1200


def test_a_source_that_fits_no_row_is_an_error() -> None:
    sources = {"images": image_source(10, grids(range(8, 9), range(8, 9)), (1, 5), (1, 20), 0)}
    with pytest.raises(ConfigError, match=r"no record of source 'images'.*max_side"):
        StagePlan(stage({"images": 1.0}, patch_slots=32, text_slots=64), sources, IMAGES, data_config(sources), 0)


def test_an_empty_source_is_an_error_that_names_it() -> None:
    empty = make_index(np.zeros(0, np.uint8), np.zeros((0, 2), np.int32), np.zeros(1, np.int64))
    with pytest.raises(ConfigError, match="'text'"):
        StagePlan(stage({"text": 1.0}), {"text": empty}, IMAGES, data_config({"text": 1.0}), 0)


def test_sources_must_be_those_of_the_mixture() -> None:
    with pytest.raises(ConfigError, match="mixes"):
        StagePlan(stage({"other": 1.0}), quickstart(10), IMAGES, data_config({"other": 1.0}), 0)


def test_a_given_shape_is_kept() -> None:
    plan = small()
    assert (plan.shape.patch_slots, plan.shape.text_slots, plan.shape.target_slots) == (184, 832, 824)


@pytest.mark.parametrize("slot_multiple", [8, 32, 128])
def test_a_chosen_shape_has_multiples_and_holds_the_largest_image(slot_multiple: int) -> None:
    sources = quickstart(300)
    config: StageConfig = stage(dict.fromkeys(sources, 1.0), slot_multiple=slot_multiple)
    data: DataConfig = data_config(sources)
    shape = StagePlan(config, sources, IMAGES, data, 0).shape
    assert shape.patch_slots % slot_multiple == shape.text_slots % slot_multiple == 0
    assert shape.patch_slots >= 48
    assert shape.target_slots <= shape.text_slots


@pytest.mark.parametrize("slots", [{"row_slots": 64}, {"patch_slots": 0, "text_slots": 64}])
def test_records_without_slots_are_refused(slots: dict[str, int]) -> None:
    sources = {"empty": make_index(np.zeros(0, np.uint8), np.zeros((0, 2), np.int32), np.zeros(4, np.int64))}
    with pytest.raises(ConfigError, match="hold neither text nor images"):
        StagePlan(stage({"empty": 1.0}, **slots), sources, IMAGES, data_config(sources), 0)
