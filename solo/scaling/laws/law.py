"""Scaling laws. Each is a sum of terms `coefficient / variable^exponent` and a floor E.

Shape letters of this package: R runs, J starting points or bootstrap draws, K terms, P fitted parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]

FLOPS_PER_PARAMETER_AND_TOKEN = 6.0  # forward 2, backward 4 (Kaplan et al. 2020, arXiv 2001.08361)


@dataclass(frozen=True)
class Term:
    """One term of a law: `coefficient / variable^exponent`, or a constant if it has no exponent."""

    coefficient: str
    exponent: str | None = None
    variable: str | None = None


@dataclass(frozen=True)
class Law:
    """A sum of terms.

    name            value of `--law`
    formula         as shown to the user
    terms           in the order of the formula
    fewest_runs     smallest number of runs that the law is fitted to
    repeats         name of the coefficient that says how much repeated tokens are worth, if the law has one
    """

    name: str
    formula: str
    terms: tuple[Term, ...]
    fewest_runs: int
    repeats: str | None = None

    @property
    def amplitudes(self) -> tuple[str, ...]:
        """Names of the coefficients that multiply a term, and of the floor."""
        return tuple(term.coefficient for term in self.terms)

    @property
    def exponents(self) -> tuple[str, ...]:
        """Names of the exponents, without repeats."""
        return tuple(dict.fromkeys(term.exponent for term in self.terms if term.exponent))

    @property
    def coefficients(self) -> tuple[str, ...]:
        """Names of all P fitted parameters, in the order of the solver's vector."""
        return self.amplitudes + self.exponents + ((self.repeats,) if self.repeats else ())

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the variables: n (parameters), d (tokens), flops."""
        return tuple(dict.fromkeys(term.variable for term in self.terms if term.variable))

    @property
    def allocates(self) -> bool:
        """Whether the law determines how to split compute between parameters and tokens."""
        return {"n", "d"} <= set(self.variables)

    def loss(self, coefficients: Mapping[str, Any], variables: Mapping[str, Any]) -> Array:
        """Returns the law's loss in nats.

        Args:
            coefficients: a number or an array for each of `self.coefficients`.
            variables: a number or an array for each of `self.variables`, and `unique` if tokens repeat. They are
                broadcast against the coefficients.
        """
        total: Any = 0.0
        for term in self.terms:
            part = coefficients[term.coefficient]
            if term.variable and term.exponent:
                value = variables[term.variable]
                if term.variable == "d" and self.repeats:
                    value = effective_tokens(value, variables.get("unique", np.inf), coefficients[self.repeats])
                part = part * np.asarray(value, float) ** -np.asarray(coefficients[term.exponent])
            total = total + part
        return np.asarray(total, float)

    def optimum(
        self, coefficients: Mapping[str, Any], flops: Any, flops_factor: float = FLOPS_PER_PARAMETER_AND_TOKEN
    ) -> tuple[Array, Array]:
        """Returns the compute-optimal parameters and tokens at `flops` = flops_factor * n * d, if no token repeats.

        This is the closed form of Hoffmann et al. 2022 (arXiv 2203.15556), equation 4:
        N = G (C/6)^(beta/(alpha+beta)), D = (C/6)/N, G = (alpha A / (beta B))^(1/(alpha+beta)).

        Raises:
            ValueError: the law does not depend on both parameters and tokens.
        """
        if not self.allocates:
            raise ValueError(f"the law {self.name!r} does not say how to split compute between parameters and tokens")
        by_variable = {term.variable: term for term in self.terms if term.exponent}
        n_term, d_term = by_variable["n"], by_variable["d"]
        a, b = (np.asarray(coefficients[term.coefficient], float) for term in (n_term, d_term))
        alpha, beta = (np.asarray(coefficients[str(term.exponent)], float) for term in (n_term, d_term))
        product = np.asarray(flops, float) / flops_factor
        n = np.exp((np.log(alpha * a) - np.log(beta * b) + beta * np.log(product)) / (alpha + beta))
        return n, product / n

    def optimum_exponents(self, coefficients: Mapping[str, Any]) -> dict[str, Array]:
        """Returns the exponents a and b of the optimum N ~ C^a, D ~ C^b; empty if the law does not allocate compute."""
        if not self.allocates:
            return {}
        by_variable = {term.variable: term for term in self.terms if term.exponent}
        alpha, beta = (np.asarray(coefficients[str(by_variable[name].exponent)], float) for name in ("n", "d"))
        return {"a": beta / (alpha + beta), "b": alpha / (alpha + beta)}


def effective_tokens(tokens: Any, unique: Any, repeats: Any) -> Array:
    """Returns how many fresh tokens `tokens` are worth if only `unique` of them are distinct.

    D' = U + U r (1 - exp(-e / r)) with e = D/U - 1 repetitions after the first epoch and r = `repeats` (Muennighoff
    et al. 2023, arXiv 2305.16264, equation 5). Their decay of excess parameters is left out, because fitting
    it takes runs far above the optimal size for the unique tokens. Below one epoch, D' = D.
    """
    tokens, unique = np.asarray(tokens, float), np.asarray(unique, float)
    once = np.minimum(tokens, unique)
    epochs = np.maximum(tokens / unique - 1.0, 0.0)
    return once * (1.0 - np.expm1(-epochs / repeats) * repeats)


_FLOOR = Term("E")

CHINCHILLA = Law(
    "chinchilla",
    "L = E + A/N^alpha + B/D^beta",
    (Term("A", "alpha", "n"), Term("B", "beta", "d"), _FLOOR),
    fewest_runs=8,
)
SHARED = Law(
    "shared",
    "L = E + A/N^alpha + B/D^alpha",
    (Term("A", "alpha", "n"), Term("B", "alpha", "d"), _FLOOR),
    fewest_runs=5,
)
POWER = Law("power", "L = E + A/C^alpha", (Term("A", "alpha", "flops"), _FLOOR), fewest_runs=5)
REPEATED = Law(
    "repeated",
    "L = E + A/N^alpha + B/D'^beta, D' = U + U R (1 - exp(-(D/U - 1)/R))",
    (Term("A", "alpha", "n"), Term("B", "beta", "d"), _FLOOR),
    fewest_runs=10,
    repeats="R",
)

LAWS = {law.name: law for law in (CHINCHILLA, SHARED, POWER, REPEATED)}
