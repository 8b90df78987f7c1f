"""What the law is worth: fit without the largest budget, predict it, compare."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solo.scaling.laws.bootstrap import Bootstrap, bootstrap
from solo.scaling.laws.budgets import group_budgets
from solo.scaling.laws.fit import Fit, FitRefusedError, fit
from solo.scaling.laws.law import Array, Law
from solo.scaling.laws.runs import Runs

HOLD_OUT_DRAWS = 500
_CUTS, _STEP = 4, 2.0


@dataclass(frozen=True)
class HoldOut:
    """Runs that were predicted from the cheaper ones.

    runs            held out
    fitted          number of runs that the law was fitted to
    fit             that law
    predicted       losses [R], with the intervals in which a run should lie: low and high [R] by level
    extrapolation   largest compute held out over the largest fitted
    shared_trunks   how many of the runs held out have a sibling of their trunk among the fitted, and are not all new
    notes           on the fit and on its intervals
    """

    runs: Runs
    fitted: int
    fit: Fit
    predicted: Array
    intervals: dict[int, tuple[Array, Array]]
    extrapolation: float
    shared_trunks: int
    notes: tuple[str, ...]

    @property
    def errors(self) -> Array:
        """Predicted over actual loss, less 1: [R]."""
        return self.predicted / self.runs.loss - 1.0

    def within(self, level: int) -> int:
        """How many actual losses lie in the interval of a level."""
        low, high = self.intervals[level]
        return int(np.count_nonzero((low <= self.runs.loss) & (self.runs.loss <= high)))


@dataclass(frozen=True)
class Cut:
    """One step of the ladder of hold-outs: everything below `flops` predicts everything from there on."""

    flops: float
    fitted: int
    held_out: int
    extrapolation: float
    mean_error: float | None
    largest_error: float | None
    refused: str | None


def largest_budget(runs: Runs) -> float:
    """The compute from which on runs belong to the largest budget."""
    return float(runs.flops[group_budgets(runs.flops)[-1]].min())


def hold_out(law: Law, runs: Runs, objective: str = "huber", cut: float | None = None, seed: int = 0) -> HoldOut:
    """Fit the runs below a compute, the largest budget if none is given, and predict the others.

    Raises:
        FitRefusedError: the runs below do not determine the law, or there are none on one side.
    """
    cut = largest_budget(runs) if cut is None else cut
    below, above = runs[runs.flops < cut], runs[runs.flops >= cut]
    if not len(below) or not len(above):
        raise FitRefusedError(f"no hold-out: of {len(runs)} runs {len(above)} have {cut:.3g} FLOPs or more")
    fitted = fit(law, below, objective)
    draws = bootstrap(fitted, HOLD_OUT_DRAWS, seed)
    return HoldOut(
        runs=above,
        fitted=len(below),
        fit=fitted,
        predicted=fitted.predict(above),
        intervals=run_intervals(fitted, draws, above, seed),
        extrapolation=float(above.flops.max() / below.flops.max()),
        shared_trunks=sum(trunk in set(below.trunk) for trunk in above.trunk),
        notes=fitted.notes + draws.notes,
    )


def run_intervals(fitted: Fit, draws: Bootstrap, runs: Runs, seed: int = 0) -> dict[int, tuple[Array, Array]]:
    """Where the losses of runs should lie, [R] by level: the law's own uncertainty and the scatter about it.

    Residuals of the fit, enlarged for the coefficients that it has cost, stand for the scatter.
    """
    law = fitted.law.loss(draws.columns(), runs.variables())
    generator = np.random.default_rng(seed)
    count, parameters = len(fitted.runs), len(fitted.law.coefficients)
    residuals = fitted.residuals() * np.sqrt(count / max(count - parameters, 1))
    losses = law * np.exp(generator.choice(residuals, size=law.shape))
    return {
        level: (np.percentile(losses, 50 - level / 2, axis=0), np.percentile(losses, 50 + level / 2, axis=0))
        for level in (80, 95)
    }


def hold_out_ladder(law: Law, runs: Runs, objective: str = "huber") -> list[Cut]:
    """Hold-outs that reach further and further: each time the cut is at half the compute or lower."""
    cuts: list[Cut] = []
    for group in reversed(group_budgets(runs.flops)):
        cut = float(runs.flops[group].min())
        if cuts and (cut > cuts[-1].flops / _STEP or len(cuts) == _CUTS):
            continue
        below, above = runs[runs.flops < cut], runs[runs.flops >= cut]
        mean = largest = refused = None
        try:
            errors = np.abs(fit(law, below, objective).predict(above) / above.loss - 1.0)
            mean, largest = float(errors.mean()), float(errors.max())
        except FitRefusedError as refusal:
            refused = str(refusal)
        reach = float(above.flops.max() / below.flops.max()) if len(below) else float("nan")
        cuts.append(Cut(cut, len(below), len(above), reach, mean, largest, refused))
    return cuts
