"""Everything that is said of one loss: the law, its intervals, its hold-out, its cross-checks, its predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from solo.scaling.laws.bootstrap import DRAWS, Bootstrap, bootstrap, intervals
from solo.scaling.laws.cross_check import CrossCheck, cross_checks
from solo.scaling.laws.downstream import Downstream, fit_task
from solo.scaling.laws.fit import Fit, FitRefusedError, fit
from solo.scaling.laws.hold_out import Cut, HoldOut, hold_out, hold_out_ladder
from solo.scaling.laws.law import CHINCHILLA, Law
from solo.scaling.laws.predict import Prediction, predict
from solo.scaling.laws.problem import OBJECTIVES
from solo.scaling.laws.runs import Runs
from solo.scaling.laws.table import SetAside

T = TypeVar("T")


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
class Answer:
    """A law and what follows from it.

    with_dropped    coefficients of the law fitted with the highest losses too, where they were left out
    """

    fit: Fit
    bootstrap: Bootstrap
    with_dropped: dict[str, float] | None
    hold_out: HoldOut | None
    hold_out_refused: str | None
    ladder: tuple[Cut, ...]
    cross_checks: tuple[CrossCheck, ...]
    predictions: tuple[Prediction, ...]
    downstream: Downstream | None
    downstream_refused: str | None
    notes: tuple[str, ...]

    def values(self) -> dict[str, float]:
        """Coefficients, and exponents of the optimum."""
        coefficients = self.fit.coefficients
        exponents = self.fit.law.optimum_exponents(coefficients)
        return {**coefficients, **{name: float(value) for name, value in exponents.items()}}

    def intervals(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Intervals of `values`."""
        draws = self.bootstrap.coefficients
        return intervals({**draws, **self.fit.law.optimum_exponents(draws)})


@dataclass(frozen=True)
class Study:
    """What came of one loss of one group of runs; without an answer, `refused` says why."""

    loss: str
    group: str | None
    question: Question
    runs: Runs
    set_aside: tuple[SetAside, ...]
    seed_noise: float | None
    answer: Answer | None
    refused: str | None

    @property
    def title(self) -> str:
        """The loss, and the group of runs where there are several."""
        return self.loss if self.group is None else f"{self.loss} · {self.group}"


def study(
    loss: str, runs: Runs, question: Question, group: str | None = None, set_aside: Sequence[SetAside] = ()
) -> Study:
    """Answer the question for one loss. A refusal is part of the answer, not an error."""
    aside, everything = list(set_aside), runs
    if question.drop_highest:
        runs, dropped = _without_highest(runs, question.drop_highest)
        aside += [SetAside(name, f"one of the {question.drop_highest} highest losses") for name in dropped]
    answer, refused = _attempt(_answer, runs, everything, question)
    return Study(loss, group, question, runs, tuple(aside), seed_noise(runs), answer, refused)


def _answer(runs: Runs, everything: Runs, question: Question) -> Answer:
    """Raises FitRefusedError where there is no law; what else cannot be said is said in the answer."""
    law, objective, seed = question.law, question.objective, question.seed
    fitted = fit(law, runs, objective)
    draws = bootstrap(fitted, question.draws, seed)
    all_of_them, _ = _attempt(fit, law, everything, objective) if question.drop_highest else (None, None)
    held, held_refused = _attempt(hold_out, law, runs, objective, question.hold_out, seed)
    predictions = tuple(predict(fitted, draws, flops, question.unique) for flops in question.predict)
    task, task_refused = None, None
    if question.score:
        asked = (question.score, question.chance, question.score_is_error, seed)
        task, task_refused = _attempt(fit_task, fitted, draws, predictions, *asked)
    return Answer(
        fit=fitted,
        bootstrap=draws,
        with_dropped=None if all_of_them is None else all_of_them.coefficients,
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
    """What a part of the answer comes to, or why it is refused."""
    try:
        return part(*arguments), None
    except FitRefusedError as refusal:
        return None, str(refusal)


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
    }
    answer = found.answer
    if answer is None:
        return plain
    fitted, draws = answer.fit, answer.bootstrap
    values = answer.values()
    return plain | {
        "coefficients": fitted.coefficients,
        "objective": {
            "value": fitted.objective,
            "name": found.question.objective,
            "is": OBJECTIVES[found.question.objective],
        },
        "scatter": fitted.scatter,
        "starts": {"tried": fitted.starts, "agreeing": fitted.agreeing},
        "condition": fitted.condition,
        "exponents": {name: value for name, value in values.items() if name not in fitted.coefficients},
        "intervals": answer.intervals(),
        "bootstrap": {
            "draws": len(draws),
            "clusters": draws.clusters,
            "redrawn": draws.redrawn,
            "seed": found.question.seed,
        },
        "coefficients_with_dropped": answer.with_dropped,
        "hold_out": _hold_out(answer),
        "hold_out_ladder": [vars(cut) for cut in answer.ladder],
        "cross_checks": [{**vars(check), "difference": check.difference} for check in answer.cross_checks],
        "predictions": [{**vars(prediction), "far": prediction.far} for prediction in answer.predictions],
        "downstream": _downstream(answer),
        "notes": list(answer.notes),
    }


def _hold_out(answer: Answer) -> dict[str, Any]:
    held = answer.hold_out
    if held is None:
        return {"refused": answer.hold_out_refused}
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


def _downstream(answer: Answer) -> dict[str, Any] | None:
    task = answer.downstream
    if task is None:
        return {"refused": answer.downstream_refused} if answer.downstream_refused else None
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
