"""The bootstrap: coverage on data of known distribution, pairing, clusters, and the same result for the same seed."""

import numpy as np
import pytest

from solo.evaluation.scoring.intervals import Tallies, difference, interval


def mean(sums: np.ndarray) -> np.ndarray:
    return 100 * sums[..., 0] / sums[..., 1]


def tallies(scores: np.ndarray, clusters: np.ndarray | None = None) -> Tallies:
    names = [str(name) for name in (np.arange(len(scores)) if clusters is None else clusters)]
    return Tallies.of(mean, np.stack([scores, np.ones(len(scores))], axis=1).astype(float), names)


def test_intervals_cover_the_true_mean_as_often_as_they_claim() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for trial in range(300):
        found = interval(tallies(rng.random(200) < 0.7), resamples=400, seed=trial)
        covered.append(found.low <= 70 <= found.high)
        assert found.low < found.value < found.high
    assert 0.92 <= np.mean(covered) <= 0.98


def test_questions_about_one_image_are_drawn_together() -> None:
    # Ten questions about each image, all answered alike: 40 independent facts, not 400.
    rng = np.random.default_rng(1)
    covered, naive = [], []
    images = np.repeat(np.arange(40), 10)
    for trial in range(200):
        scores = np.repeat(rng.random(40) < 0.5, 10)
        together = interval(tallies(scores, images), resamples=300, seed=trial)
        apart = interval(tallies(scores), resamples=300, seed=trial)
        assert together.value == apart.value
        covered.append(together.low <= 50 <= together.high)
        naive.append(apart.low <= 50 <= apart.high)
    assert np.mean(covered) > 0.9
    assert np.mean(naive) < 0.6


def test_two_models_on_the_same_items_are_compared_in_pairs() -> None:
    rng = np.random.default_rng(2)
    hard = rng.random(500)
    first, second = (hard < 0.7).astype(float), (hard < 0.65).astype(float)
    found = difference(tallies(first), tallies(second))
    assert found.value == pytest.approx(100 * (first.mean() - second.mean()))
    # The binomial intervals of the two scores overlap widely; that of the difference is far narrower than either.
    alone = interval(tallies(first))
    assert found.high - found.low < 0.6 * (alone.high - alone.low)
    assert found.low > 0
    assert found.p < 0.01
    turned = difference(tallies(second), tallies(first))
    assert (turned.value, turned.low, turned.high, turned.p) == pytest.approx(
        (-found.value, -found.high, -found.low, found.p)
    )
    same = difference(tallies(first), tallies(first))
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_p_is_small_as_rarely_as_it_claims_between_equal_models() -> None:
    rng = np.random.default_rng(3)
    found = [
        difference(tallies(rng.random(150) < 0.6), tallies(rng.random(150) < 0.6), resamples=300, seed=trial).p
        for trial in range(300)
    ]
    assert 0.02 <= np.mean(np.array(found) < 0.05) <= 0.08
    assert np.mean(np.array(found) < 0.5) == pytest.approx(0.5, abs=0.1)


def test_a_floor_is_that_of_every_resample_but_not_of_p() -> None:
    rng = np.random.default_rng(4)
    low, high = tallies(rng.random(300) < 0.4), tallies(rng.random(300) < 0.6)
    found = difference(low, high, floor=0.0)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert found.p < 0.01


def test_equal_seeds_give_equal_intervals_and_chunks_do_not_matter(monkeypatch) -> None:
    scores = np.random.default_rng(5).random(50)
    once = interval(tallies(scores), seed=7)
    assert interval(tallies(scores), seed=7) == once
    assert interval(tallies(scores), seed=8) != once
    monkeypatch.setattr("solo.evaluation.scoring.intervals._DRAWS", 50 * 17)
    assert interval(tallies(scores), seed=7) == once


def test_one_cluster_has_neither_interval_nor_p() -> None:
    one, other = tallies(np.array([1, 0, 1]), np.zeros(3)), tallies(np.array([1, 1, 1]), np.zeros(3))
    found = interval(one)
    assert found.value == pytest.approx(200 / 3)
    assert np.isnan(found[1:]).all()
    change = difference(other, one, floor=0.0)
    assert change.value == pytest.approx(100 / 3)
    assert np.isnan(change[1:]).all()


def test_undefined_metrics_have_no_interval() -> None:
    found = interval(Tallies.of(lambda sums: sums[..., 0] * np.nan, np.ones((3, 1)), list("abc")))
    assert np.isnan(found).all()
    with pytest.raises(ValueError, match="cannot be paired"):
        difference(tallies(np.ones(3)), tallies(np.ones(4)))
