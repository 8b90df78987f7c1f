"""The objective of a fit and its first derivatives, for many parameter vectors at once.

A law is written as log L = logsumexp(a - alpha x, b - beta y, e). The fitted parameters are log amplitudes and
exponents, so that every amplitude is positive (Hoffmann et al. 2022, arXiv 2203.15556). x and y are log variables minus
their means, which makes amplitudes and exponents nearly uncorrelated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from solo.scaling.laws.law import Array, Factor, Law
from solo.scaling.laws.runs import Runs

HUBER_DELTA = 1e-3
# An amplitude below this share of the lowest loss is indistinguishable from zero.
_LEAST_SHARE = 1e-6
_STEP = 1e-6  # of a logarithm, for numerical derivatives of derived variables


@dataclass(frozen=True)
class Objective:
    """What a fit minimises: a Huber loss of log L, or squared errors of L.

    overestimates   weight of runs that lie below the law. Above 1, runs with badly tuned settings, whose loss is too
                    high, pull the law up less: it approaches the lower envelope of the runs
    """

    name: str
    overestimates: float = 1.0

    @property
    def text(self) -> str:
        """The objective in words."""
        if self.name == "squares":
            return "sum of squared errors of L, halved"
        weight = "" if self.overestimates == 1 else f", overestimates weighted {self.overestimates:g} times"
        return f"sum of Huber losses of log L, delta {HUBER_DELTA:g}{weight}"


HUBER, SQUARES = Objective("huber"), Objective("squares")
ASYMMETRIC = Objective("huber", 10.0)


@dataclass(frozen=True)
class Value:
    """The objective at J vectors [J], its gradient [J,P], and two approximations of its Hessian [J,P,P].

    gauss_newton   uses the curvature of the Huber loss, which is zero beyond delta
    majoriser      uses the curvature of a parabola that touches the Huber loss from above, which is always positive
    """

    objective: Array
    gradient: Array
    gauss_newton: Array
    majoriser: Array


class Slot:
    """A parameter in the solver's vector: one place, or one for each group, which then differs among the runs."""

    def __init__(self, law: Law, base: str, group: np.ndarray):
        """Finds the places of the parameter `base`; `group` is the place of each run's group, [R]."""
        self.places = [place for place, parameter in enumerate(law.parameters) if parameter.base == base]
        self.own = base in law.own
        self.group = group
        self.rows: list[Any] = [group == place for place in range(len(self.places))] if self.own else [slice(None)]

    def of(self, vectors: Array) -> Array:
        """Returns the parameter for each run: [J,R], or [J,1] if all runs share it."""
        return vectors[:, np.array(self.places)[self.group]] if self.own else vectors[:, self.places[0], None]

    def add(self, slopes: Array, part: Array) -> None:
        """Adds derivatives [J,R] to the rows of the parameter in the derivatives of all of them, [J,P,R]."""
        for place, rows in zip(self.places, self.rows, strict=True):
            slopes[:, place, rows] += part[:, rows]


class Problem:
    """The objective as a function of vectors of P parameters: log amplitudes, exponents, log shapes.

    Amplitudes refer to the centred variables, where every term is about as large as the loss.
    """

    def __init__(self, law: Law, runs: Runs, objective: Objective = HUBER, loss: Array | None = None):
        """Precomputes what is constant. `loss`, [R] or [J,R] (one row per vector), replaces the losses of the runs."""
        self.law, self.runs, self.objective = law, runs, objective
        self.loss = runs.loss if loss is None else loss
        self.log_loss = np.log(self.loss)
        measured = runs.variables()
        self.scales = [1.0 if shape.per is None else 1.0 / float(measured[shape.per].mean()) for shape in law.shapes]
        self.features: dict[tuple[str, bool], Array] = {}
        self.means: dict[tuple[str, bool], float] = {}
        derived = None
        if law.derived:
            middle = [shape.starts[len(shape.starts) // 2] * scale for shape, scale in self._shapes()]
            derived = law.derived.value(measured, middle)
        for _, factor in self._factors():
            is_derived = law.derived is not None and factor.variable == law.derived.variable
            values = factor.feature(derived if is_derived and derived is not None else measured[factor.variable])
            mean = float(values.mean()) if factor.exponent else 0.0
            self.means[_key(factor)] = mean
            if not is_derived:
                self.features[_key(factor)] = values - mean
        names = [*law.amplitudes, *law.exponents, *(shape.name for shape in law.shapes)]
        self.slots = {name: Slot(law, name, runs.group) for name in names}
        self.lower, self.upper = self._bounds()

    def evaluate(self, vectors: Array, weights: Array) -> Value:
        """Returns the objective and its derivatives at vectors [J,P] with a weight per run, [J,R] or [R]."""
        residual, jacobian = self._residuals(vectors, derivatives=True)
        slope, curvature, cap = self.huber(residual)
        transposed = jacobian.swapaxes(1, 2)
        return Value(
            self._sum(residual, weights),
            (jacobian @ (weights * slope)[..., None])[..., 0],
            (jacobian * (weights * curvature)[:, None, :]) @ transposed,
            (jacobian * (weights * cap)[:, None, :]) @ transposed,
        )

    def value(self, vectors: Array, weights: Array) -> Array:
        """Returns only the objective, [J]."""
        return self._sum(self._residuals(vectors)[0], weights)

    def only(self, rows: Any) -> Problem:
        """Returns the problem for a subset of the vectors, which matters if each vector has its own losses."""
        if self.loss.ndim == 1:
            return self
        part = copy(self)
        part.loss, part.log_loss = self.loss[rows], self.log_loss[rows]
        return part

    def coefficients(self, vectors: Array) -> dict[str, Array]:
        """Returns the law's coefficients in natural units, uncentred, for vectors [..., P]."""
        found = {name: vectors[..., place] for place, name in enumerate(self.law.coefficients)}
        return self._natural(found)

    def vector(self, coefficients: Mapping[str, Any]) -> Array:
        """Returns the vector [P] of these coefficients, clipped to the bounds: the inverse of `coefficients`."""
        found = {name: float(coefficients[name]) for name in self.law.coefficients}
        moves = self._moves(found)
        for parameter in self.law.parameters:
            if parameter.kind == "amplitude":
                found[parameter.name] = np.log(max(found[parameter.name], 1e-300)) - moves[parameter.name]
        for shape, scale in self._shapes():
            for parameter in self.law.parameters:
                if parameter.base == shape.name:
                    found[parameter.name] = np.log(found[parameter.name] / scale)
        return np.clip(np.array(list(found.values())), self.lower, self.upper)

    def residuals(self, vector: Array) -> Array:
        """Returns the residuals at one vector, in log loss (`huber`) or in loss (`squares`): [R]."""
        return self._residuals(vector[None])[0][0]

    def jacobian(self, vector: Array) -> Array:
        """Returns the derivatives of `residuals`: [R,P]."""
        return self._residuals(vector[None], derivatives=True)[1][0].T

    def _factors(self) -> Iterator[tuple[int, Factor]]:
        for place, term in enumerate(self.law.terms):
            for factor in term.factors:
                yield place, factor

    def _shapes(self) -> Iterator[tuple[Any, float]]:
        return zip(self.law.shapes, self.scales, strict=True)

    def _natural(self, found: dict[str, Array]) -> dict[str, Array]:
        moves = self._moves(found)
        scales = {shape.name: scale for shape, scale in self._shapes()}
        return {
            parameter.name: np.exp(found[parameter.name] + moves[parameter.name])
            if parameter.kind == "amplitude"
            else np.exp(found[parameter.name]) * scales[parameter.base]
            if parameter.kind == "shape"
            else found[parameter.name]
            for parameter in self.law.parameters
        }

    def _moves(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what centring the variables adds to each log amplitude.

        Groups that share an amplitude also share the exponents of its term, or it would depend on the centre.
        """
        moves: dict[str, Any] = {}
        by_name = {term.coefficient: term for term in self.law.terms}
        for parameter in self.law.parameters:
            if parameter.kind == "amplitude":
                total: Any = 0.0
                for factor in by_name[parameter.base].factors:
                    if factor.exponent:
                        own = factor.exponent in self.law.own and parameter.group is not None
                        name = f"{factor.exponent}[{self.law.groups[parameter.group or 0]}]" if own else factor.exponent
                        total = total + found[name] * self.means[_key(factor)]
                moves[parameter.name] = total
        return moves

    def _residuals(self, vectors: Array, derivatives: bool = False) -> tuple[Array, Array]:
        """Returns residuals [J,R] and, if asked for, their derivatives [J,P,R]."""
        log_terms, derived, bends = self._log_terms(vectors, derivatives)
        top = log_terms.max(axis=0)
        shares = np.exp(log_terms - top)
        total = shares.sum(axis=0)
        log_loss = top + np.log(total)
        if self.objective.name == "huber":
            residual, scale = log_loss - self.log_loss, np.ones_like(log_loss)
        else:
            scale = np.exp(np.minimum(log_loss, 300.0))
            residual = scale - self.loss
        if not derivatives:
            return residual, shares
        # The gradient of a logsumexp is the softmax-weighted mean of the gradients of its terms.
        shares *= scale / total
        slopes = np.zeros((len(vectors), len(self.law.parameters), len(self.runs)))
        for place, term in enumerate(self.law.terms):
            self.slots[term.coefficient].add(slopes, shares[place])
            for factor in term.factors:
                values = self.features.get(_key(factor))
                if factor.exponent:
                    slot = self.slots[factor.exponent]
                    slot.add(slopes, -shares[place] * (derived if values is None else values))
                if values is None:
                    power = -self.slots[factor.exponent].of(vectors) if factor.exponent else 1.0
                    for shape, bend in zip(self.law.shapes, bends, strict=True):
                        self.slots[shape.name].add(slopes, shares[place] * power * bend)
        return residual, slopes

    def _log_terms(self, vectors: Array, derivatives: bool) -> tuple[Array, Array, list[Array]]:
        """Returns log terms [K,J,R]; the centred logarithm of the derived variable [J,R]; and its derivatives with
        respect to the log of each shape, [J,R] each. Without a derived variable, the last two are empty.
        """
        derived, bends = self._derived(vectors, derivatives)
        terms = np.empty((len(self.law.terms), len(vectors), len(self.runs)))
        for place, term in enumerate(self.law.terms):
            terms[place] = self.slots[term.coefficient].of(vectors)
            for factor in term.factors:
                values = self.features.get(_key(factor), derived)
                terms[place] -= (self.slots[factor.exponent].of(vectors) if factor.exponent else -1.0) * values
        return terms, derived, bends

    def _derived(self, vectors: Array, derivatives: bool) -> tuple[Array, list[Array]]:
        law = self.law.derived
        if law is None:
            return np.zeros(1), []
        measured = self.runs.variables()
        (mean,) = [mean for (name, _), mean in self.means.items() if name == law.variable]
        logs = [self.slots[shape.name].of(vectors) for shape in law.shapes]

        def at(moved: list[Array]) -> Array:
            shapes = [np.exp(log) * scale for log, scale in zip(moved, self.scales, strict=True)]
            return np.asarray(np.log(law.value(measured, shapes)) - mean)

        bends = []
        for place in range(len(logs) if derivatives else 0):
            ahead, behind = (
                at([log + move * (other == place) for other, log in enumerate(logs)]) for move in (_STEP, -_STEP)
            )
            bends.append((ahead - behind) / (2 * _STEP))
        return at(logs), bends

    def _bounds(self) -> tuple[Array, Array]:
        """Returns the lower and upper bounds of the search, [P] each."""
        low, high = np.log(self.loss.min() * _LEAST_SHARE), np.log(self.loss.max()) + 10.0
        ends = []
        for parameter in self.law.parameters:
            if parameter.kind == "amplitude":
                ends.append((low, high))
            else:
                ends.append(parameter.range if parameter.kind == "exponent" else tuple(np.log(parameter.range)))
        lower, upper = np.array(ends, float).T
        return lower, upper

    def huber(self, residual: Array) -> tuple[Array, Array, Array]:
        """Returns slope and curvature of the loss at a residual, and the curvature of its majorising parabola."""
        weight: Any = 1.0
        if self.objective.overestimates != 1:
            weight = np.where(residual > 0, self.objective.overestimates, 1.0)
        if self.objective.name == "squares":
            ones = np.ones_like(residual) * weight
            return residual * weight, ones, ones
        size = np.abs(residual)
        cap = HUBER_DELTA / np.maximum(size, HUBER_DELTA) * weight
        return residual * cap, np.asarray((size <= HUBER_DELTA) * weight, float), cap

    def _sum(self, residual: Array, weights: Array) -> Array:
        size = np.abs(residual)
        inside = 0.5 * size**2
        if self.objective.name == "huber":
            inside = np.where(size <= HUBER_DELTA, inside, HUBER_DELTA * (size - 0.5 * HUBER_DELTA))
        if self.objective.overestimates != 1:
            inside = np.where(residual > 0, self.objective.overestimates * inside, inside)
        return np.asarray((weights * inside).sum(axis=-1))


def _key(factor: Factor) -> tuple[str, bool]:
    return factor.variable, factor.exponential
