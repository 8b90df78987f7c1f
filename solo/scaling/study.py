"""Everything that is said of one loss: the law, its intervals, its hold-out, its cross-checks, its predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from solo.scaling.bootstrap import DRAWS, Bootstrap, bootstrap, intervals
from solo.scaling.crosscheck import CrossCheck, cross_checks
from solo.scaling.downstream import Downstream, fit_task
from solo.scaling.fit import Fit, FitRefusedError, fit
from solo.scaling.holdout import Cut, HoldOut, hold_out, hold_out_ladder
from solo.scaling.laws import CHINCHILLA, Law
from solo.scaling.predict import Prediction, predict
from solo.scaling.problem import OBJECTIVES
from solo.scaling.runs import Runs
from solo.scaling.table import SetAside


@dataclass(frozen=True)
class Question:
    """What is asked of the runs.

    predict         computes to predict, FLOPs
    unique          different tokens that there are, for predictions of the law `repeated`
    hold_out        compute from which on runs are held out; the largest budget where None
    drop_highest    runs of the highest losses that are left out; the law with them is kept beside it
    score           column of a task's scores, with its chance level, and whether they are errors
    """

    law: Law = CHINCHILLA
    objective: str = "huber"
    draws: int = DRAWS
    seed: int = 0
    predict: tuple[float, ...] = ()
    unique: float | None = None
    hold_out: float | None = None
    drop_highest: int = 0
    score: str | None = None
    chance: float = 0.0
    score_is_error: bool = False


@dataclass(frozen=True)
class Study:
    """What came of one loss of one group of runs; `refused` says why there is no law."""

    loss: str
    group: str | None
    question: Question
    runs: Runs
    set_aside: tuple[SetAside, ...]
    refused: str | None = None
    fit: Fit | None = None
    bootstrap: Bootstrap | None = None
    with_dropped: dict[str, float] | None = None
    seed_noise: float | None = None
    hold_out: HoldOut | None = None
    hold_out_refused: str | None = None
    ladder: tuple[Cut, ...] = ()
    cross_checks: tuple[CrossCheck, ...] = ()
    predictions: tuple[Prediction, ...] = ()
    downstream: Downstream | None = None
    downstream_refused: str | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def title(self) -> str:
        """The loss, and the group of runs where there are several."""
        return self.loss if self.group is None else f"{self.loss} · {self.group}"


def study(
    loss: str, runs: Runs, question: Question, group: str | None = None, set_aside: Sequence[SetAside] = ()
) -> Study:
    """Answer the question for one loss. A refusal is part of the answer, not an error."""
    aside = list(set_aside)
    everything = runs
    if question.drop_highest:
        runs, dropped = _without_highest(runs, question.drop_highest)
        aside += [SetAside(name, f"one of the {question.drop_highest} highest losses") for name in dropped]
    found: dict[str, Any] = {"loss": loss, "group": group, "question": question, "runs": runs}
    found |= {"set_aside": tuple(aside), "seed_noise": seed_noise(runs)}
    try:
        fitted = fit(question.law, runs, question.objective)
        draws = bootstrap(fitted, question.draws, question.seed)
    except FitRefusedError as refusal:
        return Study(**found, refused=str(refusal))
    found |= {"fit": fitted, "bootstrap": draws, "cross_checks": tuple(cross_checks(fitted))}
    if question.drop_highest:
        try:
            found["with_dropped"] = fit(question.law, everything, question.objective).coefficients
        except FitRefusedError:
            found["with_dropped"] = None
    try:
        found["hold_out"] = hold_out(question.law, runs, question.objective, question.hold_out, question.seed)
    except FitRefusedError as refusal:
        found["hold_out_refused"] = str(refusal)
    found["ladder"] = tuple(hold_out_ladder(question.law, runs, question.objective))
    found["predictions"] = tuple(predict(fitted, draws, flops, question.unique) for flops in question.predict)
    if question.score:
        try:
            found["downstream"] = fit_task(
                fitted,
                draws,
                list(found["predictions"]),
                question.score,
                question.chance,
                question.score_is_error,
                question.seed,
            )
        except FitRefusedError as refusal:
            found["downstream_refused"] = str(refusal)
    return Study(**found, notes=(*fitted.notes, *draws.notes, *_notes(runs)))


def seed_noise(runs: Runs) -> float | None:
    """Standard deviation of log losses among runs of the same size and tokens; None where no two are."""
    cells: dict[tuple[float, float], list[float]] = {}
    for n, d, loss in zip(runs.n, runs.d, runs.loss, strict=True):
        cells.setdefault((float(n), float(d)), []).append(float(np.log(loss)))
    repeated = [np.array(logs) for logs in cells.values() if len(logs) > 1]
    freedom = sum(len(logs) - 1 for logs in repeated)
    if not freedom:
        return None
    return float(np.sqrt(sum(((logs - logs.mean()) ** 2).sum() for logs in repeated) / freedom))


def as_json(found: Study) -> dict[str, Any]:
    """A study as plain values."""
    plain: dict[str, Any] = {
        "loss": found.loss,
        "group": found.group,
        "law": found.question.law.name,
        "formula": found.question.law.formula,
        "refused": found.refused,
        "runs": len(found.runs),
        "trunks": len(set(found.runs.trunk)),
        "compute": [float(found.runs.flops.min()), float(found.runs.flops.max())],
        "flops_per_parameter_and_token": found.runs.flops_factor,
        "set_aside": [{"id": item.id, "reason": item.reason} for item in found.set_aside],
        "seed_noise": found.seed_noise,
        "notes": list(found.notes),
    }
    if found.fit is None or found.bootstrap is None:
        return plain
    law = found.fit.law
    plain |= {
        "coefficients": found.fit.coefficients,
        "objective": {
            "value": found.fit.objective,
            "name": found.question.objective,
            "is": OBJECTIVES[found.question.objective],
        },
        "scatter": found.fit.scatter,
        "starts": {"tried": found.fit.starts, "agreeing": found.fit.agreeing},
        "condition": found.fit.condition,
        "exponents": {name: float(value) for name, value in law.optimum_exponents(found.fit.coefficients).items()},
        "intervals": intervals({**found.bootstrap.coefficients, **law.optimum_exponents(found.bootstrap.coefficients)}),
        "bootstrap": {
            "draws": len(found.bootstrap),
            "clusters": found.bootstrap.clusters,
            "redrawn": found.bootstrap.redrawn,
            "seed": found.question.seed,
        },
        "coefficients_with_dropped": found.with_dropped,
        "hold_out": _hold_out(found),
        "hold_out_ladder": [vars(cut) for cut in found.ladder],
        "cross_checks": [{**vars(check), "difference": check.difference} for check in found.cross_checks],
        "predictions": [{**vars(prediction), "far": prediction.far} for prediction in found.predictions],
        "downstream": _downstream(found),
    }
    return plain


def _hold_out(found: Study) -> dict[str, Any]:
    held = found.hold_out
    if held is None:
        return {"refused": found.hold_out_refused}
    runs = held.runs
    rows = [
        {
            "id": runs.id[place],
            "n": float(runs.n[place]),
            "d": float(runs.d[place]),
            "flops": float(runs.flops[place]),
            "predicted": float(held.predicted[place]),
            "actual": float(runs.loss[place]),
            "error": float(held.errors[place]),
            "intervals": {
                str(level): [float(low[place]), float(high[place])] for level, (low, high) in held.intervals.items()
            },
        }
        for place in range(len(runs))
    ]
    sizes = np.abs(held.errors)
    return {
        "fitted": held.fitted,
        "held_out": len(runs),
        "mean_error": float(sizes.mean()),
        "largest_error": float(sizes.max()),
        "bias": float(held.errors.mean()),
        "within": {str(level): held.within(level) for level in held.intervals},
        "extrapolation": held.extrapolation,
        "shared_trunks": held.shared_trunks,
        "coefficients": held.fit.coefficients,
        "notes": list(held.notes),
        "runs": rows,
    }


def _downstream(found: Study) -> dict[str, Any] | None:
    if found.downstream is None:
        return {"refused": found.downstream_refused} if found.downstream_refused else None
    task = found.downstream
    return {
        "column": task.column,
        "runs": task.used,
        "at_chance": task.at_chance,
        "laws": [vars(law) for law in task.laws],
        "predictions": [
            {"flops": flops, "score": score, "interval_80": [low, high]}
            for flops, (score, low, high) in task.predictions.items()
        ],
    }


def _without_highest(runs: Runs, count: int) -> tuple[Runs, list[str]]:
    order = np.argsort(-runs.loss, kind="stable")
    dropped = set(order[:count].tolist())
    keep = [place for place in range(len(runs)) if place not in dropped]
    return runs[np.array(keep, int)], [runs.id[place] for place in order[:count]]


def _notes(runs: Runs) -> tuple[str, ...]:
    factors = runs.flops / (runs.n * runs.d)
    if factors.max() > 1.1 * factors.min():
        return (
            f"compute per parameter and token differs among the runs, {factors.min():.3g} to {factors.max():.3g};"
            f" optima use the median, {np.median(factors):.3g}",
        )
    return ()
