"""The objective of a fit and its first derivatives, for many parameter vectors at once.

A law is written as log L = logsumexp(a - alpha x, b - beta y, e). The fitted parameters are log amplitudes and
exponents, so that every amplitude is positive (Hoffmann et al. 2022, arXiv 2203.15556). x and y are log variables minus
their means, which makes amplitudes and exponents nearly uncorrelated.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from solo.scaling.laws.law import Array, Law, effective_tokens
from solo.scaling.laws.runs import Runs

HUBER_DELTA = 1e-3
OBJECTIVES = {
    "huber": f"sum of Huber losses of log L, delta {HUBER_DELTA:g}",
    "squares": "sum of squared errors of L, halved",
}
LOWEST_EXPONENT, HIGHEST_EXPONENT = 0.01, 3.0
# An amplitude below this share of the lowest loss is indistinguishable from zero.
_LEAST_SHARE = 1e-6
_REPEATS_RANGE = (0.1, 1000.0)


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


class Problem:
    """The objective as a function of vectors of P parameters: log amplitudes, exponents, log repeats.

    Amplitudes refer to the centred variables, where every term is about as large as the loss.
    """

    def __init__(self, law: Law, runs: Runs, objective: str = "huber", loss: Array | None = None):
        """Precomputes what is constant. `loss`, [R] or [J,R] (one row per vector), replaces the losses of the runs."""
        if objective not in OBJECTIVES:
            raise ValueError(f"unknown objective {objective!r}; known: {sorted(OBJECTIVES)}")
        self.law, self.runs, self.objective = law, runs, objective
        self.loss = runs.loss if loss is None else loss
        self.logs = {name: np.log(values) for name, values in runs.variables().items() if name in law.variables}
        self.means = {name: float(values.mean()) for name, values in self.logs.items()}
        self._names = law.coefficients
        self.lower, self.upper = self._bounds()

    def evaluate(self, vectors: Array, weights: Array) -> Value:
        """Returns the objective and its derivatives at vectors [J,P] with a weight per run, [J,R] or [R]."""
        residual, jacobian = self._residuals(vectors, derivatives=True)
        slope, curvature, cap = self._huber(residual)
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
        part.loss = self.loss[rows]
        return part

    def coefficients(self, vectors: Array) -> dict[str, Array]:
        """Returns the law's coefficients in natural units, uncentred, for vectors [..., P]."""
        by_name = {name: vectors[..., place] for place, name in enumerate(self._names)}
        found: dict[str, Array] = {}
        for term in self.law.terms:
            mean = by_name[term.exponent] * self.means[str(term.variable)] if term.exponent else 0.0
            found[term.coefficient] = np.exp(by_name[term.coefficient] + mean)
        found |= {name: by_name[name] for name in self.law.exponents}
        if self.law.repeats:
            found[self.law.repeats] = np.exp(by_name[self.law.repeats])
        return {name: found[name] for name in self._names}

    def vector(self, coefficients: dict[str, Any]) -> Array:
        """Returns the vector [P] of these coefficients, clipped to the bounds: the inverse of `coefficients`."""
        found = [float(coefficients[name]) for name in self._names]
        for place, term in enumerate(self.law.terms):
            found[place] = np.log(max(found[place], 1e-300))
            if term.exponent:
                found[place] -= float(coefficients[term.exponent]) * self.means[str(term.variable)]
        if self.law.repeats:
            found[-1] = np.log(found[-1])
        return np.clip(np.array(found), self.lower, self.upper)

    def residuals(self, vector: Array) -> Array:
        """Returns the residuals at one vector, in log loss (`huber`) or in loss (`squares`): [R]."""
        return self._residuals(vector[None])[0][0]

    def jacobian(self, vector: Array) -> Array:
        """Returns the derivatives of `residuals`: [R,P]."""
        return self._residuals(vector[None], derivatives=True)[1][0].T

    def _residuals(self, vectors: Array, derivatives: bool = False) -> tuple[Array, Array]:
        """Returns residuals [J,R] and, if asked for, their derivatives [J,P,R]."""
        log_terms, logs, repeats = self._log_terms(vectors)
        top = log_terms.max(axis=0)
        shares = np.exp(log_terms - top)
        total = shares.sum(axis=0)
        log_loss = top + np.log(total)
        if self.objective == "huber":
            residual, scale = log_loss - np.log(self.loss), np.ones_like(log_loss)
        else:
            scale = np.exp(np.minimum(log_loss, 300.0))
            residual = scale - self.loss
        if not derivatives:
            return residual, shares
        # The gradient of a logsumexp is the softmax-weighted mean of the gradients of its terms.
        shares *= scale / total
        slopes = np.zeros((len(vectors), len(self._names), len(self.runs)))
        for place, term in enumerate(self.law.terms):
            slopes[:, self._names.index(term.coefficient)] = shares[place]
            if term.exponent:
                slopes[:, self._names.index(term.exponent)] -= shares[place] * logs[place]
            if term.variable == "d" and self.law.repeats:
                slopes[:, -1] = shares[place] * repeats
        return residual, slopes

    def _log_terms(self, vectors: Array) -> tuple[Array, list[Array], Array]:
        """Returns log terms [K,J,R]; the centred variable of each term ([R], or [J,R] if tokens repeat; zero for the
        floor); and the derivative of the token term with respect to log repeats ([J,R]; zero if no token repeats).
        """
        terms = np.empty((len(self.law.terms), len(vectors), len(self.runs)))
        logs: list[Array] = []
        repeats: Array = np.zeros(1)
        for place, term in enumerate(self.law.terms):
            amplitude = vectors[:, self._names.index(term.coefficient), None]
            if not (term.exponent and term.variable):
                terms[place] = amplitude
                logs.append(np.zeros(1))
                continue
            exponent = vectors[:, self._names.index(term.exponent), None]
            logs.append(self.logs[term.variable] - self.means[term.variable])
            if term.variable == "d" and self.law.repeats:
                # Effective tokens depend on the value of repeats; the derivative of their logarithm is numerical.
                step = 1e-6
                logs[-1], ahead, behind = (
                    np.log(effective_tokens(self.runs.d, self.runs.unique, np.exp(vectors[:, -1:] + move)))
                    - self.means["d"]
                    for move in (0.0, step, -step)
                )
                repeats = -exponent * (ahead - behind) / (2 * step)
            np.multiply(exponent, logs[-1], out=terms[place])
            np.subtract(amplitude, terms[place], out=terms[place])
        return terms, logs, repeats

    def _bounds(self) -> tuple[Array, Array]:
        """Returns the lower and upper bounds of the search, [P] each."""
        amplitudes, exponents = len(self.law.amplitudes), len(self.law.exponents)
        low, high = np.log(self.loss.min() * _LEAST_SHARE), np.log(self.loss.max()) + 10.0
        ends = [(low, high)] * amplitudes + [(LOWEST_EXPONENT, HIGHEST_EXPONENT)] * exponents
        if self.law.repeats:
            ends.append((np.log(_REPEATS_RANGE[0]), np.log(_REPEATS_RANGE[1])))
        lower, upper = np.array(ends).T
        return lower, upper

    def _huber(self, residual: Array) -> tuple[Array, Array, Array]:
        """Returns slope and curvature of the loss at a residual, and the curvature of its majorising parabola."""
        if self.objective == "squares":
            ones = np.ones_like(residual)
            return residual, ones, ones
        size = np.abs(residual)
        cap = HUBER_DELTA / np.maximum(size, HUBER_DELTA)
        return residual * cap, (size <= HUBER_DELTA).astype(float), cap

    def _sum(self, residual: Array, weights: Array) -> Array:
        size = np.abs(residual)
        inside = 0.5 * size**2
        if self.objective == "huber":
            inside = np.where(size <= HUBER_DELTA, inside, HUBER_DELTA * (size - 0.5 * HUBER_DELTA))
        return np.asarray((weights * inside).sum(axis=-1))
