"""How far to trust a fit: the case bootstrap, by trunk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from solo.scaling.laws.fit import Fit, FitRefusedError, check_design
from solo.scaling.laws.law import Array
from solo.scaling.laws.solver import solve

LEVELS = (80, 95)
DRAWS = 1000
FEWEST_CLUSTERS, FEW_CLUSTERS = 4, 10


@dataclass(frozen=True)
class Bootstrap:
    """Coefficients of a law refitted to J resamplings.

    coefficients    each [J]
    clusters        how many groups of runs were drawn from: trunks, or runs where each is its own
    redrawn         resamplings that were thrown away because they could not have determined the law
    notes           what a reader should know before believing the intervals
    """

    coefficients: dict[str, Array]
    clusters: int
    redrawn: int
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(next(iter(self.coefficients.values())))

    def columns(self) -> dict[str, Array]:
        """The coefficients as columns [J,1], to be broadcast against runs."""
        return {name: values[:, None] for name, values in self.coefficients.items()}


def bootstrap(fitted: Fit, draws: int = DRAWS, seed: int = 0) -> Bootstrap:
    """Refit a law to resamplings of its runs, from where the fit ended.

    Runs branched from one trunk share its luck, so that trunks are drawn, with all of their runs.

    Raises:
        FitRefusedError: too few trunks, or hardly any resampling can determine the law.
    """
    runs = fitted.runs
    names, cluster = np.unique(np.array(runs.trunk), return_inverse=True)
    if len(names) < FEWEST_CLUSTERS:
        raise FitRefusedError(
            f"no intervals: {len(runs)} runs of {len(names)} trunks are {len(names)} independent trainings; it takes"
            f" {FEWEST_CLUSTERS}, better {FEW_CLUSTERS}"
        )
    generator = np.random.default_rng(seed)
    kept: list[Array] = []
    tried = 0
    while len(kept) < draws:
        if tried >= 20 * draws:
            raise FitRefusedError(
                f"no intervals: of {tried} resamplings of {len(names)} trunks {tried - len(kept)} do not determine the"
                f" law; more trunks are needed"
            )
        drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)))
        tried += 1
        weights = drawn[cluster].astype(float)
        if _determined(fitted, weights):
            kept.append(weights)
    found = solve(fitted.problem, np.repeat(fitted.vector[None], draws, axis=0), np.array(kept))
    unfinished = int(np.count_nonzero(~found.converged))
    notes = _notes(len(names), tried - draws, draws, unfinished)
    return Bootstrap(fitted.problem.coefficients(found.vectors), len(names), tried - draws, notes)


def interval(values: Array, level: int) -> tuple[float, float]:
    """The percentiles between which `level` percent of the draws lie."""
    low, high = np.percentile(values, [50 - level / 2, 50 + level / 2])
    return float(low), float(high)


def intervals(draws: Mapping[str, Array]) -> dict[str, dict[str, tuple[float, float]]]:
    """Every interval of every quantity: {name: {"80": (low, high), "95": ...}}."""
    return {name: {str(level): interval(values, level) for level in LEVELS} for name, values in draws.items()}


def _determined(fitted: Fit, weights: Array) -> bool:
    rows = weights > 0
    # As many runs as the law asks for is a rule for people; a resampling repeats some, and needs the parameters' count.
    if np.count_nonzero(rows) < len(fitted.law.coefficients):
        return False
    try:
        check_design(fitted.law, fitted.runs[rows], fewest_runs=0)
    except FitRefusedError:
        return False
    return True


def _notes(clusters: int, redrawn: int, draws: int, unfinished: int) -> tuple[str, ...]:
    notes = []
    if clusters < FEW_CLUSTERS:
        notes.append(f"{clusters} trunks are few to resample: the intervals are rough, and rather too narrow")
    if redrawn > 0.05 * draws:
        notes.append(
            f"{redrawn} resamplings, {redrawn / (redrawn + draws):.0%}, could not determine the law: drawn again"
        )
    if unfinished > 0.02 * draws:
        notes.append(f"{unfinished} of {draws} resamplings have no sharp minimum; their last point was taken")
    return tuple(notes)
