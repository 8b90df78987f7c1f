"""Validates a law: fits it to the cheaper runs, predicts the most expensive ones, and compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from solo.scaling.laws.bootstrap import LEVELS, Bootstrap, bootstrap
from solo.scaling.laws.fit import Fit, FitRefusedError, fit, no_note
from solo.scaling.laws.law import Array, Law
from solo.scaling.laws.problem import HUBER, Objective
from solo.scaling.laws.runs import Runs, group_budgets

HOLD_OUT_DRAWS = 500
_CUTS, _STEP = 4, 2.0


@dataclass(frozen=True)
class HoldOut:
    """Held-out runs, and what a fit to the cheaper runs predicts for them.

    runs                the held-out runs
    fit                 the law fitted to the cheaper runs
    predicted           predicted losses of the held-out runs: [R]
    intervals           level -> (low, high), each [R]: prediction interval for the loss of a single run
    extrapolation       largest held-out compute over the largest fitted compute
    shared_stable_runs  number of held-out runs whose stable run also has branches among the fitted runs
    notes               caveats about the fit and its intervals
    """

    runs: Runs
    fit: Fit
    predicted: Array
    intervals: dict[int, tuple[Array, Array]]
    extrapolation: float
    shared_stable_runs: int
    notes: tuple[str, ...]

    @property
    def errors(self) -> Array:
        """Predicted loss over actual loss, minus 1: [R]."""
        return self.predicted / self.runs.loss - 1.0

    def within(self, level: int) -> int:
        """Returns how many actual losses lie within the interval of a level."""
        low, high = self.intervals[level]
        return int(np.count_nonzero((low <= self.runs.loss) & (self.runs.loss <= high)))


@dataclass(frozen=True)
class Cut:
    """One step of the hold-out ladder: a fit to the runs below `flops` predicts all others."""

    flops: float
    fitted: int
    held_out: int
    extrapolation: float
    mean_error: float | None
    largest_error: float | None
    refused: str | None


def largest_budget(runs: Runs) -> float:
    """Returns the smallest compute among the runs of the largest budget."""
    return float(runs.flops[group_budgets(runs.flops)[-1]].min())


def hold_out(
    law: Law,
    runs: Runs,
    objective: Objective = HUBER,
    cut: float | None = None,
    seed: int = 0,
    note: Callable[[str], None] = no_note,
) -> HoldOut:
    """Fits the runs with less compute than `cut` (default: than the largest budget) and predicts the others.

    Raises:
        FitRefusedError: the fitted runs do not determine the law, or there are no runs on one side of the cut.
    """
    cut = largest_budget(runs) if cut is None else cut
    below, above = _split(law, runs, cut)
    if not len(below) or not len(above):
        raise FitRefusedError(f"no hold-out: of {len(runs)} runs {len(above)} have {cut:.3g} FLOPs or more")
    fitted = fit(law, below, objective)
    draws = bootstrap(fitted, HOLD_OUT_DRAWS, seed, lambda text: note(f"hold-out: {text}"))
    clusters = set(below.cluster)
    return HoldOut(
        runs=above,
        fit=fitted,
        predicted=fitted.predict(above),
        intervals=run_intervals(fitted, draws, above, seed),
        extrapolation=float(above.flops.max() / below.flops.max()),
        shared_stable_runs=sum(name in clusters for name in above.cluster),
        notes=fitted.notes + draws.notes,
    )


def _split(law: Law, runs: Runs, cut: float) -> tuple[Runs, Runs]:
    """Returns the runs below a cut, and the others.

    A law of the schedule is fitted to undecayed runs too, whose decayed branches would be predicted from themselves: it
    does not see any run of a stable run that is held out.
    """
    above = runs.flops >= cut
    below = ~above
    if "decay" in law.variables:
        held = {name for name, out in zip(runs.cluster, above, strict=True) if out}
        below &= np.array([name not in held for name in runs.cluster])
    return runs[below], runs[above]


def run_intervals(fitted: Fit, draws: Bootstrap, runs: Runs, seed: int = 0) -> dict[int, tuple[Array, Array]]:
    """Returns prediction intervals for the losses of single runs: level -> (low, high), each [R].

    They combine the uncertainty of the law with the scatter of runs about it. The scatter is sampled from the residuals
    of the fit, scaled up to correct for its degrees of freedom.
    """
    law = fitted.law.loss(draws.columns(), runs.variables())
    generator = np.random.default_rng(seed)
    count, parameters = len(fitted.runs), len(fitted.law.coefficients)
    residuals = fitted.residuals() * np.sqrt(count / max(count - parameters, 1))
    losses = law * np.exp(generator.choice(residuals, size=law.shape))
    return {
        level: (np.percentile(losses, 50 - level / 2, axis=0), np.percentile(losses, 50 + level / 2, axis=0))
        for level in LEVELS
    }


def hold_out_ladder(law: Law, runs: Runs, objective: Objective = HUBER) -> list[Cut]:
    """Returns hold-outs of increasing reach: each cut has at most half the compute of the one before."""
    cuts: list[Cut] = []
    for group in reversed(group_budgets(runs.flops)):
        cut = float(runs.flops[group].min())
        if cuts and (cut > cuts[-1].flops / _STEP or len(cuts) == _CUTS):
            continue
        below, above = _split(law, runs, cut)
        mean = largest = refused = None
        try:
            errors = np.abs(fit(law, below, objective).predict(above) / above.loss - 1.0)
            mean, largest = float(errors.mean()), float(errors.max())
        except FitRefusedError as refusal:
            refused = str(refusal)
        reach = float(above.flops.max() / below.flops.max()) if len(below) else float("nan")
        cuts.append(Cut(cut, len(below), len(above), reach, mean, largest, refused))
    return cuts
