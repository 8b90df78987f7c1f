"""The Fréchet distance of two sets of vectors, without a covariance matrix. Float64."""

from __future__ import annotations

import numpy as np

_SIGMAS = 3.0


def frechet_distance(x_ND: np.ndarray, y_MD: np.ndarray) -> float:
    """Returns the Fréchet distance of the Gaussians with the means and covariances of two sets of vectors.

    The distance is |mean x - mean y|^2 + Tr(A + B - 2 (A B)^(1/2)) for covariances A and B (Dowson and Landau, 1982).
    With X and Y centred and scaled such that A = X'X and B = Y'Y, the trace of the square root is the sum of the
    singular values of X Y'. Computing the square root of A B would lose half of the digits of every small eigenvalue.

    It takes O(m^2 k) operations, where m is the smaller and k the larger of the number of vectors and their width, and
    the memory of a few copies of the vectors.

    Args:
        x_ND: N >= 2 vectors.
        y_MD: M >= 2 vectors of the same width.

    Returns:
        The distance, or NaN if a value is not finite.
    """
    if not (np.isfinite(x_ND).all() and np.isfinite(y_MD).all()):
        return float("nan")
    x_mean, y_mean = x_ND.mean(axis=0, dtype=np.float64), y_MD.mean(axis=0, dtype=np.float64)
    x, y = _factor(x_ND - x_mean), _factor(y_MD - y_mean)
    root = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return max(0.0, float(np.sum((x_mean - y_mean) ** 2) + np.sum(x**2) + np.sum(y**2) - 2 * root))


def _factor(centred_ND: np.ndarray) -> np.ndarray:
    """Returns F with F'F = the covariance, with as few rows as possible."""
    count, width = centred_ND.shape
    scaled = centred_ND / np.sqrt(count - 1)
    if count <= width:
        return scaled
    return np.asarray(np.linalg.qr(scaled, mode="r"))


def without_outliers(x_ND: np.ndarray) -> np.ndarray:
    """Returns the vectors whose length is within three standard deviations of the mean.

    If a value is not finite, all vectors are returned.
    """
    lengths = np.linalg.norm(x_ND, axis=1)
    return x_ND[~(np.abs(lengths - lengths.mean()) > _SIGMAS * lengths.std())]
