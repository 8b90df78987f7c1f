"""Laws of sparse models, mixtures and schedules: recovery, refusals, and what they mean."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad

from solo.scaling.laws.bootstrap import bootstrap
from solo.scaling.laws.catalogue import SCHEDULE, SHARE, SPARSE, TOKENS, TRANSFER, remaining_noise
from solo.scaling.laws.coverage import cases, coverage, design, rate_coverage
from solo.scaling.laws.fit import FitRefusedError, fit
from solo.scaling.laws.hold_out import hold_out
from solo.scaling.laws.mixture import best_mixture
from solo.scaling.laws.predict import predict
from solo.scaling.laws.problem import ASYMMETRIC, HUBER
from solo.scaling.laws.result import FitSpec, analyse
from solo.scaling.laws.runs import make_runs
from solo.scaling.report.chapters import of_law, of_mixtures
from tests.scaling.samples import TRUTH, grid

CASES = {case.name: case for case in cases() if case.name not in ("chinchilla", "shared", "power", "repeated")}


def runs_of(law, truth, noise: float = 0.0, seed: int = 0, runs=None):
    runs = design() if runs is None else runs
    loss = law.loss(truth, runs.variables())
    return runs.with_loss(loss * np.exp(np.random.default_rng(seed).normal(0, noise, len(runs))))


@pytest.mark.parametrize("name", CASES)
def test_without_noise_a_law_is_recovered(name) -> None:
    case = CASES[name]
    found = fit(case.law, runs_of(case.law, case.truth, runs=case.runs))
    assert found.coefficients == pytest.approx(case.truth, rel=1e-4)


@pytest.mark.slow
def test_intervals_contain_the_truth_at_their_level() -> None:
    """80% intervals of 200 data sets contain the truth in 70 to 90% of them: coefficients, optima, served models, the
    compute that a group saves. `python -m solo.scaling.laws.coverage` shows all laws.
    """
    for case in cases():
        if case.name in ("chinchilla", "transfer", "share", "joint, two groups"):
            found = coverage(case, draws=100)
            assert all(0.7 <= share <= 0.9 for share in found.values()), (case.name, found)
    assert all(0.7 <= share <= 0.9 for share in rate_coverage(draws=100).values())


# ----------------------------------------------------------------------------------------- sparse


def test_a_law_of_sparse_models_needs_several_ratios() -> None:
    runs = runs_of(SPARSE, CASES["sparse"].truth)
    same = replace(runs, more={"ratio": np.full(len(runs), 4.0)})
    with pytest.raises(FitRefusedError, match="all runs have the same total per active parameters"):
        fit(SPARSE, same)
    with pytest.raises(FitRefusedError, match="needs total per active parameters, which the table does not have"):
        fit(SPARSE, replace(runs, more={}))


def test_experts_that_do_not_help_are_no_refusal() -> None:
    found = fit(SPARSE, runs_of(SPARSE, {**TRUTH, "gamma": 0.0}, noise=0.001))
    assert abs(found.coefficients["gamma"]) < 0.02


# --------------------------------------------------------------------------------------- mixtures


def test_a_power_of_image_tokens_needs_images_in_all_runs() -> None:
    runs = runs_of(TOKENS, CASES["tokens"].truth)
    images = np.where(np.arange(len(runs)) < 5, 0.0, runs.more["images"])
    with pytest.raises(FitRefusedError, match=r"5 runs have no image tokens; .* Leave them out with --where"):
        fit(TOKENS, replace(runs, more={**runs.more, "images": images}))
    # An exchange rate takes them.
    none = replace(runs, more={**runs.more, "images": images, "text": runs.d - images})
    truth = CASES["transfer"].truth
    found = fit(TRANSFER, none.with_loss(TRANSFER.loss(truth, none.variables())))
    assert found.coefficients == pytest.approx(truth, rel=1e-4)


def test_the_best_share_of_images() -> None:
    """Text gets worse with images, captions get better: by the truth, the best share is where their slopes cancel."""
    text, caption = {**TRUTH, "F": 0.05, "t": -2.0}, {**TRUTH, "E": 1.2, "F": 0.8, "t": 3.0}
    spec = FitSpec(law=SHARE, draws=100)
    results = [
        analyse(name, runs_of(SHARE, truth, noise=0.001, seed=seed), spec)
        for seed, (name, truth) in enumerate({"text": text, "caption": caption}.items())
    ]
    found = best_mixture(results, {"text": 1.0, "caption": 0.5}, 1e21)
    expected = np.log(0.5 * 0.8 * 3.0 / (0.05 * 2.0)) / 5.0
    assert found.share[0] == pytest.approx(expected, abs=0.02)
    assert found.share[1][0] < expected < found.share[1][1]
    assert not found.at_edge
    assert set(found.given_up) == {0.1, 0.3, 0.5, 0.7, 0.9}
    assert min(found.given_up.values()) >= 0
    assert found.given_up[0.1] > found.given_up[0.3] > found.given_up[0.5]
    assert [picture.svg[:4] for picture in of_mixtures([found]).pictures("mixtures")] == ["<svg"]
    titles = {picture.title for picture in of_law(results[0]).pictures("law")}
    assert {"Loss against compute", "Optimal size and tokens", "Sizes and tokens", "Residuals"} <= titles
    assert best_mixture(results, {"text": 1.0}, 1e21).at_edge
    with pytest.raises(FitRefusedError, match="there is no law of digits: it was not fitted"):
        best_mixture(results, {"digits": 1.0}, 1e21)
    other = analyse("text", grid(noise=0.002), FitSpec(draws=100))
    with pytest.raises(FitRefusedError, match="'chinchilla' of text does not depend on the share of images"):
        best_mixture([other], {"text": 1.0}, 1e21)


# -------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize(("speed", "power"), [(1e-9, 0.5), (3e-8, 1.0), (1e-7, 2.0)])
def test_what_a_decay_leaves(speed, power) -> None:
    """The closed form equals the integral of the multi-power law over a linear decay."""
    tokens, decay = 1e10, 0.2

    def left(x: float) -> float:
        # At x from the end, the rates that follow sum to decay * tokens * x^2 / 2.
        return (1 + speed * decay * tokens * x**2 / 2) ** -power

    assert remaining_noise(tokens, decay, speed, power) == pytest.approx(quad(left, 0, 1)[0], rel=1e-6)
    assert remaining_noise(tokens, 0.0, speed, power) == 1.0


def test_undecayed_runs_predict_decayed_ones_of_other_stable_runs() -> None:
    case = CASES["schedule"]
    runs = runs_of(case.law, case.truth, noise=0.001, runs=case.runs)
    held = (runs.more["decay"] > 0) & (runs.n > 2e9)
    found = fit(SCHEDULE, runs[~held])
    assert np.abs(found.predict(runs[held]) / runs.loss[held] - 1).mean() < 0.002
    # Predictions are for the largest decay of the runs, unless another is asked for.
    draws = bootstrap(found, 100)
    decayed, constant = predict(found, draws, 1e22), predict(found, draws, 1e22, {"decay": 0.0})
    assert decayed.at == {"decay": 0.4}
    assert decayed.loss < constant.loss
    assert constant.loss - decayed.loss < case.truth["G"] * 1.1


def test_a_hold_out_of_a_schedule_does_not_see_the_stable_run() -> None:
    """The branches of the largest size are held out with their stable run."""
    n, decay = np.repeat(np.geomspace(5e7, 5e9, 6), 8), np.tile([0.0, 0.2], 24)
    d = n * np.tile(np.repeat([10.0, 20.0, 40.0, 80.0], 2), 6)
    names = [f"stable {place // 8}" for place in range(48)]
    runs = make_runs(n, d, np.ones(48), decay=decay, cluster=names)
    runs = runs_of(SCHEDULE, CASES["schedule"].truth, runs=runs)
    held = hold_out(SCHEDULE, replace(runs, flops=n * 1e12), cut=4e21)
    assert set(held.runs.cluster) == {"stable 5"}
    held = hold_out(SCHEDULE, runs)
    assert len(held.runs) == 2
    assert set(held.fit.runs.cluster) == {f"stable {place}" for place in range(5)}
    assert held.shared_stable_runs == 0
    assert np.abs(held.errors).max() < 1e-3


# ------------------------------------------------------------------------------------ asymmetric


def test_an_asymmetric_loss_is_pulled_less_by_badly_tuned_runs() -> None:
    runs = grid(8, 8, noise=0.001)
    bad = np.random.default_rng(0).choice(64, 20, replace=False)
    loss = runs.loss.copy()
    loss[bad] *= 1 + np.random.default_rng(1).uniform(0.01, 0.06, 20)
    found = analyse("text", runs.with_loss(loss), FitSpec(draws=100, objective=ASYMMETRIC)).analysis
    above = {
        objective: np.log(fit(found.fit.law, found.fit.runs, objective).predict(runs) / runs.loss).mean()
        for objective in (HUBER, ASYMMETRIC)
    }
    assert abs(above[ASYMMETRIC]) < 0.5 * above[HUBER]
    assert found.beside["Symmetric"] == fit(found.fit.law, found.fit.runs).coefficients
    assert found.fit.problem.objective.text.endswith("overestimates weighted 10 times")
