"""What a scaling law is: a sum of terms, each a coefficient times powers of variables. `catalogue.py` lists the laws.

Shape letters of this package: R runs, J starting points or bootstrap draws, K terms, P fitted parameters, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]

FLOPS_PER_PARAMETER_AND_TOKEN = 6.0  # forward 2, backward 4 (Kaplan et al. 2020, arXiv 2001.08361)
EXPONENTS = (0.01, 3.0)  # the range that is searched


@dataclass(frozen=True)
class Factor:
    """A factor of a term: `variable^-exponent`, or `exp(-exponent variable)` if it is exponential.

    exponent  its name; without one the factor is the variable itself
    signed    whether the exponent may be negative or zero
    range     of the exponent; its grid of starting points spans it
    """

    exponent: str | None
    variable: str
    exponential: bool = False
    signed: bool = False
    range: tuple[float, float] = EXPONENTS

    def feature(self, values: Array) -> Array:
        """Returns what the exponent multiplies in the logarithm of the term, up to the sign."""
        return values if self.exponential else np.log(values)


@dataclass(frozen=True)
class Term:
    """One term of a law: a coefficient times its factors. A term without factors is a constant, the floor."""

    coefficient: str
    factors: tuple[Factor, ...] = ()


@dataclass(frozen=True)
class Shape:
    """A positive parameter of a derived variable, fitted as a logarithm.

    starts    values to start from
    per       a variable; range and starts are then multiples of 1 / its mean
    """

    name: str
    range: tuple[float, float]
    starts: tuple[float, ...]
    per: str | None = None


@dataclass(frozen=True)
class Derived:
    """A variable that depends on fitted parameters, such as the value of repeated tokens.

    value    returns it from the measured variables and the parameters in the order of `shapes`
    """

    variable: str
    measured: tuple[str, ...]
    shapes: tuple[Shape, ...]
    value: Callable[[Mapping[str, Any], Sequence[Any]], Array]


@dataclass(frozen=True)
class Parameter:
    """A fitted parameter: an entry of the solver's vector.

    base     name in the law's formula; `name` adds the group if each group has its own
    kind     amplitude, exponent or shape
    """

    name: str
    base: str
    group: int | None
    kind: str
    range: tuple[float, float] = (0.0, np.inf)
    signed: bool = False


@dataclass(frozen=True)
class Law:
    """A sum of terms.

    name            value of `--law`
    formula         as shown to the user
    terms           in the order of the formula
    fewest_runs     smallest number of runs that the law is fitted to
    derived         its derived variable, if it has one
    groups, own     names of G groups that are fitted together, and the coefficients of which each group has its own
    """

    name: str
    formula: str
    terms: tuple[Term, ...]
    fewest_runs: int
    derived: Derived | None = None
    groups: tuple[str, ...] = ()
    own: frozenset[str] = frozenset()

    @property
    def amplitudes(self) -> tuple[str, ...]:
        """Names of the coefficients that multiply a term, and of the floor."""
        return tuple(term.coefficient for term in self.terms)

    @cached_property
    def factors(self) -> dict[str, Factor]:
        """The first factor with each exponent."""
        found: dict[str, Factor] = {}
        for term in self.terms:
            for factor in term.factors:
                if factor.exponent:
                    found.setdefault(factor.exponent, factor)
        return found

    @property
    def exponents(self) -> tuple[str, ...]:
        """Names of the exponents, without repeats."""
        return tuple(self.factors)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Parameters of the derived variable."""
        return self.derived.shapes if self.derived else ()

    @property
    def floor(self) -> str | None:
        """Name of the constant term, or None."""
        return next((term.coefficient for term in self.terms if not term.factors), None)

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """All P fitted parameters, in the order of the solver's vector."""
        kinds = [(name, "amplitude", (0.0, np.inf), False) for name in self.amplitudes]
        kinds += [(name, "exponent", factor.range, factor.signed) for name, factor in self.factors.items()]
        kinds += [(shape.name, "shape", shape.range, False) for shape in self.shapes]
        found = []
        for base, kind, ends, signed in kinds:
            if base in self.own:
                found += [
                    Parameter(f"{base}[{group}]", base, place, kind, ends, signed)
                    for place, group in enumerate(self.groups)
                ]
            else:
                found.append(Parameter(base, base, None, kind, ends, signed))
        return tuple(found)

    @property
    def coefficients(self) -> tuple[str, ...]:
        """Names of all P fitted parameters."""
        return tuple(parameter.name for parameter in self.parameters)

    @cached_property
    def variables(self) -> tuple[str, ...]:
        """Names of the measured variables: n (parameters), d (tokens), flops, ..."""
        names = dict.fromkeys(factor.variable for term in self.terms for factor in term.factors)
        if self.derived:
            del names[self.derived.variable]
            names |= dict.fromkeys(self.derived.measured)
        return tuple(names)

    @property
    def repeats(self) -> bool:
        """Whether the law models repeated tokens."""
        return "unique" in self.variables

    @property
    def allocates(self) -> bool:
        """Whether the law determines how to split compute between parameters and tokens."""
        return "n" in self.variables and bool({"d", "text"} & set(self.variables)) and self.floor is not None

    def joint(self, groups: Sequence[str], own: Sequence[str]) -> Law:
        """Returns the law of several groups, each with its own value of the coefficients in `own`."""
        return replace(self, groups=tuple(groups), own=frozenset(own))

    @cached_property
    def single(self) -> Law:
        """The law of one group."""
        return replace(self, groups=(), own=frozenset())

    def of(self, group: str, coefficients: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the coefficients of one group, by their names in the law of one group."""
        return {
            name: coefficients[f"{name}[{group}]" if name in self.own else name] for name in self.single.coefficients
        }

    def loss(self, coefficients: Mapping[str, Any], variables: Mapping[str, Any]) -> Array:
        """Returns the law's loss in nats.

        Args:
            coefficients: a number or an array for each of `self.coefficients`.
            variables: a number or an array for each of `self.variables`, and `group`, the place of each run's group, if
                the law has groups. They are broadcast against the coefficients.
        """

        def value(name: str) -> Any:
            if name not in self.own:
                return np.asarray(coefficients[name], float)
            found: Any = np.nan
            for place, group in enumerate(self.groups):
                found = np.where(variables["group"] == place, coefficients[f"{name}[{group}]"], found)
            return found

        known = dict(variables)
        if self.derived:
            known[self.derived.variable] = self.derived.value(known, [value(shape.name) for shape in self.shapes])
        total: Any = 0.0
        for term in self.terms:
            part = value(term.coefficient)
            for factor in term.factors:
                at = np.asarray(known[factor.variable], float)
                if factor.exponent is None:
                    part = part * at
                    continue
                exponent = value(factor.exponent)
                part = part * (np.exp(-exponent * at) if factor.exponential else at**-exponent)
            total = total + part
        return np.asarray(total, float)

    @cached_property
    def pair(self) -> tuple[Term, Term] | None:
        """The only terms with a power of n and of d, if the law's optimum has a closed form; else None."""
        names = ["n", self.derived.variable if self.derived and self.repeats else "d"]
        powers = [[(t, f) for t in self.terms for f in t.factors if f.variable == name] for name in names]
        if (self.derived and not self.repeats) or not all(len(found) == 1 for found in powers):
            return None
        (n_term, _), (d_term, _) = powers[0][0], powers[1][0]
        moving = {"text", "images"} & set(self.variables)
        return None if n_term is d_term or moving or self.floor is None else (n_term, d_term)

    def optimum(
        self,
        coefficients: Mapping[str, Any],
        flops: Any,
        flops_factor: float = FLOPS_PER_PARAMETER_AND_TOKEN,
        at: Mapping[str, float] | None = None,
    ) -> tuple[Array, Array]:
        """Returns the compute-optimal parameters and tokens at `flops` = flops_factor * n * d, if no token repeats.

        This is the closed form of Hoffmann et al. 2022 (arXiv 2203.15556), equation 4:
        N = G (C/6)^(beta/(alpha+beta)), D = (C/6)/N, G = (alpha A / (beta B))^(1/(alpha+beta)).
        `at` holds the variables other than parameters and tokens.

        Raises:
            ValueError: the law has no closed form, for example because it does not depend on both.
        """
        if self.pair is None or self.groups:
            raise ValueError(f"the law {self.name!r} does not say how to split compute between parameters and tokens")
        sizes = []
        for term, name in zip(self.pair, ("n", "d"), strict=True):
            amplitude = np.log(np.asarray(coefficients[term.coefficient], float))
            for factor in term.factors:
                exponent = np.asarray(coefficients[str(factor.exponent)], float)
                if factor.variable == name or (self.derived and factor.variable == self.derived.variable):
                    power = exponent
                else:
                    amplitude = amplitude - exponent * factor.feature(np.asarray((at or {})[factor.variable], float))
            sizes.append((amplitude, power))
        (a, alpha), (b, beta) = sizes
        product = np.asarray(flops, float) / flops_factor
        n = np.exp((np.log(alpha) + a - np.log(beta) - b + beta * np.log(product)) / (alpha + beta))
        return n, product / n

    def optimum_exponents(self, coefficients: Mapping[str, Any]) -> dict[str, Array]:
        """Returns the exponents a and b of the optimum N ~ C^a, D ~ C^b; empty if it is not a power of compute."""
        if self.pair is None or self.groups:
            return {}
        alpha, beta = (np.asarray(coefficients[str(term.factors[0].exponent)], float) for term in self.pair)
        return {"a": beta / (alpha + beta), "b": alpha / (alpha + beta)}
