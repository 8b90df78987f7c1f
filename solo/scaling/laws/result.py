"""The results for one loss: the law, its intervals, the hold-out, the cross-checks, and the predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from solo.config import ConfigError
from solo.scaling.laws.bootstrap import DRAWS, Bootstrap, bootstrap, intervals
from solo.scaling.laws.catalogue import CHINCHILLA, SHARED
from solo.scaling.laws.cross_check import CrossCheck, cross_checks
from solo.scaling.laws.downstream import Downstream, fit_task
from solo.scaling.laws.fit import Fit, FitRefusedError, fit, no_note
from solo.scaling.laws.hold_out import Cut, HoldOut, hold_out, hold_out_ladder
from solo.scaling.laws.law import Law
from solo.scaling.laws.predict import Prediction, predict
from solo.scaling.laws.problem import HUBER, Objective
from solo.scaling.laws.runs import Runs, group_repeats
from solo.scaling.laws.table import SetAside

T = TypeVar("T")
_MANY = 2000  # more runs than anyone trains for one law


@dataclass(frozen=True)
class FitSpec:
    """Settings of a fit and its predictions.

    predict         compute to predict at, FLOPs
    at              the law's other variables in predictions, such as the number of distinct tokens
    served          number of tokens that a predicted model will serve
    hold_out        runs with at least this much compute are held out; default: the largest budget
    drop_highest    number of runs with the highest losses to leave out; the law fitted to all runs is shown too
    score           column of a task's scores, its chance level, and whether the scores are errors
    """

    law: Law = CHINCHILLA
    objective: Objective = HUBER
    draws: int = DRAWS
    seed: int = 0
    predict: tuple[float, ...] = ()
    at: Mapping[str, float] = field(default_factory=dict)
    served: float | None = None
    hold_out: float | None = None
    drop_highest: int = 0
    score: str | None = None
    chance: float = 0.0
    score_is_error: bool = False


@dataclass(frozen=True)
class Analysis:
    """A fitted law and the results derived from it.

    beside          other fits to compare with, name -> coefficients: with the runs that were dropped, or with the
                    symmetric Huber loss
    """

    fit: Fit
    bootstrap: Bootstrap
    beside: dict[str, dict[str, float]]
    hold_out: HoldOut | None
    hold_out_refused: str | None
    ladder: tuple[Cut, ...]
    cross_checks: tuple[CrossCheck, ...]
    predictions: tuple[Prediction, ...]
    downstream: Downstream | None
    downstream_refused: str | None
    notes: tuple[str, ...]

    def values(self) -> dict[str, float]:
        """Returns the coefficients and the exponents of the optimum."""
        coefficients = self.fit.coefficients
        exponents = self.fit.law.optimum_exponents(coefficients)
        return {**coefficients, **{name: float(value) for name, value in exponents.items()}}

    def intervals(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Returns the bootstrap intervals of `values`."""
        draws = self.bootstrap.coefficients
        return intervals({**draws, **self.fit.law.optimum_exponents(draws)})


@dataclass(frozen=True)
class FitResult:
    """The result for one loss of one group of runs. If there is no analysis, `refused` says why.

    seed_noise      standard deviation of log losses among repeated runs, or None if no run is repeated
    """

    loss: str
    group: str | None
    spec: FitSpec
    runs: Runs
    set_aside: tuple[SetAside, ...]
    seed_noise: float | None
    analysis: Analysis | None
    refused: str | None

    @property
    def title(self) -> str:
        """The loss, and the group if there are several."""
        return self.loss if self.group is None else f"{self.loss} · {self.group}"


def analyse(
    loss: str,
    runs: Runs,
    spec: FitSpec,
    group: str | None = None,
    set_aside: Sequence[SetAside] = (),
    note: Callable[[str], None] = no_note,
) -> FitResult:
    """Fits one loss and analyses the law. A refusal is part of the result, not an error. `note` receives progress.

    Raises:
        ConfigError: `drop_highest` leaves no run.
    """
    aside, everything = list(set_aside), runs
    if spec.drop_highest >= len(runs):
        raise ConfigError(f"--drop-highest {spec.drop_highest} leaves none of the {len(runs)} runs with {loss}")
    if spec.drop_highest:
        order = np.argsort(-runs.loss, kind="stable")
        dropped = [runs.id[place] for place in order[: spec.drop_highest]]
        runs = runs[np.sort(order[spec.drop_highest :])]
        aside += [SetAside(name, f"one of the {spec.drop_highest} highest losses") for name in dropped]
    analysis, refused = _attempt(_analyse, runs, everything, spec, note)
    return FitResult(loss, group, spec, runs, tuple(aside), seed_noise(runs), analysis, refused)


def _analyse(runs: Runs, everything: Runs, spec: FitSpec, note: Callable[[str], None]) -> Analysis:
    """Raises FitRefusedError if the law cannot be fitted. Refusals of the other parts are recorded in the analysis."""
    law, objective, seed = spec.law, spec.objective, spec.seed
    note("fitting")
    fitted = fit(law, runs, objective)
    draws = bootstrap(fitted, spec.draws, seed, note)
    others: dict[str, tuple[Runs, Objective]] = {}
    if spec.drop_highest:
        others["With the dropped runs"] = (everything, objective)
    if objective.overestimates != 1:
        others["Symmetric"] = (runs, replace(objective, overestimates=1.0))
    beside = {name: _attempt(fit, law, *other)[0] for name, other in others.items()}
    tied = _attempt(fit, SHARED, runs, objective)[0] if spec.predict and law is CHINCHILLA else None
    held, held_refused = _attempt(hold_out, law, runs, objective, spec.hold_out, seed, note)
    note("hold-outs of lower cuts, cross-checks")
    predictions = tuple(predict(fitted, draws, flops, spec.at, tied, spec.served) for flops in spec.predict)
    task, task_refused = None, None
    if spec.score:
        options = (spec.score, spec.chance, spec.score_is_error, seed)
        task, task_refused = _attempt(fit_task, fitted, draws, predictions, *options)
    return Analysis(
        fit=fitted,
        bootstrap=draws,
        beside={name: found.coefficients for name, found in beside.items() if found is not None},
        hold_out=held,
        hold_out_refused=held_refused,
        ladder=tuple(hold_out_ladder(law, runs, objective)),
        cross_checks=tuple(cross_checks(fitted)),
        predictions=predictions,
        downstream=task,
        downstream_refused=task_refused,
        notes=(*fitted.notes, *draws.notes, *_notes(runs)),
    )


def _attempt(part: Callable[..., T], *arguments: Any) -> tuple[T | None, str | None]:
    """Returns the value of a part of the analysis, or the reason why it was refused."""
    try:
        return part(*arguments), None
    except FitRefusedError as refusal:
        return None, str(refusal)


def seed_noise(runs: Runs) -> float | None:
    """Returns the standard deviation of log losses among runs of equal size and tokens; None if no two are equal."""
    repeated = [np.log(runs.loss[cell]) for cell in group_repeats(runs) if len(cell) > 1]
    freedom = sum(len(logs) - 1 for logs in repeated)
    if not freedom:
        return None
    return float(np.sqrt(sum(((logs - logs.mean()) ** 2).sum() for logs in repeated) / freedom))


def _notes(runs: Runs) -> tuple[str, ...]:
    notes = []
    factors = runs.flops / (runs.n * runs.d)
    if factors.max() > 1.1 * factors.min():
        notes.append(
            f"compute per parameter and token differs among the runs, {factors.min():.3g} to {factors.max():.3g};"
            f" optima use the median, {np.median(factors):.3g}"
        )
    if runs.clusters > _MANY:
        notes.append(
            f"{runs.clusters:,} rows count as independent trainings; if they are points of training curves, the"
            " intervals are too narrow: name the column of the run with --stable-run"
        )
    places = dict[tuple[float, ...], str]()
    equal = [
        (name, first)
        for name, *numbers in zip(runs.id, runs.n, runs.d, runs.flops, runs.loss, strict=True)
        if (first := places.setdefault(tuple(numbers), name)) != name
    ]
    if equal:
        notes.append(
            f"{len(equal):,} runs equal another to the last digit of size, tokens, compute and loss, such as"
            f" {equal[0][0]} and {equal[0][1]}; copies of a run make the intervals too narrow"
        )
    return tuple(notes)
