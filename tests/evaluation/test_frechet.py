"""The Fréchet distance against its textbook formula with SciPy's matrix square root."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from solo.evaluation.frechet import frechet_distance, without_outliers


def textbook(x: np.ndarray, y: np.ndarray) -> float:
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return float(np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a + b - 2 * sqrtm(a @ b).real))


@pytest.mark.parametrize(("n", "m", "width"), [(40, 70, 5), (300, 12, 12), (9, 30, 8)])
def test_it_is_the_textbook_formula(n, m, width) -> None:
    rng = np.random.default_rng(n)
    mixed = rng.normal(size=(width, width))
    x, y = rng.normal(size=(n, width)) @ mixed + 0.3, rng.normal(size=(m, width)) ** 3
    assert frechet_distance(x, y) == pytest.approx(textbook(x, y), rel=1e-6)


def test_fewer_vectors_than_dimensions() -> None:
    """The covariances have no full rank, where SciPy's root is not exact; the eigenvalues of A B are."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(10, 40)), rng.normal(size=(12, 40)) + 1
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    largest = np.sort(np.linalg.eigvals(a @ b).real)[-9:]
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a + b) - 2 * np.sqrt(largest).sum()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_equal_sets_are_no_distance_apart_and_a_shift_counts_squared() -> None:
    x = np.random.default_rng(0).normal(size=(50, 20)) * np.logspace(-6, 2, 20)
    assert frechet_distance(x, x[::-1]) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 2) == pytest.approx(4 * 20, rel=1e-9)
    assert np.isnan(frechet_distance(x, np.where(x > 0, x, np.nan)))


def test_outliers_are_three_standard_deviations_away() -> None:
    x = np.ones((50, 3))
    x[:25] *= 1.1
    x[7] *= 4
    kept = without_outliers(x)
    assert len(kept) == 49
    assert (kept < 2).all()
    assert len(without_outliers(np.ones((4, 3)))) == 4
