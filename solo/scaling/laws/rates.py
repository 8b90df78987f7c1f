"""The best learning rate or batch size as a power law in parameters and tokens, from runs that vary it.

Near its minimum, the log loss of runs of one size and length is a parabola in the log of the setting. All parabolas
have the same curvature, and their minima lie on r = R N^a D^b: that is linear in what is fitted, so the fit is unique.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solo.scaling.laws.bootstrap import Interval, interval, intervals, refit, simulated
from solo.scaling.laws.fit import Fit, FitRefusedError
from solo.scaling.laws.law import Array, Factor, Law, Term
from solo.scaling.laws.problem import SQUARES, Problem
from solo.scaling.laws.runs import SAME_SIZE, Runs, group_repeats
from solo.scaling.laws.solver import solve

FEWEST_CELLS, FEWEST_VALUES = 3, 3
WINDOW = 4.0  # settings within this factor of the best of their cell are fitted
_WORST_EXPONENT = 1.0  # standard deviation of an exponent of the setting
_ANY = (-1e3, 1e3)


@dataclass(frozen=True)
class Published:
    """A published law r = R N^a D^b."""

    source: str
    factor: float
    a: float
    b: float

    def at(self, n: Array, d: Array) -> Array:
        """Returns the setting that it recommends."""
        return np.asarray(self.factor * n**self.a * d**self.b)


# Li et al. 2025 (arXiv 2503.04715): N without embeddings, batch in tokens, AdamW in the standard parametrisation.
STEP_LAWS = {
    "rate": Published("the step law, 1.79 N^-0.713 D^0.307", 1.79, -0.713, 0.307),
    "batch": Published("the step law, 0.58 D^0.571 tokens", 0.58, 0.0, 0.571),
}


@dataclass(frozen=True)
class Cell:
    """Runs of one size and length.

    settings, losses    those that were fitted
    best                the best setting by the law, and its 80% interval
    published           what the published law recommends
    at_edge             whether the lowest loss is at the smallest or the largest setting
    """

    n: float
    d: float
    settings: Array
    losses: Array
    best: tuple[float, Interval]
    published: float
    at_edge: bool


@dataclass(frozen=True)
class RateLaw:
    """The fitted law of one setting.

    kind        rate or batch
    values      R, a, b, curvature: the relative loss given up at e times the best setting
    intervals   level -> interval of each
    used        runs that were fitted, of `runs`
    """

    kind: str
    column: str
    loss: str
    published: Published
    values: dict[str, float]
    intervals: dict[str, dict[str, Interval]]
    scatter: float
    cells: tuple[Cell, ...]
    used: int
    runs: int
    notes: tuple[str, ...]


def fit_rates(
    kind: str, column: str, loss: str, runs: Runs, settings: Array, draws: int = 1000, seed: int = 0
) -> RateLaw:
    """Fits the law of a setting.

    Args:
        kind: `rate` or `batch`, for the published law.
        column: name of the setting.
        loss: name of the loss.
        runs: finished runs.
        settings: their learning rates or batch sizes: [R].
        draws: data sets that are simulated for the intervals.
        seed: seed of the simulation.

    Raises:
        FitRefusedError: fewer than three sizes or lengths have three settings, the losses have no minimum in the
            setting, or an exponent is not determined.
    """
    cells = [near for cell in group_repeats(runs) if len(near := _near(runs, settings, cell)) >= FEWEST_VALUES]
    cells = [cell for cell in cells if _distinct(settings[cell]) >= FEWEST_VALUES]
    if len(cells) < FEWEST_CELLS:
        raise FitRefusedError(
            f"{len(cells)} pairs of size and tokens have {FEWEST_VALUES} values of {column} within a factor of"
            f" {WINDOW:g} of the best; a law needs {FEWEST_CELLS} such pairs"
        )
    rows = np.concatenate(cells)
    group = np.repeat(np.arange(len(cells)), [len(cell) for cell in cells])
    part, logs = runs[rows], np.log(settings[rows])
    n, d = np.log(part.n), np.log(part.d)
    centre, n_centre, d_centre = logs.mean(), n.mean(), d.mean()
    x = logs - centre
    slopes = {"p": x, "pn": x * (n - n_centre), "pd": x * (d - d_centre)}
    # Powers that cannot be told apart from a constant, or from each other, are left out.
    varied = {"pn": _varies(part.n), "pd": _varies(part.d)}
    if all(varied.values()) and abs(np.corrcoef(n, d)[0, 1]) > 0.999:
        varied["pd"] = False
    slopes = {name: values for name, values in slopes.items() if varied.get(name, True)}
    fitted = _linear(part, group, {"q": x**2, **slopes})
    problem = refit(fitted, simulated(fitted, fitted, draws, seed))
    spread = problem.coefficients(solve(problem, np.repeat(fitted.vector[None], draws, axis=0)).vectors)
    if not fitted.coefficients["q"] < 0 or np.mean(np.asarray(spread["q"]) >= 0) > 0.025:
        raise FitRefusedError(f"the losses have no minimum in {column}: they do not rise on both sides of a best value")

    def law(found: dict[str, Array] | dict[str, float]) -> dict[str, Array]:
        q = -np.asarray(found["q"])
        a, b, level = (np.asarray(found.get(name, 0.0)) / (2 * q) for name in ("pn", "pd", "p"))
        return {"R": np.exp(centre + level - a * n_centre - b * d_centre), "a": a, "b": b, "curvature": q}

    values, draws_of = law(fitted.coefficients), law(spread)
    for name in ("a", "b"):
        if (error := float(np.std(draws_of[name]))) > _WORST_EXPONENT:
            raise FitRefusedError(
                f"not identified: {name} = {float(values[name]):.2g} ± {error:.2g}; more sizes and lengths, further"
                f" apart, or more values of {column} would decide"
            )
    published = STEP_LAWS[kind]
    found = tuple(_cell(runs, settings, cell, values, draws_of, published) for cell in cells)
    notes = []
    if not varied["pn"]:
        notes.append("all runs have the same parameters, so there is no exponent of N")
    if not varied["pd"]:
        notes.append("tokens do not vary apart from parameters, so there is no exponent of D of its own")
    if edges := sum(cell.at_edge for cell in found):
        notes.append(f"in {edges} of {len(found)} pairs the lowest loss is at the smallest or largest {column}")
    return RateLaw(
        kind=kind,
        column=column,
        loss=loss,
        published=published,
        values={name: float(value) for name, value in values.items()},
        intervals=intervals({name: np.broadcast_to(value, (draws,)) for name, value in draws_of.items()}),
        scatter=fitted.scatter,
        cells=found,
        used=len(part),
        runs=len(runs),
        notes=tuple(notes),
    )


def _near(runs: Runs, settings: Array, cell: np.ndarray) -> np.ndarray:
    best = settings[cell][np.argmin(runs.loss[cell])]
    ratio = settings[cell] / best
    return cell[(ratio <= WINDOW * 1.001) & (ratio >= 0.999 / WINDOW)]


def _distinct(settings: Array) -> int:
    return len(np.unique(np.round(np.log(settings), 3)))


def _varies(values: Array) -> bool:
    return bool(values.max() > SAME_SIZE * values.min())


def _linear(runs: Runs, group: np.ndarray, features: dict[str, Array]) -> Fit:
    """Fits log L = level of the group - sum of coefficient * feature: a law with one exponential term."""
    factors = tuple(Factor(name, name, exponential=True, signed=True, range=_ANY) for name in features)
    names = [str(place) for place in range(int(group.max()) + 1)]
    law = Law("setting", "", (Term("L", factors),), fewest_runs=9).joint(names, ["L"])
    part = Runs(**{**vars(runs), "group": group, "more": features})
    problem = Problem(law, part, SQUARES)
    columns = np.concatenate(
        [np.equal.outer(group, np.arange(len(names))), *(-values[:, None] for values in features.values())], axis=1
    )
    start = np.linalg.lstsq(columns, np.log(runs.loss), rcond=None)[0]
    by_name = dict(zip(law.coefficients, start, strict=True))
    vector = problem.vector({name: np.exp(v) if name.startswith("L[") else v for name, v in by_name.items()})
    found = solve(problem, vector[None])
    coefficients = {name: float(value) for name, value in problem.coefficients(found.vectors[0]).items()}
    return Fit(problem, found.vectors[0], coefficients, float(found.objective[0]), 1, 1, float("nan"), ())


def _cell(
    runs: Runs, settings: Array, cell: np.ndarray, values: dict[str, Array], draws: dict[str, Array], law: Published
) -> Cell:
    part = runs[cell]
    n, d = float(np.median(part.n)), float(np.median(part.d))

    def best(found: dict[str, Array]) -> Array:
        return np.asarray(found["R"] * n ** found["a"] * d ** found["b"])

    order = np.argsort(settings[cell], kind="stable")
    lowest = settings[cell][np.argmin(part.loss)]
    return Cell(
        n=n,
        d=d,
        settings=settings[cell][order],
        losses=part.loss[order],
        best=(float(best(values)), interval(best(draws), 80)),
        published=float(law.at(np.array(n), np.array(d))),
        at_edge=bool(lowest in (settings[cell].min(), settings[cell].max())),
    )
