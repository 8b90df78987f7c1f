from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solo.data.planning.permutation import derive_key, derive_keys, permute


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(n: int, key: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(n), n, key)), np.arange(n))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 63, 64, 65, 4095, 4096, 4097, 99_991])
def test_it_is_a_bijection_at_awkward_sizes(n: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(n), n, 7)), np.arange(n))


def test_an_index_is_looked_up_alone() -> None:
    n = 1 << 40  # far too many for a table
    indices = np.asarray([0, 1, n // 2, n - 1])
    together = permute(indices, n, 3)
    assert together.tolist() == [int(permute(np.asarray([index]), n, 3)[0]) for index in indices]
    assert ((together >= 0) & (together < n)).all()


def test_keys_give_different_shuffles() -> None:
    shuffles = {tuple(permute(np.arange(50), 50, key)) for key in range(200)}
    assert len(shuffles) == 200


def test_an_array_of_keys_gives_each_index_its_own_shuffle() -> None:
    keys = np.asarray([5, 6, 5, 6], np.uint64)
    indices = np.asarray([0, 0, 9, 9])
    mixed = permute(indices, 100, keys)
    assert mixed[0::2].tolist() == permute(indices[0::2], 100, 5).tolist()
    assert mixed[1::2].tolist() == permute(indices[1::2], 100, 6).tolist()


def test_an_array_of_sizes_gives_each_index_its_own_range() -> None:
    sizes = np.asarray([3, 1000, 3, 1000, 1])
    mixed = permute(np.asarray([2, 999, 0, 0, 0]), sizes, 5)
    assert mixed[[0, 2]].tolist() == permute(np.asarray([2, 0]), 3, 5).tolist()
    assert mixed[[1, 3]].tolist() == permute(np.asarray([999, 0]), 1000, 5).tolist()
    assert mixed[4] == 0


def test_keys_of_arrays_differ_by_every_part() -> None:
    one, other = np.divmod(np.arange(400), 20)
    assert len(np.unique(derive_keys(1, one, other))) == 400
    assert not np.isin(derive_keys(2, one, other), derive_keys(1, one, other)).any()


def test_every_place_is_about_equally_likely() -> None:
    n, keys = 12, 6000
    counts = np.zeros((n, n))
    for key in range(keys):
        counts[np.arange(n), permute(np.arange(n), n, derive_key(key))] += 1
    # 121 degrees of freedom: the 99.99% point of chi-squared is about 185.
    assert ((counts - keys / n) ** 2 / (keys / n)).sum() < 185


def test_neighbours_do_not_stay_together() -> None:
    shuffled = permute(np.arange(10_000), 10_000, 1)
    assert abs(np.corrcoef(np.arange(10_000), shuffled)[0, 1]) < 0.05
    assert abs(np.corrcoef(shuffled[:-1], shuffled[1:])[0, 1]) < 0.05
    assert np.count_nonzero(np.abs(np.diff(shuffled)) == 1) < 20


def test_an_index_outside_the_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"range\(10\)"):
        permute(np.asarray([10]), 10, 0)


def test_keys_depend_on_every_part_and_its_place() -> None:
    keys = [derive_key(*parts) for parts in [(1, 2), (2, 1), (1, 2, 0), (0, 1, 2), ("ab", 1), ("a", "b1"), ("ab1",)]]
    assert len(set(keys)) == len(keys)


def test_the_order_never_changes() -> None:
    """Data order is part of a run: these numbers may only change together with a note that runs do not resume."""
    assert permute(np.arange(8), 8, derive_key(0, "stage")).tolist() == [2, 7, 6, 4, 1, 5, 0, 3]
