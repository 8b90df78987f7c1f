"""The objective of a fit with its exact derivatives, for many coefficient vectors at once.

A law is fitted as log L = logsumexp(a - alpha x, b - beta y, e) in log coefficients and exponents, which keeps every
amplitude positive (Hoffmann et al. 2022). Variables are logarithms about their mean, so that the parameters hardly
pull at each other.
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
# An amplitude below this share of the lowest loss is no longer told from none at all.
_LEAST_SHARE = 1e-6
_REPEATS_RANGE = (0.1, 1000.0)


@dataclass(frozen=True)
class Value:
    """An objective at J vectors: the sum [J], its gradient [J,P], its Hessian and that of a bound above it [J,P,P]."""

    objective: Array
    gradient: Array
    hessian: Array
    majoriser: Array


class Problem:
    """What is minimised over vectors of P parameters: log amplitudes, exponents, log repeats.

    Amplitudes are those about the means of the variables, where all terms are of the size of the loss.
    """

    def __init__(self, law: Law, runs: Runs, objective: str = "huber", loss: Array | None = None):
        """Prepare the constant part. `loss` [R] or [J,R] takes the place of the runs' own (one row a vector)."""
        if objective not in OBJECTIVES:
            raise ValueError(f"unknown objective {objective!r}; known: {sorted(OBJECTIVES)}")
        self.law, self.runs, self.objective = law, runs, objective
        self.loss = runs.loss if loss is None else loss
        self.logs = {name: np.log(values) for name, values in runs.variables().items() if name in law.variables}
        self.means = {name: float(values.mean()) for name, values in self.logs.items()}
        self._names = law.coefficients
        self._design = self._constant_design()
        self.lower, self.upper = self._bounds()

    def evaluate(self, vectors: Array, weights: Array) -> Value:
        """Objective and derivatives at vectors [J,P], with a weight for each run [J,R] or [R]."""
        residual, shares, slopes, jacobian, scale = self._model(vectors)
        psi, curvature, cap = self._huber(residual)
        psi = psi * weights
        gradient = np.einsum("jr,jrp->jp", psi, jacobian)
        # Second derivative of the residual: of a logsumexp, and for plain errors of its exponential.
        bend = (psi * scale)[..., None] * shares
        if slopes.ndim == 3:
            runs, terms, parameters = slopes.shape
            outer = (slopes[..., :, None] * slopes[..., None, :]).reshape(runs * terms, parameters**2)
            hessian = (bend.reshape(len(bend), runs * terms) @ outer).reshape(-1, parameters, parameters)
        else:
            hessian = np.einsum("jrk,jrkp,jrkq->jpq", bend, slopes, slopes)
        curvature_weight = weights * curvature - psi if self.objective == "huber" else weights * curvature
        turned = jacobian.swapaxes(1, 2)
        hessian = hessian + (turned * curvature_weight[:, None, :]) @ jacobian
        majoriser = (turned * (weights * cap)[:, None, :]) @ jacobian
        return Value(self._sum(residual, weights), gradient, hessian, majoriser)

    def value(self, vectors: Array, weights: Array) -> Array:
        """The objective alone, [J]."""
        return self._sum(self._model(vectors, derivatives=False)[0], weights)

    def only(self, rows: Any) -> Problem:
        """The same problem for some of the vectors, where each has losses of its own."""
        if self.loss.ndim == 1:
            return self
        part = copy(self)
        part.loss = self.loss[rows]
        return part

    def coefficients(self, vectors: Array) -> dict[str, Array]:
        """The law's coefficients, natural and about no mean, for vectors [..., P]."""
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
        """The inverse of `coefficients`, [P], moved inside the bounds."""
        found = [float(coefficients[name]) for name in self._names]
        for place, term in enumerate(self.law.terms):
            found[place] = np.log(max(found[place], 1e-300))
            if term.exponent:
                found[place] -= float(coefficients[term.exponent]) * self.means[str(term.variable)]
        if self.law.repeats:
            found[-1] = np.log(found[-1])
        return np.clip(np.array(found), self.lower, self.upper)

    def jacobian(self, vector: Array) -> Array:
        """Derivatives of the residuals at one vector: [R,P]."""
        return self._model(vector[None])[3][0]

    def residuals(self, vector: Array) -> Array:
        """Residuals at one vector, of log losses or of plain ones: [R]."""
        return self._model(vector[None], derivatives=False)[0][0]

    def _model(self, vectors: Array, derivatives: bool = True) -> tuple[Array, Array, Array, Array, Array]:
        """Residuals [J,R]; shares of the terms [J,R,K]; slopes of their logs; Jacobian [J,R,P]; scale [J,R]."""
        slopes, exponents = self._slopes(vectors)
        top = exponents.max(axis=-1, keepdims=True)
        shares = np.exp(exponents - top)
        total = shares.sum(axis=-1, keepdims=True)
        log_loss = (top + np.log(total))[..., 0]
        if self.objective == "huber":
            residual, scale = log_loss - np.log(self.loss), np.ones_like(log_loss)
        else:
            scale = np.exp(np.minimum(log_loss, 300.0))
            residual = scale - self.loss
        if not derivatives:
            return residual, shares, slopes, shares, scale
        shares /= total
        jacobian = sum(shares[:, :, place, None] * slopes[..., place, :] for place in range(shares.shape[-1]))
        return residual, shares, slopes, np.asarray(jacobian) * scale[..., None], scale

    def _slopes(self, vectors: Array) -> tuple[Array, Array]:
        """Derivatives of the log terms [R,K,P] or [J,R,K,P], and the log terms [J,R,K]."""
        if not self.law.repeats:
            # One matrix product for all vectors.
            runs, terms, parameters = self._design.shape
            flat = vectors @ self._design.reshape(runs * terms, parameters).T
            return self._design, flat.reshape(len(vectors), runs, terms)
        repeats = np.exp(vectors[:, -1:])
        step = 1e-6
        logs, ahead, behind = (
            np.log(effective_tokens(self.runs.d, self.runs.unique, repeats * np.exp(move))) - self.means["d"]
            for move in (0.0, step, -step)
        )
        place = next(k for k, term in enumerate(self.law.terms) if term.variable == "d")
        exponent = self._names.index(str(self.law.terms[place].exponent))
        slopes = np.repeat(self._design[None], len(vectors), axis=0)
        slopes[:, :, place, exponent] = -logs
        found = np.einsum("jrkp,jp->jrk", slopes, vectors)
        slopes[:, :, place, -1] = -vectors[:, exponent, None] * (ahead - behind) / (2 * step)
        return slopes, found

    def _constant_design(self) -> Array:
        """Derivatives of the log terms by the parameters, as far as they are constant: [R,K,P]."""
        design = np.zeros((len(self.runs), len(self.law.terms), len(self._names)))
        for place, term in enumerate(self.law.terms):
            design[:, place, self._names.index(term.coefficient)] = 1.0
            if term.exponent and term.variable:
                logs = self.logs[term.variable] - self.means[term.variable]
                design[:, place, self._names.index(term.exponent)] = -logs
        return design

    def _bounds(self) -> tuple[Array, Array]:
        """Box of the search, [P] each: no amplitude so small that nothing depends on it, no exponent beyond use."""
        amplitudes, exponents = len(self.law.amplitudes), len(self.law.exponents)
        low, high = np.log(self.loss.min() * _LEAST_SHARE), np.log(self.loss.max()) + 10.0
        ends = [(low, high)] * amplitudes + [(LOWEST_EXPONENT, HIGHEST_EXPONENT)] * exponents
        if self.law.repeats:
            ends.append((np.log(_REPEATS_RANGE[0]), np.log(_REPEATS_RANGE[1])))
        lower, upper = np.array(ends).T
        return lower, upper

    def _huber(self, residual: Array) -> tuple[Array, Array, Array]:
        """Slope and curvature of the loss of a residual, and the curvature of the parabola that touches from above."""
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
