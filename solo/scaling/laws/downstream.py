"""Predicts the score of a downstream task from the loss, if enough runs score above chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from solo.scaling.laws.bootstrap import Bootstrap, interval
from solo.scaling.laws.fit import Fit, FitRefusedError
from solo.scaling.laws.law import Array
from solo.scaling.laws.optimum import optimum
from solo.scaling.laws.predict import Prediction

FEWEST_ABOVE_CHANCE = 6
_MARGIN = 0.01  # share of the scale; a score this close to chance counts as chance
_DRAWS = 200


@dataclass(frozen=True)
class TaskLaw:
    """An error rate as a function of the loss, from 0 to 1.

    form            exponential: top - k exp(-gamma L), Gadre et al. 2024 (arXiv 2403.08540);
                    sigmoid: chance - (chance - floor) / (1 + exp(slope (L - middle)))
    coefficients    coefficients by name
    squares         sum of squared errors of the fit
    """

    form: str
    coefficients: dict[str, float]
    squares: float

    def error(self, loss: Array | float) -> Array:
        """Returns the error rate at a loss."""
        return _FORMS[self.form](np.array(list(self.coefficients.values())), np.asarray(loss, float))


@dataclass(frozen=True)
class Downstream:
    """The laws that predict the scores of a task.

    laws            one of each form, best fit first
    used            number of runs above chance, to which the laws were fitted
    at_chance       number of runs left out because they score at chance
    predictions     compute -> the score that the best law predicts, and its 80% interval (score, low, high)
    """

    column: str
    laws: tuple[TaskLaw, ...]
    used: int
    at_chance: int
    predictions: dict[float, tuple[float, float, float]]


def fit_exponential(loss: Array, error: Array) -> TaskLaw:
    """Fits the error rate as top - k exp(-gamma L), by least squares."""
    starts = []
    for gamma in np.geomspace(0.05, 20.0, 40):
        columns = np.stack([np.ones_like(loss), -np.exp(-gamma * loss)], axis=1)
        (top, k), *_ = np.linalg.lstsq(columns, error, rcond=None)
        starts.append((float(((columns @ [top, k] - error) ** 2).sum()), [top, k, gamma]))
    return _finish("exponential", ("top", "k", "gamma"), [start for _, start in sorted(starts)[:3]], loss, error)


def fit_sigmoid(loss: Array, error: Array, chance: float) -> TaskLaw:
    """Fits the error rate as a sigmoid of the loss that starts at chance, by least squares."""
    starts = [
        [chance, float(min(error.min(), chance) * share), slope, float(middle)]
        for share in (0.5, 0.95)
        for slope in (1.0, 4.0, 12.0)
        for middle in np.quantile(loss, [0.1, 0.5, 0.9])
    ]
    return _finish("sigmoid", ("chance", "floor", "slope", "middle"), starts, loss, error)


def fit_task(
    fitted: Fit,
    draws: Bootstrap,
    predictions: Sequence[Prediction],
    column: str,
    chance: float,
    is_error: bool,
    seed: int = 0,
) -> Downstream:
    """Fits the scores of the runs as functions of their losses, and predicts scores from predicted losses.

    Args:
        fitted: the law of the loss; its runs contain the scores, from 0 to 1 or in percent.
        draws: its bootstrap.
        predictions: predictions of the loss.
        column: name of the column of scores.
        chance: score of random guessing, on the scale of the scores.
        is_error: whether scores are errors, so that lower is better.
        seed: seed of the resampling.

    Raises:
        FitRefusedError: too few runs score above chance, or a score is negative or above 100.
    """
    runs = fitted.runs
    low, high = np.nanmin([*runs.score, chance]), np.nanmax([*runs.score, chance])
    if low < 0 or high > 100:
        raise FitRefusedError(f"{column} lies between {low:g} and {high:g}; expected scores from 0 to 1, or in percent")
    scale = 100.0 if np.nanmax([*runs.score, chance]) > 1.5 else 1.0
    has = np.isfinite(runs.score)
    errors = runs.score / scale if is_error else 1.0 - runs.score / scale
    guess = chance / scale if is_error else 1.0 - chance / scale
    above = has & (np.where(has, errors, 1.0) < guess - _MARGIN)
    if (used := int(above.sum())) < FEWEST_ABOVE_CHANCE:
        raise FitRefusedError(
            f"{column}: {used} of {int(has.sum())} runs are above chance ({chance:g}); a law of the score needs"
            f" {FEWEST_ABOVE_CHANCE}. Only the loss can be predicted"
        )
    loss, error = runs.loss[above], errors[above]
    laws = sorted((fit_exponential(loss, error), fit_sigmoid(loss, error, guess)), key=lambda law: law.squares)
    best = laws[0]
    generator = np.random.default_rng(seed)
    resampled = []
    for _ in range(_DRAWS):
        rows = generator.integers(len(loss), size=len(loss))
        if len(np.unique(loss[rows])) > len(best.coefficients):
            start = [list(best.coefficients.values())]
            resampled.append(_finish(best.form, tuple(best.coefficients), start, loss[rows], error[rows]))
    carried = {}
    for prediction in predictions:
        factor = fitted.runs.flops_factor
        spread = optimum(fitted.law, draws.coefficients, prediction.flops, factor, prediction.at)["loss"]
        chosen = generator.choice(spread, size=len(resampled))
        ends = interval(np.array([float(law.error(value)) for law, value in zip(resampled, chosen, strict=True)]), 80)
        found = (float(best.error(prediction.loss)), *ends)
        scores = [scale * (value if is_error else 1.0 - value) for value in found]
        carried[prediction.flops] = (scores[0], min(scores[1:]), max(scores[1:]))
    return Downstream(column, tuple(laws), used, int(has.sum()) - used, carried)


def _exponential(values: Array, loss: Array) -> Array:
    top, k, gamma = values
    return np.asarray(top - k * np.exp(-gamma * loss))


def _sigmoid(values: Array, loss: Array) -> Array:
    chance, floor, slope, middle = values
    return np.asarray(chance - (chance - floor) / (1.0 + np.exp(np.clip(slope * (loss - middle), -500, 500))))


_FORMS: dict[str, Callable[[Array, Array], Array]] = {"exponential": _exponential, "sigmoid": _sigmoid}


def _finish(form: str, names: tuple[str, ...], starts: list[list[float]], loss: Array, error: Array) -> TaskLaw:
    """Returns the best fit over all starts. A sigmoid's chance is held fixed, and its floor is at least 0."""
    fixed = 1 if form == "sigmoid" else 0
    lower = {"exponential": [-np.inf, -np.inf, 1e-3], "sigmoid": [0.0, 0.0, -np.inf]}[form]
    best: TaskLaw | None = None
    for start in starts:
        held = np.array(start[:fixed])

        def residuals(moving: Array, held: Array = held) -> Array:
            return _FORMS[form](np.concatenate([held, moving]), loss) - error

        first = np.maximum(start[fixed:], lower)
        done = least_squares(residuals, first, bounds=(lower, np.inf), xtol=1e-14, ftol=1e-14, gtol=1e-14)
        found = TaskLaw(form, dict(zip(names, map(float, [*held, *done.x]), strict=True)), float(2 * done.cost))
        best = found if best is None or found.squares < best.squares else best
    assert best is not None
    return best
