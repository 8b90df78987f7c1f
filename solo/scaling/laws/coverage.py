"""How often intervals contain the truth, for every law, on synthetic runs: `python -m solo.scaling.laws.coverage`.

Every data set is fitted from the truth, and so is every resampling from its fit, thousands at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from solo.scaling.laws.bootstrap import interval
from solo.scaling.laws.catalogue import CHINCHILLA, POWER, REPEATED, SCHEDULE, SHARE, SHARED, SPARSE, TOKENS, TRANSFER
from solo.scaling.laws.fit import fit
from solo.scaling.laws.joint import likelihood_ratio, ways
from solo.scaling.laws.law import Array, Law
from solo.scaling.laws.optimum import equal_loss, near_optimal, optimum, serve
from solo.scaling.laws.problem import HUBER, Problem
from solo.scaling.laws.rates import fit_rates
from solo.scaling.laws.runs import Runs, join, make_runs
from solo.scaling.laws.solver import solve

DATA_SETS, DRAWS, LEVEL = 200, 200, 80
TRUTH = {"A": 482.0, "B": 2085.0, "E": 1.8172, "alpha": 0.3478, "beta": 0.3659}
BETTER = {**TRUTH, "A": TRUTH["A"] * 1.25 ** -TRUTH["alpha"]}  # needs 0.8 times the compute
_FLOPS = 1e22

Coefficients = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """A law, its runs and noise, and what is computed from its coefficients beside themselves."""

    name: str
    law: Law
    truth: dict[str, float]
    runs: Runs
    noise: float
    quantities: Callable[[Coefficients], dict[str, Array]] = lambda found: {}


def design(sizes: int = 8, ratios: int = 8) -> Runs:
    """Returns sizes of 50 million to 5 billion with 5 to 160 tokens per parameter, and all variables of the laws."""
    n = np.repeat(np.geomspace(5e7, 5e9, sizes), ratios)
    d = n * np.tile(np.geomspace(5, 160, ratios), sizes)
    turn = np.arange(len(n))
    share = np.array([0.1, 0.3, 0.5, 0.7, 0.9])[turn * 3 % 5]
    ratio = np.array([1.0, 2.0, 4.0, 8.0])[(turn + turn // ratios) % 4]
    decay = np.array([0.0, 0.1, 0.2, 0.4, 0.0])[turn * 2 % 5]
    more = {"share": share, "images": share * d, "text": (1 - share) * d, "ratio": ratio, "decay": decay}
    return make_runs(n, d, np.ones(len(n)), unique=np.full(len(n), 2e10), **more)


def cases() -> Iterator[Case]:
    """Yields all cases."""
    runs, noise = design(), 0.003

    def planned(found: Coefficients) -> dict[str, Array]:
        best = optimum(CHINCHILLA, found, _FLOPS, 6.0)
        smallest, largest = near_optimal(CHINCHILLA, found, _FLOPS, 6.0)
        served = serve(CHINCHILLA, found, _FLOPS, 6.0, 2e12)
        names = {"N within 0.5%, from": smallest, "N within 0.5%, to": largest}
        names |= {"N if 2 T tokens are served": served["n"], "saved by it": served["saved"]}
        return {"a": CHINCHILLA.optimum_exponents(found)["a"], "N at 1e22": best["n"], **names}

    yield Case("chinchilla", CHINCHILLA, TRUTH, runs, noise, planned)
    yield Case("shared", SHARED, {name: TRUTH[name] for name in "ABE"} | {"alpha": 0.35}, runs, noise)
    line = make_runs(np.geomspace(5e7, 5e9, 40), 20 * np.geomspace(5e7, 5e9, 40), np.ones(40))
    yield Case("power", POWER, {"A": 1500.0, "E": 1.7, "alpha": 0.16}, line, noise)
    yield Case("repeated", REPEATED, {**TRUTH, "R": 12.0}, runs, noise)
    yield Case("sparse", SPARSE, {**TRUTH, "gamma": 0.15}, runs, noise)
    yield Case("tokens", TOKENS, {**TRUTH, "C": 300.0, "gamma": 0.31}, runs, noise)
    yield Case("transfer", TRANSFER, {**TRUTH, "k": 0.3}, runs, noise)
    yield Case("share", SHARE, {**TRUTH, "F": 0.6, "t": 2.5}, runs, noise)
    large = design(12, 12)
    yield Case("schedule", SCHEDULE, {**TRUTH, "G": 0.25, "c": 3e-9, "b": 0.6}, large, 0.001)
    yield _joint(design(6, 6))


def _joint(part: Runs) -> Case:
    law = CHINCHILLA.joint(("one", "two"), ways(CHINCHILLA)["shared exponents and floor"])
    truth = {f"{name}[{group}]": each[name] for name in "AB" for group, each in (("one", TRUTH), ("two", BETTER))}
    truth |= {name: TRUTH[name] for name in ("E", "alpha", "beta")}

    def ratio(found: Coefficients) -> dict[str, Array]:
        target = optimum(law.single, law.of("one", found), _FLOPS, 6.0)["loss"]
        return {"compute, relative": equal_loss(law.single, law.of("two", found), target, _FLOPS, 6.0) / _FLOPS}

    return Case("joint, two groups", law, truth, join([part, part]), 0.003, ratio)


def coverage(case: Case, data_sets: int = DATA_SETS, draws: int = DRAWS, seed: int = 0) -> dict[str, float]:
    """Returns the share of data sets whose 80% interval contains the truth, for each coefficient and quantity."""
    generator = np.random.default_rng(seed)
    shape = (data_sets, len(case.runs))
    losses = case.law.loss(case.truth, case.runs.variables()) * np.exp(generator.normal(0, case.noise, shape))
    runs = case.runs.with_loss(losses[0])
    problem = Problem(case.law, runs, HUBER, losses)
    start = problem.vector(case.truth)
    fitted = solve(problem, np.repeat(start[None], data_sets, axis=0)).vectors
    strata = [np.flatnonzero(runs.group == place) for place in np.unique(runs.group)]
    weights = np.zeros((data_sets * draws, len(runs)))
    for rows in strata:
        weights[:, rows] = generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), len(weights))
    again = Problem(case.law, runs, HUBER, np.repeat(losses, draws, axis=0))
    found = again.coefficients(solve(again, np.repeat(fitted, draws, axis=0), weights).vectors)
    truth = {**case.truth, **{name: float(value) for name, value in case.quantities(case.truth).items()}}
    values = {**found, **case.quantities(found)}
    return {name: _inside(value, values[name].reshape(data_sets, draws)) for name, value in truth.items()}


def _inside(truth: float, draws: Array) -> float:
    ends = np.array([interval(row, LEVEL) for row in draws])
    return float(np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1])))


def rate_coverage(data_sets: int = DATA_SETS, draws: int = DRAWS, seed: int = 0) -> dict[str, float]:
    """Returns the coverage of the law of the learning rate, for R, a and b."""
    sizes, ratios, steps = 5, 3, 5
    n = np.repeat(np.geomspace(1e7, 1e9, sizes), ratios * steps)
    d = n * np.tile(np.repeat([10.0, 40.0, 160.0], steps), sizes)
    best = 1.79 * n**-0.713 * d**0.307
    settings = best * np.tile(np.geomspace(0.3, 2.0, steps), sizes * ratios)
    clean = CHINCHILLA.loss(TRUTH, {"n": n, "d": d}) * np.exp(0.02 * np.log(settings / best) ** 2)
    inside = {"R": 0, "a": 0, "b": 0}
    truth = {"R": 1.79, "a": -0.713, "b": 0.307}
    generator = np.random.default_rng(seed)
    for place in range(data_sets):
        runs = make_runs(n, d, clean * np.exp(generator.normal(0, 0.002, len(n))))
        found = fit_rates("rate", "rate", "loss", runs, settings, draws, place)
        for name, value in truth.items():
            low, high = found.intervals[name][str(LEVEL)]
            inside[name] += low <= value <= high
    return {name: count / data_sets for name, count in inside.items()}


def rejections(data_sets: int = 100, draws: int = 100, seed: int = 0) -> float:
    """Returns how often the test of a joint law rejects what is true, at 10%."""
    case = _joint(design(5, 5))
    generator = np.random.default_rng(seed)
    clean = case.law.loss(case.truth, case.runs.variables())
    separate = CHINCHILLA.joint(case.law.groups, CHINCHILLA.coefficients)
    start = {
        f"{name}[{group}]": float(value)
        for group in case.law.groups
        for name, value in case.law.of(group, case.truth).items()
    }
    count = 0
    for place in range(data_sets):
        runs = case.runs.with_loss(clean * np.exp(generator.normal(0, case.noise, len(clean))))
        shared = fit(case.law, runs, starts=[case.truth])
        count += likelihood_ratio(shared, fit(separate, runs, starts=[start]), draws, place) <= 0.1
    return count / data_sets


def main(words: Sequence[str]) -> None:
    """Prints a Markdown table of the cases whose names are given, or of all."""
    print(f"| law | runs | noise | 80% intervals of {DATA_SETS} data sets that contain the truth |\n|---|---|---|---|")
    for case in cases():
        if not words or case.name.partition(",")[0] in words:
            found = ", ".join(f"{name} {share:.0%}" for name, share in coverage(case).items())
            print(f"| {case.name} | {len(case.runs)} | {case.noise:.1%} | {found} |", flush=True)
    if not words or "rate" in words:
        found = ", ".join(f"{name} {share:.0%}" for name, share in rate_coverage().items())
        print(f"| rate | 75 | 0.2% | {found} |", flush=True)
    if not words or "test" in words:
        print(f"\nThe test of a joint law at 10% rejects a true one in {rejections():.0%} of 100 data sets.")


if __name__ == "__main__":
    main(sys.argv[1:])
