"""One law for several groups of runs, such as designs, mixtures or data sets: what they share, and what a group costs.

Joint laws share some coefficients and have others for each group. Each is tested against separate laws, and the groups
are compared by the compute with which they reach the same loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from solo.scaling.laws.bootstrap import Bootstrap, bootstrap, intervals, refit, simulated
from solo.scaling.laws.fit import Fit, FitRefusedError, fit, no_note
from solo.scaling.laws.hold_out import largest_budget
from solo.scaling.laws.law import Array, Law
from solo.scaling.laws.optimum import equal_loss, optimum
from solo.scaling.laws.predict import defaults
from solo.scaling.laws.problem import HUBER, Objective, Problem
from solo.scaling.laws.runs import Runs, join
from solo.scaling.laws.solver import solve

TEST_DRAWS = 400
LEVEL = 0.05
SEPARATE = "separate laws"


@dataclass(frozen=True)
class Model:
    """One way of sharing coefficients.

    coefficients    number of fitted parameters
    objective       value at the minimum
    p_value         share of data sets simulated from this model in which separate laws gain as much; None for separate
                    laws
    held_out        mean error for the largest budget of each group, from a fit to the others; None if it was refused
    refused         why there is no fit
    """

    name: str
    law: Law
    fit: Fit | None
    coefficients: int
    objective: float | None
    p_value: float | None
    held_out: float | None
    refused: str | None


@dataclass(frozen=True)
class Comparison:
    """A group against the reference: compute to reach the reference's loss, over the reference's compute.

    ratio       at `flops` of the reference
    intervals   level -> interval; infinite if the group does not reach the loss
    curve       the ratio and its 80% interval over compute: [C,4] of compute, ratio, low, high
    """

    group: str
    flops: float
    ratio: float
    intervals: dict[str, tuple[float, float]]
    curve: Array


@dataclass(frozen=True)
class Joint:
    """Joint laws of one loss.

    models      the ways of sharing that were tried, fewest coefficients first
    chosen      the first that its test does not reject at 5%; separate laws if all are rejected
    draws       bootstrap of the chosen law
    reference   the group that others are compared with
    """

    loss: str
    groups: tuple[str, ...]
    runs: Runs
    models: tuple[Model, ...]
    chosen: Model
    draws: Bootstrap
    reference: str
    comparisons: tuple[Comparison, ...]

    @property
    def fit(self) -> Fit:
        """The chosen law."""
        assert self.chosen.fit is not None
        return self.chosen.fit

    def frontier(self, group: str, flops: Array) -> tuple[Array, Array]:
        """Returns the lowest loss of a group [C] at each compute, and its draws [J,C]."""
        place = self.groups.index(group)
        factor = self.runs[self.runs.group == place].flops_factor
        law, at = self.fit.law.single, defaults(self.fit)
        columns = {name: values[:, None] for name, values in self.fit.law.of(group, self.draws.coefficients).items()}
        return (
            optimum(law, self.fit.law.of(group, self.fit.coefficients), flops, factor, at)["loss"],
            optimum(law, columns, flops, factor, at)["loss"],
        )


def ways(law: Law) -> dict[str, tuple[str, ...]]:
    """Returns the ways of sharing, fewest coefficients first: name -> what each group has for itself."""
    amplitudes = [name for name in law.amplitudes if name != law.floor]
    floor = [law.floor] if law.floor else []
    others = [name for name in law.coefficients if name not in law.amplitudes]
    return {
        "one law": (),
        "shared exponents and floor": tuple(amplitudes),
        "shared exponents": (*amplitudes, *floor),
        "shared floor": (*amplitudes, *others),
        SEPARATE: law.coefficients,
    }


def fit_joint(
    loss: str,
    law: Law,
    parts: dict[str, Runs],
    objective: Objective = HUBER,
    draws: int = 1000,
    seed: int = 0,
    way: str | None = None,
    reference: str | None = None,
    flops: float | None = None,
    note: Callable[[str], None] = no_note,
    test_draws: int = TEST_DRAWS,
) -> Joint:
    """Fits joint laws to groups of runs, tests what they share, and compares the groups.

    Args:
        loss: name of the loss.
        law: the law of one group.
        parts: runs of each group.
        objective: what is minimised.
        draws: bootstrap samples of the chosen law.
        seed: seed of the resampling.
        way: use this way of sharing, whatever its test says.
        reference: the group to compare with; default: the first.
        flops: compute of the reference at which groups are compared; default: the largest of its runs.
        note: called with progress messages.
        test_draws: data sets that are simulated for each test.

    Raises:
        FitRefusedError: there are fewer than two groups, or no way of sharing can be fitted.
        ValueError: `reference` is not a group, or `way` is unknown.
    """
    groups = tuple(parts)
    if len(groups) < 2:
        raise FitRefusedError(f"a joint law needs at least two groups; there is {', '.join(groups) or 'none'}")
    reference = groups[0] if reference is None else reference
    if reference not in parts:
        raise ValueError(f"--reference {reference!r}: the groups are {', '.join(groups)}")
    if way is not None and way not in ways(law):
        raise ValueError(f"unknown way of sharing {way!r}; known: {', '.join(ways(law))}")
    runs = join(list(parts.values()))
    found = []
    for name, own in ways(law).items():
        note(f"joint laws: {name}")
        found.append(_model(name, law.joint(groups, own), runs, objective))
    models = _tested(found, seed, note, test_draws)
    chosen = _choose(models, way)
    assert chosen.fit is not None
    note("resampling the joint law")
    sample = bootstrap(chosen.fit, draws, seed)
    flops = float(parts[reference].flops.max()) if flops is None else flops
    joint = Joint(loss, groups, runs, models, chosen, sample, reference, ())
    others = [name for name in groups if name != reference]
    compared = tuple(_compare(joint, parts, name, flops) for name in others)
    return Joint(loss, groups, runs, models, chosen, sample, reference, compared)


def likelihood_ratio(shared: Fit, separate: Fit, draws: int = TEST_DRAWS, seed: int = 0) -> float:
    """Returns the p-value of a joint law: how often separate laws gain as much on data that follow the joint law.

    The gain is the decrease of the objective. Data are simulated from the joint law with the residuals of the separate
    laws, which are those of the truth if it is either of them.
    """
    losses = simulated(shared, separate, draws, seed)
    less = solve(refit(shared, losses), np.repeat(shared.vector[None], draws, axis=0)).objective
    more = np.zeros(draws)
    for place, group in enumerate(separate.law.groups):
        rows = separate.runs.group == place
        law, part = separate.law.single, separate.runs[rows]
        problem = Problem(law, part, separate.problem.objective, losses[:, rows])
        # From the joint law's minimum, and from that of the separate law: the lower one.
        found = [
            solve(problem, np.repeat(problem.vector(each.law.of(group, each.coefficients))[None], draws, axis=0))
            for each in (shared, separate)
        ]
        more += np.minimum(found[0].objective, found[1].objective)
    gain = shared.objective - separate.objective
    return float((1 + np.count_nonzero(less - more >= gain)) / (draws + 1))


def _model(name: str, law: Law, runs: Runs, objective: Objective) -> Model:
    try:
        found = fit(law, runs, objective)
    except FitRefusedError as refusal:
        return Model(name, law, None, len(law.coefficients), None, None, None, str(refusal))
    return Model(name, law, found, len(law.coefficients), found.objective, None, _held_out(found), None)


def _held_out(whole: Fit) -> float | None:
    """Returns the mean error for the largest budget of each group, predicted by a fit to all other runs.

    Branches of a stable run with branches in the largest budget are left out of both.
    """
    law, runs = whole.law, whole.runs
    parts = runs.parts(len(law.groups))
    above = np.concatenate([part.flops >= largest_budget(part) for part in parts])
    held = {name for name, out in zip(runs.cluster, above, strict=True) if out}
    below = np.array([name not in held for name in runs.cluster])
    if not below.any():
        below = ~above
    try:
        found = fit(law, runs[below], whole.problem.objective, [whole.coefficients])
    except FitRefusedError:
        return None
    return float(np.abs(found.predict(runs[above]) / runs[above].loss - 1.0).mean())


def _tested(models: Sequence[Model], seed: int, note: Callable[[str], None], draws: int) -> tuple[Model, ...]:
    separate = next((model.fit for model in models if model.name == SEPARATE), None)
    found = []
    for model in models:
        p_value = None
        if separate is not None and model.fit is not None and model.name != SEPARATE:
            note(f"joint laws: testing {model.name}")
            p_value = likelihood_ratio(model.fit, separate, draws, seed)
        found.append(Model(**{**vars(model), "p_value": p_value}))
    return tuple(found)


def _choose(models: Sequence[Model], way: str | None) -> Model:
    if way is not None:
        (chosen,) = [model for model in models if model.name == way]
        if chosen.fit is None:
            raise FitRefusedError(f"{way}: {chosen.refused}")
        return chosen
    fitted = [model for model in models if model.fit is not None]
    if not fitted:
        raise FitRefusedError("; ".join(f"{model.name}: {model.refused}" for model in models))
    # If the runs do not determine separate laws, nothing can be tested: then share exponents and floor.
    kept = [model for model in fitted if model.p_value is not None and model.p_value >= LEVEL]
    if kept or any(model.name == SEPARATE for model in fitted):
        return kept[0] if kept else fitted[-1]
    return next((model for model in fitted if model.name != "one law"), fitted[0])


def _compare(joint: Joint, parts: dict[str, Runs], group: str, flops: float) -> Comparison:
    """Compares a group with the reference at several values of compute, all for the joint law and its draws."""
    law, at = joint.fit.law, defaults(joint.fit)

    def ratio(coefficients: dict[str, Array] | dict[str, float], where: float) -> Array:
        target = optimum(
            law.single, law.of(joint.reference, coefficients), where, parts[joint.reference].flops_factor, at
        )["loss"]
        return equal_loss(law.single, law.of(group, coefficients), target, where, parts[group].flops_factor, at) / where

    rows = []
    low = max(float(part.flops.min()) for part in parts.values())
    for where in np.geomspace(min(low, flops), flops * 10, 25):
        ends = intervals({"ratio": ratio(joint.draws.coefficients, where)})["ratio"]["80"]
        rows.append([where, float(ratio(joint.fit.coefficients, where)), *ends])
    spread = intervals({"ratio": ratio(joint.draws.coefficients, flops)})["ratio"]
    return Comparison(group, flops, float(ratio(joint.fit.coefficients, flops)), spread, np.array(rows))
