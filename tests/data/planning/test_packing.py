from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solo.data.planning.packing import MAX_SLOTS, pack
from solo.data.planning.row_shape import RowShape

SHAPE = RowShape(patch_slots=40, text_slots=60, target_slots=50)


def random_needs(count: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    patches = random.integers(0, 20, count) * random.integers(0, 2, count)
    text = random.integers(1, 30, count)
    return np.stack([patches, text, random.integers(0, text + 1)], axis=1).astype(np.int64)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 60), st.integers(0, 50)), max_size=60), st.integers(0, 12))
def test_rows_never_overflow_and_no_document_is_used_twice(needs: list[tuple[int, int, int]], rows: int) -> None:
    table = np.asarray(needs, np.int64).reshape(-1, 3)
    packed = pack(table, SHAPE, rows)
    assert len(packed) == rows
    placed = np.concatenate([np.zeros(0, np.int64), *packed])
    assert len(set(placed.tolist())) == len(placed)
    for row in packed:
        assert (table[row].sum(axis=0) <= [40, 60, 50]).all()
    # The oldest document left opens the next row: a row is only empty once nothing is left.
    left = len(needs)
    for row in packed:
        assert len(row) or not left
        left -= len(row)


def test_enough_rows_place_everything() -> None:
    needs = random_needs(300, 0)
    packed = pack(needs, SHAPE, 300)
    assert sorted(np.concatenate(packed).tolist()) == list(range(300))


def test_the_oldest_document_is_in_the_first_row() -> None:
    needs = random_needs(200, 1)
    waiting = np.arange(200)
    for _ in range(20):
        (row,) = pack(needs[waiting], SHAPE, 1)
        assert 0 in row
        waiting = np.delete(waiting, row)


@pytest.mark.parametrize("seed", range(3))
def test_rows_with_a_choice_are_nearly_full(seed: int) -> None:
    shape = RowShape(patch_slots=100, text_slots=316, target_slots=316)
    needs = random_needs(2000, seed)
    packed = pack(needs, shape, 60)
    used = sum(needs[row, :2].sum() for row in packed)
    assert used / (60 * shape.slots) > 0.998


def test_targets_alone_can_fill_a_row() -> None:
    needs = np.tile(np.asarray([[0, 1, 20]], np.int64), (6, 1))
    assert [len(row) for row in pack(needs, SHAPE, 4)] == [2, 2, 2, 0]


def test_rows_of_very_many_documents_fill() -> None:
    shape = RowShape(patch_slots=0, text_slots=8192, target_slots=8192)
    needs = np.tile(np.asarray([[0, 10, 5]], np.int64), (4000, 1))
    packed = pack(needs, shape, 4)
    assert [len(row) for row in packed] == [819] * 4


def test_the_largest_rows_do_not_run_over_into_other_counts() -> None:
    shape = RowShape(MAX_SLOTS, MAX_SLOTS, MAX_SLOTS)
    needs = np.asarray([[MAX_SLOTS, 1, 0], [1, 1, 0], [0, MAX_SLOTS - 1, MAX_SLOTS]], np.int64)
    packed = pack(needs, shape, 2)
    assert sorted(packed[0].tolist()) == [0, 2]
    assert packed[1].tolist() == [1]
