"""Fuzzes planning and packing with random sources and settings: `python -m tests.fuzz.packer --inputs 2000`."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from solo.config import ConfigError, ImageConfig, OptimizerConfig, StageConfig
from solo.data.planning.stage_plan import Chunk, StagePlan
from solo.data.store.index import IMAGE, SUPERVISED_TEXT, TEXT, SourceIndex, make_index
from tests.benchmarks.mixtures import data_config

_MOST_STEPS = 200
TEXTS = st.tuples(
    st.sampled_from([TEXT, SUPERVISED_TEXT]), st.one_of(st.integers(1, 40), st.integers(1, 400)), st.just(0)
)
SIDES = st.one_of(st.integers(1, 64), st.sampled_from([1, 2, 1000, 65_535]))
IMAGES = st.tuples(st.just(IMAGE), SIDES, SIDES)
RECORDS = st.lists(st.one_of(TEXTS, TEXTS, IMAGES), max_size=8)
SOURCES = st.dictionaries(st.sampled_from("abc"), st.lists(RECORDS, max_size=12), min_size=1, max_size=3)
GEOMETRIES = st.one_of(
    st.fixed_dictionaries({"geometry": st.just("native"), "max_side": st.sampled_from([8, 32, 128])}),
    st.fixed_dictionaries({"geometry": st.just("area"), "max_pixels": st.sampled_from([64, 4096])}),
    st.fixed_dictionaries({"geometry": st.just("tiles"), "tile_size": st.just(16), "max_tiles": st.integers(1, 4)}),
    st.fixed_dictionaries({"geometry": st.just("padded"), "max_width": st.just(64), "max_height": st.just(48)}),
)
SHAPES = st.one_of(
    st.fixed_dictionaries({"row_slots": st.integers(16, 600)}),
    st.fixed_dictionaries(
        {"patch_slots": st.integers(0, 200), "text_slots": st.integers(1, 400)},
        optional={"target_slots": st.integers(1, 400)},
    ),
)
STAGES = st.fixed_dictionaries(
    {
        "batch_rows": st.integers(1, 5),
        "mixture_by": st.sampled_from(["documents", "tokens"]),
        "weight": st.lists(st.sampled_from([0.001, 0.5, 1.0, 3.0]), min_size=3, max_size=3),
        "length": st.sampled_from([{"epochs": 1.0}, {"epochs": 2.0}, {"steps": 20}, {"steps": 3}]),
        "packing_window": st.sampled_from([1, 3, 16, 256]),
        "overlong": st.sampled_from(["split", "drop"]),
    }
)


def index_of(records: list[list[tuple[int, int, int]]]) -> SourceIndex:
    """Returns the index of records, which are lists of runs (kind, tokens or width, height)."""
    runs = [run for record in records for run in record]
    table = np.asarray(runs, np.int64).reshape(-1, 3)
    return make_index(table[:, 0], table[:, 1:], np.cumsum([0, *map(len, records)]))


def check_plan(sources: dict[str, Any], geometry: dict[str, Any], shape: dict[str, Any], stage: dict[str, Any]) -> bool:
    """Plans a stage. Returns False if it is refused.

    Rows fit their slots, chunks of a record are its slots without a gap, and an epoch places every chunk once.
    """
    indexes = {name: index_of(records) for name, records in sources.items()}
    mixture = dict(zip(indexes, stage["weight"], strict=False))
    length = dict(stage["length"])
    if "epochs" in length:
        mixture = dict.fromkeys(mixture, 1.0)
    try:
        image = ImageConfig(patch_size=8, **geometry)
        config = StageConfig(
            name="fuzz",
            mixture=mixture,
            batch_rows=stage["batch_rows"],
            mixture_by="documents" if "epochs" in length else stage["mixture_by"],
            optimizer=OptimizerConfig(learning_rate=0.0),
            **length,
            **shape,
        )
        data = data_config(mixture, packing_window=stage["packing_window"], overlong=stage["overlong"])
        plan = StagePlan(config, indexes, image, data, seed=0)
    except (ConfigError, ValueError) as error:
        # pydantic's errors are ValueErrors, which the config turns into ConfigErrors
        if not isinstance(error, ConfigError) and "validation error" not in str(error):
            raise
        return False
    steps = min(plan.num_steps, _MOST_STEPS)
    rows = [row for step in range(steps) for row in plan.rows(step)]
    limits = np.asarray([plan.shape.patch_slots, plan.shape.text_slots, plan.shape.target_slots])
    counts = {name: index.counts(image) for name, index in indexes.items()}
    for row in rows:
        assert (np.sum([chunk.needs for chunk in row], axis=0) <= limits).all(), f"a row of {limits} overflows"
        for chunk in row:
            _check_chunk(chunk, counts[config.sources[chunk.source]])
    if plan.num_steps <= _MOST_STEPS:
        statistics = plan.statistics(0, steps)
        assert (
            statistics.useful.tolist() == np.sum([c.needs for row in rows for c in row] or [[0] * 3], axis=0).tolist()
        )
        if "epochs" in length:
            _check_epochs([chunk for row in rows for chunk in row], plan, counts, int(length["epochs"]))
    return True


def _check_chunk(chunk: Chunk, counts: np.ndarray) -> None:
    patches, text = counts[chunk.record][:2]
    assert 0 <= chunk.start < chunk.stop <= chunk.length == patches + text
    assert sum(chunk.needs[:2]) >= chunk.stop - chunk.start


def _check_epochs(placed: list[Chunk], plan: StagePlan, counts: dict[str, np.ndarray], epochs: int) -> None:
    times = Counter((chunk.source, chunk.record, chunk.start, chunk.stop) for chunk in placed)
    assert set(times.values()) <= {epochs}, "a chunk is not placed once in every epoch"
    slots = Counter[tuple[int, int]]()
    for source, record, start, stop in times:
        slots[source, record] += stop - start
    for number, (name, table) in enumerate(counts.items()):
        lengths = table[:, :2].sum(axis=1)  # a record without slots counts as dropped
        placed_whole = sum(lengths[record] == slots[number, record] > 0 for record in range(len(table)))
        dropped = sum(plan.chunks[name].dropped.values())
        assert placed_whole == len(table) - dropped, f"{placed_whole} of {len(table)} placed, {dropped} dropped"


def main() -> None:
    """Runs as many inputs as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000)
    inputs = parser.parse_args().inputs
    planned = Counter[bool]()

    @settings(max_examples=inputs, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(SOURCES, GEOMETRIES, SHAPES, STAGES)
    def run(sources: Any, geometry: Any, shape: Any, stage: Any) -> None:
        planned[check_plan(sources, geometry, shape, stage)] += 1

    run()
    print(f"{planned[True]:,} plans are sound, {planned[False]:,} were refused")


if __name__ == "__main__":
    main()
