"""Laws of several groups: what they share, the test of it, and how much compute a group saves."""

import csv

import numpy as np
import pytest

from solo.scaling.laws.bootstrap import bootstrap
from solo.scaling.laws.catalogue import CHINCHILLA, SHARED
from solo.scaling.laws.fit import FitRefusedError, fit
from solo.scaling.laws.joint import LEVEL, Comparison, fit_joint, ways
from solo.scaling.laws.runs import join, make_runs
from solo.scaling.report.chapters import of_joint
from solo.scaling.report.study_sections import answer
from tests.scaling.samples import OVERTRAIN, TRUTH, grid

# A law in 2 N: for the same loss it needs half of the compute.
BETTER = {**TRUTH, "A": TRUTH["A"] * 2 ** -TRUTH["alpha"]}


def overtrain(loss: str = "loss_c4_val"):
    """Returns the runs of Gadre et al. by training set."""
    found: dict[str, list] = {}
    with OVERTRAIN.open() as file:
        for row in csv.DictReader(file):
            found.setdefault(row["ds"], []).append(row)
    return {
        name: make_runs(*([float(row[column]) for row in rows] for column in ("N", "D", loss)))
        for name, rows in found.items()
    }


def off(found, truth) -> float:
    return max(abs(found[name] / truth[name] - 1) for name in truth)


@pytest.mark.parametrize("way", ["shared exponents and floor", "shared exponents", "shared floor", "separate laws"])
def test_without_noise_joint_laws_are_recovered(way) -> None:
    second = {**BETTER}
    if way in ("shared exponents", "separate laws"):
        second["E"] = 1.9
    if way in ("shared floor", "separate laws"):
        second |= {"alpha": 0.31, "beta": 0.33}
    law = CHINCHILLA.joint(("one", "two"), ways(CHINCHILLA)[way])
    found = fit(law, join([grid(6, 5), grid(5, 6, truth=second)]))
    for group, truth in (("one", TRUTH), ("two", second)):
        assert off(law.of(group, found.coefficients), truth) < 1e-4
    assert found.predict(found.runs) == pytest.approx(found.runs.loss, rel=1e-8)


def test_groups_share_what_they_share() -> None:
    parts = {"dense": grid(6, 5, noise=0.002), "experts": grid(6, 5, noise=0.002, seed=1, truth=BETTER)}
    joint = fit_joint("text", CHINCHILLA, parts, draws=200, test_draws=100)
    assert joint.chosen.name == "shared exponents and floor"
    by_name = {model.name: model for model in joint.models}
    # One law for both does not follow the runs of either.
    assert by_name["one law"].refused or by_name["one law"].p_value < 0.05
    assert by_name["shared exponents"].p_value > 0.05
    assert [model.coefficients for model in joint.models] == [5, 7, 8, 9, 10]
    objectives = [model.objective for model in joint.models]
    assert objectives[1] > objectives[2] > objectives[4]
    (found,) = joint.comparisons
    low, high = found.intervals["95"]
    assert low < 0.5 < high
    assert found.ratio == pytest.approx(0.5, rel=0.05)
    assert high / low < 1.3
    (picture,) = of_joint(joint).pictures("joint")
    assert picture.svg.startswith("<svg")
    # A joint law determines the ratio better than separate laws do.
    separate = fit_joint("text", CHINCHILLA, parts, draws=200, way="separate laws", test_draws=100).comparisons[0]
    assert np.ptp(np.log(separate.intervals["80"])) > 1.5 * np.ptp(np.log(found.intervals["80"]))


def test_the_test_rejects_shared_exponents_that_differ() -> None:
    other = {**TRUTH, "alpha": 0.30, "A": TRUTH["A"] * 0.4}
    parts = {"one": grid(6, 5, noise=0.001), "two": grid(6, 5, noise=0.001, seed=1, truth=other)}
    joint = fit_joint("text", CHINCHILLA, parts, draws=100, test_draws=100)
    assert joint.chosen.name in ("shared floor", "separate laws")
    assert all(model.p_value < 0.05 for model in joint.models[1:3])


def test_the_training_sets_of_gadre_share_exponents_but_not_floors() -> None:
    """104 runs of three training sets, evaluated on C4."""
    joint = fit_joint("loss_c4_val", CHINCHILLA, overtrain(), draws=100, test_draws=100)
    p_values = {model.name: model.p_value for model in joint.models}
    assert joint.chosen.name == "shared exponents"
    assert p_values["shared exponents"] > 0.5
    assert p_values["shared exponents and floor"] < LEVEL
    assert p_values["one law"] < LEVEL
    assert joint.fit.coefficients["alpha"] == pytest.approx(0.245, abs=0.002)
    assert joint.fit.coefficients["beta"] == pytest.approx(0.270, abs=0.002)
    held_out = {model.name: model.held_out for model in joint.models}
    assert held_out["shared exponents"] < 0.02 < held_out["separate laws"]


def test_on_another_set_the_training_sets_share_nothing() -> None:
    joint = fit_joint("loss_openlm", SHARED, overtrain("loss_openlm"), draws=100, test_draws=100)
    assert joint.chosen.name == "separate laws"


def test_a_group_with_few_runs_is_fitted_with_the_others() -> None:
    few = grid(6, 5, noise=0.001, seed=1, truth=BETTER)[[0, 4, 14, 25, 29]]
    parts = {"many": grid(6, 5, noise=0.001), "few": few}
    joint = fit_joint("text", CHINCHILLA, parts, draws=100, test_draws=100)
    refused = {model.name: model.refused for model in joint.models}
    assert "few: 5 runs are too few for the law 'chinchilla'" in refused["separate laws"]
    assert joint.chosen.name == "shared exponents and floor"
    assert joint.chosen.p_value is None
    with pytest.raises(FitRefusedError, match="few: 2 runs are too few for 2 coefficients of its own; it needs 3"):
        fit_joint("text", CHINCHILLA, {**parts, "few": few[:2]}, way="shared exponents and floor")
    with pytest.raises(FitRefusedError, match="needs at least two groups; there is many"):
        fit_joint("text", CHINCHILLA, {"many": few})
    with pytest.raises(ValueError, match="--reference 'dense': the groups are many, few"):
        fit_joint("text", CHINCHILLA, parts, reference="dense")


def test_groups_are_resampled_apart() -> None:
    law = CHINCHILLA.joint(("one", "two"), ("A", "B"))
    runs = join([grid(6, 5, noise=0.003), grid(3, 3, noise=0.003, seed=1)])
    found = fit(law, runs)
    draws = bootstrap(found, 100)
    assert len(draws) == 100
    assert draws.redrawn == 0
    assert np.std(draws.coefficients["A[two]"]) > 0


@pytest.mark.parametrize(
    ("ratio", "ends", "words"),
    [
        (0.81, (0.72, 0.93), "b reaches a's loss at 1e+20 FLOPs with 0.81 times the compute (80%: 0.72 to 0.93)"),
        (1.05, (0.9, np.inf), "1.05 times the compute (80%: 0.90 to infinitely many); the interval contains 1"),
        (np.inf, (np.inf, np.inf), "b does not reach a's loss at 1e+20 FLOPs with any compute"),
    ],
)
def test_the_answer_in_words(ratio, ends, words) -> None:
    assert words in answer(Comparison("b", 1e20, ratio, {"80": ends}, np.zeros((1, 4))), "a")
