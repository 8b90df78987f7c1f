"""Uncertainty of a fit: a case bootstrap, clustered by stable run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from solo.scaling.laws.fit import Fit, FitRefusedError, check_design, no_note
from solo.scaling.laws.law import Array
from solo.scaling.laws.solver import solve

LEVELS = (80, 95)
DRAWS = 1000
FEWEST_CLUSTERS, FEW_CLUSTERS = 4, 10
_BLOCK = 10_000_000  # bootstrap weights in memory at a time


@dataclass(frozen=True)
class Bootstrap:
    """The coefficients of a law, refitted to J bootstrap samples.

    coefficients    each [J]
    clusters        number of clusters to sample from; a cluster is a stable run with its branches, or a single run
    redrawn         number of samples that were rejected, and drawn again, because they could not determine the law
    notes           caveats about the intervals
    """

    coefficients: dict[str, Array]
    clusters: int
    redrawn: int
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(next(iter(self.coefficients.values())))

    def columns(self) -> dict[str, Array]:
        """Returns the coefficients as columns [J,1], which broadcast against runs."""
        return {name: values[:, None] for name, values in self.coefficients.items()}


def bootstrap(fitted: Fit, draws: int = DRAWS, seed: int = 0, note: Callable[[str], None] = no_note) -> Bootstrap:
    """Refits a law to bootstrap samples of its runs. Every refit starts from the original fit.

    The branches of a stable run share its noise, so whole clusters are resampled.

    Args:
        fitted: the law.
        draws: number of bootstrap samples, J.
        seed: seed of the resampling.
        note: called with progress messages.

    Raises:
        FitRefusedError: there are too few clusters, or most samples do not determine the law.
    """
    runs = fitted.runs
    names, cluster = np.unique(np.array(runs.cluster), return_inverse=True)
    if len(names) < FEWEST_CLUSTERS:
        raise FitRefusedError(
            f"no intervals: {len(runs)} runs branched from {len(names)} stable runs are {len(names)} independent"
            f" trainings; at least {FEWEST_CLUSTERS} are needed, better {FEW_CLUSTERS}"
        )
    generator = np.random.default_rng(seed)
    tried = 0

    def weights() -> Array:
        nonlocal tried
        while tried < 20 * draws:
            drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)))
            tried += 1
            found = drawn[cluster].astype(float)
            if _determined(fitted, found):
                return found
        raise FitRefusedError(
            f"no intervals: of {tried} resamplings of {len(names)} independent trainings most do not determine the"
            " law; more trainings are needed"
        )

    # For a large table, the weights of all samples would not fit in memory.
    size = max(_BLOCK // len(runs), 1)
    parts = []
    for first in range(0, draws, size):
        note(f"resampling {first:,} of {draws:,}")
        part = np.array([weights() for _ in range(min(size, draws - first))])
        parts.append(solve(fitted.problem, np.repeat(fitted.vector[None], len(part), axis=0), part))
    vectors = np.concatenate([part.vectors for part in parts])
    unfinished = sum(int(np.count_nonzero(~part.converged)) for part in parts)
    notes = _notes(len(names), tried - draws, draws, unfinished)
    return Bootstrap(fitted.problem.coefficients(vectors), len(names), tried - draws, notes)


def interval(values: Array, level: int) -> tuple[float, float]:
    """Returns the two percentiles that enclose the central `level` percent of the draws."""
    low, high = np.percentile(values, [50 - level / 2, 50 + level / 2])
    return float(low), float(high)


def intervals(draws: Mapping[str, Array]) -> dict[str, dict[str, tuple[float, float]]]:
    """Returns the intervals of each quantity: {name: {"80": (low, high), "95": ...}}."""
    return {name: {str(level): interval(values, level) for level in LEVELS} for name, values in draws.items()}


def _determined(fitted: Fit, weights: Array) -> bool:
    rows = weights > 0
    # A sample repeats some runs. It needs only as many distinct ones as there are coefficients, not `fewest_runs`.
    if np.count_nonzero(rows) < len(fitted.law.coefficients):
        return False
    try:
        check_design(fitted.law, fitted.runs.nameless(rows), fewest_runs=0)
    except FitRefusedError:
        return False
    return True


def _notes(clusters: int, redrawn: int, draws: int, unfinished: int) -> tuple[str, ...]:
    notes = []
    if clusters < FEW_CLUSTERS:
        notes.append(
            f"{clusters} independent trainings are few to resample: the intervals are rough, and probably too narrow"
        )
    if redrawn > 0.05 * draws:
        notes.append(
            f"{redrawn} resamplings, {redrawn / (redrawn + draws):.0%}, could not determine the law and were redrawn"
        )
    if unfinished > 0.02 * draws:
        notes.append(f"{unfinished} of {draws} resamplings did not converge; their last point was taken")
    return tuple(notes)
