"""Analyses of a law: hold-outs, cross-checks, predictions, scores, simulations."""

from dataclasses import replace

import numpy as np
import pytest
import yaml

from solo.config import ConfigError
from solo.scaling.laws.bootstrap import bootstrap
from solo.scaling.laws.catalogue import CHINCHILLA, POWER, REPEATED
from solo.scaling.laws.cross_check import cross_checks, envelope_optima, isoflop_curves, parabola_optima
from solo.scaling.laws.downstream import fit_exponential, fit_sigmoid, fit_task
from solo.scaling.laws.fit import FitRefusedError, check_design, fit
from solo.scaling.laws.hold_out import hold_out, hold_out_ladder
from solo.scaling.laws.optimum import optimum
from solo.scaling.laws.predict import predict
from solo.scaling.laws.result import FitSpec, analyse, seed_noise
from solo.scaling.laws.runs import group_budgets, group_sizes, make_runs
from solo.scaling.laws.simulate import ASSUMED, design_runs, load_spec, simulate
from solo.scaling.sweep.points import expand
from tests.scaling.samples import TRUTH, grid, isoflop, sweep
from tests.scaling.sweep.tiny_sweep import planned

# --------------------------------------------------------------------------------------- hold-out


def test_budgets_group_runs_of_about_equal_compute() -> None:
    flops = np.array([1e18, 3e19, 1.02e18, 2.9e19, 0.97e18, 5e20])
    assert [list(group) for group in group_budgets(flops)] == [[0, 2, 4], [1, 3], [5]]


def test_runs_of_one_size_and_length_are_recognised() -> None:
    """Active parameters and tokens of a sweep are means over data, and differ slightly between lengths and seeds."""
    n = np.array([1e6, 1.004e6, 0.997e6, 2e6, 2.01e6])
    d = np.array([1e7, 2e7, 1.003e7, 1e7, 2e7])
    assert [list(group) for group in group_sizes(n)] == [[0, 1, 2], [3, 4]]
    runs = make_runs(n, d, [3.0, 2.9, 3.03, 2.8, 2.7])
    assert seed_noise(runs) == pytest.approx(np.log(1.01) / np.sqrt(2))
    with pytest.raises(FitRefusedError, match="2 different numbers of parameters"):
        check_design(CHINCHILLA, runs, fewest_runs=0)


def test_the_envelope_of_sizes_that_differ_slightly() -> None:
    runs = grid(8, 8)
    jitter = np.random.default_rng(0).uniform(0.996, 1.004, len(runs))
    optima, exact = envelope_optima(replace(runs, n=runs.n * jitter)), envelope_optima(runs)
    assert len(optima) == len(exact) > 1
    assert np.array(optima) == pytest.approx(np.array(exact), rel=0.01)


def test_the_largest_budget_is_held_out_and_predicted() -> None:
    runs = isoflop(noise=0.003)
    held = hold_out(CHINCHILLA, runs)
    assert len(held.fit.runs) == 28
    assert set(held.runs.id) == {f"run {place}" for place in range(29, 36)}
    assert held.extrapolation == pytest.approx(10)
    assert (held.errors == held.predicted / held.runs.loss - 1).all()
    assert 0 < np.abs(held.errors).mean() < 0.01
    assert held.within(95) >= 6
    # The prediction does not depend on the losses held out.
    wild = runs.loss.copy()
    wild[-7:] *= 3
    assert (hold_out(CHINCHILLA, runs.with_loss(wild)).predicted == held.predicted).all()


def test_intervals_of_single_runs_have_their_coverage() -> None:
    """They include the scatter of a run, which is much larger here than the uncertainty of the law."""
    held = [hold_out(CHINCHILLA, grid(8, 8, noise=0.005, seed=seed), cut=1e21) for seed in range(8)]
    runs = sum(len(one.runs) for one in held)
    assert runs == 8 * 13
    assert 0.7 < sum(one.within(80) for one in held) / runs < 0.9
    assert sum(one.within(95) for one in held) / runs > 0.87


def test_a_hold_out_from_a_given_compute() -> None:
    held = hold_out(CHINCHILLA, isoflop(noise=0.003), cut=5e19)
    assert (len(held.fit.runs), len(held.runs)) == (21, 14)
    with pytest.raises(FitRefusedError, match="7 runs are too few"):
        hold_out(CHINCHILLA, isoflop(), cut=5e17)
    with pytest.raises(FitRefusedError, match="no hold-out: of 35 runs 0"):
        hold_out(CHINCHILLA, isoflop(), cut=1e30)


def test_held_out_runs_that_share_a_stable_run_are_counted() -> None:
    runs = grid(6, 4, noise=0.002, cluster=[f"stable run {place}" for place in np.repeat(range(6), 4)])
    assert hold_out(CHINCHILLA, runs).shared_stable_runs == 1
    assert hold_out(CHINCHILLA, isoflop(noise=0.002)).shared_stable_runs == 0


def test_the_ladder_extrapolates_further_and_says_where_it_ends() -> None:
    cuts = hold_out_ladder(CHINCHILLA, isoflop(noise=0.003))
    assert [(cut.fitted, cut.held_out) for cut in cuts] == [(28, 7), (21, 14), (14, 21), (7, 28)]
    assert [cut.extrapolation for cut in cuts] == pytest.approx([10, 100, 1e3, 1e4])
    assert "too few" in cuts[-1].refused
    assert all(cut.refused is None and cut.mean_error <= cut.largest_error for cut in cuts[:-1])


# ----------------------------------------------------------------------------------- cross-checks


@pytest.mark.parametrize(("half_width", "bias"), [(2, 0.003), (8, 0.03), (16, 0.055)])
def test_bias_of_parabolas(half_width, bias) -> None:
    """The biases that Czech et al. 2026 report for the published Chinchilla law, without noise."""
    published = {"A": 406.4, "B": 410.7, "E": 1.6934, "alpha": 0.33917, "beta": 0.28491}
    check = cross_checks(fit(CHINCHILLA, isoflop(7, half_width, truth=published)))[0]
    assert check.exponent == pytest.approx(CHINCHILLA.optimum_exponents(published)["a"], abs=1e-3)
    assert check.bias == pytest.approx(bias, abs=0.005)
    assert check.difference == pytest.approx(check.bias, abs=1e-4)


def test_noise_does_not_change_the_bias() -> None:
    quiet, noisy = (cross_checks(fit(CHINCHILLA, isoflop(7, 4, noise=noise)))[0] for noise in (0.0, 0.005))
    assert noisy.bias == pytest.approx(quiet.bias, abs=0.01)
    assert noisy.difference != pytest.approx(noisy.bias, abs=0.005)


def test_a_parabola_with_its_lowest_loss_at_the_edge_has_no_optimum() -> None:
    low = isoflop(7, 3.0, center=0.2)
    assert {curve.refused for curve in isoflop_curves(low)} == {"the lowest loss is at the largest size"}
    assert {curve.refused for curve in isoflop_curves(isoflop(7, 3.0, center=5.0))} == {
        "the lowest loss is at the smallest size"
    }
    assert parabola_optima(low) == []
    check = cross_checks(fit(CHINCHILLA, low))[0]
    assert check.exponent is None
    assert check.refused.startswith("only 0 of the 2")


def test_three_sizes_make_no_parabola() -> None:
    assert isoflop_curves(isoflop(3)) == []


def test_the_envelope_has_about_the_same_exponent() -> None:
    runs = grid(12, 8)
    optima = envelope_optima(runs)
    assert len(optima) > 5
    assert {size for _, size in optima} <= set(runs.n)
    check = cross_checks(fit(CHINCHILLA, runs))[1]
    assert check.exponent == pytest.approx(CHINCHILLA.optimum_exponents(TRUTH)["a"], abs=0.08)
    assert check.difference == pytest.approx(check.bias, abs=1e-3)
    assert abs(check.bias) < 0.4


def test_the_power_law_has_no_cross_checks() -> None:
    n = np.geomspace(5e7, 5e9, 12)
    assert cross_checks(fit(POWER, sweep(n, 20 * n))) == []


# ------------------------------------------------------------------------------------- prediction


def test_a_prediction_has_the_interval_of_the_law() -> None:
    found = fit(CHINCHILLA, grid(noise=0.003))
    draws = bootstrap(found, 300)
    near, far = predict(found, draws, 1e22), predict(found, draws, 1e26)
    assert 6 * near.n * near.d == pytest.approx(1e22)
    truth = optimum(CHINCHILLA, TRUTH, 1e22, 6.0)
    for name, value in truth.items():
        low, high = near.intervals[name]["95"]
        assert low < value < high
    assert near.extrapolation == pytest.approx(1e22 / found.runs.flops.max())
    assert not near.far
    assert far.far

    def width(prediction) -> float:
        low, high = prediction.intervals["n"]["80"]
        return np.log(high / low)

    assert width(far) > 1.3 * width(near)
    with pytest.raises(ValueError, match="compute must be positive"):
        predict(found, draws, -1.0)
    with pytest.raises(ValueError, match="does not model repeated tokens"):
        predict(found, draws, 1e22, {"unique": 1e9})


def test_with_few_distinct_tokens_the_optimal_model_is_larger() -> None:
    coefficients = {**TRUTH, "R": 15.0}
    fresh = optimum(REPEATED, coefficients, 1e22, 6.0)
    short = optimum(REPEATED, coefficients, 1e22, 6.0, {"unique": 1e10})
    plenty = optimum(REPEATED, coefficients, 1e22, 6.0, {"unique": 1e13})
    assert short["n"] > 1.2 * fresh["n"]
    assert short["loss"] > fresh["loss"]
    assert plenty["n"] == pytest.approx(fresh["n"], rel=1e-3)
    sizes = short["n"] * np.geomspace(0.7, 1.4, 4001)
    losses = REPEATED.loss(coefficients, {"n": sizes, "d": 1e22 / 6 / sizes, "unique": 1e10})
    assert short["n"] == pytest.approx(sizes[np.argmin(losses)], rel=2e-3)


# ----------------------------------------------------------------------------------------- scores


def test_both_forms_of_a_score_are_recovered() -> None:
    loss = np.linspace(2.2, 4.0, 12)
    exponential = fit_exponential(loss, 0.85 - 2.2 * np.exp(-0.7 * loss))
    assert exponential.coefficients == pytest.approx({"top": 0.85, "k": 2.2, "gamma": 0.7}, rel=1e-4)
    error = 0.75 - (0.75 - 0.2) / (1 + np.exp(3.0 * (loss - 2.8)))
    sigmoid = fit_sigmoid(loss, error, 0.75)
    assert sigmoid.coefficients == pytest.approx({"chance": 0.75, "floor": 0.2, "slope": 3.0, "middle": 2.8}, rel=1e-4)
    assert sigmoid.squares < 1e-12 < fit_exponential(loss, error).squares


def scored(scale: float, is_error: bool):
    runs = grid(noise=0.002)
    error = 0.75 - 0.55 / (1 + np.exp(3.0 * (runs.loss - 2.6)))
    runs = replace(runs, score=scale * (error if is_error else 1 - error))
    found = fit(CHINCHILLA, runs)
    return found, bootstrap(found, 100)


@pytest.mark.parametrize(("scale", "is_error"), [(1.0, True), (1.0, False), (100.0, False)])
def test_scores_are_predicted_on_their_scale(scale, is_error) -> None:
    found, draws = scored(scale, is_error)
    prediction = predict(found, draws, 1e23)
    chance = scale * (0.75 if is_error else 0.25)
    task = fit_task(found, draws, [prediction], "vqa", chance, is_error)
    assert task.laws[0].form == "sigmoid"
    assert 6 <= task.used < 40
    assert task.used + task.at_chance == 40
    expected = 0.75 - 0.55 / (1 + np.exp(3.0 * (prediction.loss - 2.6)))
    score, low, high = task.predictions[1e23]
    assert score == pytest.approx(scale * (expected if is_error else 1 - expected), abs=0.005 * scale)
    assert low <= score <= high


def test_scores_at_chance_are_refused() -> None:
    found, draws = scored(1.0, False)
    with pytest.raises(FitRefusedError, match=r"vqa: \d of 40 runs are above chance \(0.7\)"):
        fit_task(found, draws, [], "vqa", 0.7, False)


# ----------------------------------------------------------------------------------------- result


def test_the_highest_losses_are_dropped_and_both_fits_kept() -> None:
    runs = grid(noise=0.002)
    loss = runs.loss.copy()
    loss[[0, 5, 10]] *= 1.5
    found = analyse("loss", runs.with_loss(loss), FitSpec(draws=100, drop_highest=3))
    assert len(found.runs) == 37
    assert {item.id for item in found.set_aside} == {"run 1", "run 6", "run 11"}
    beside = found.analysis.beside["With the dropped runs"]
    assert beside["B"] != pytest.approx(found.analysis.fit.coefficients["B"], rel=0.01)


def test_seed_noise_of_repeated_runs() -> None:
    cell = [1e8, 1e8, 1e8, 2e8]
    runs = sweep(cell, np.full(4, 2e9)).with_loss(3.0 * np.exp([0.0, 0.01, -0.01, 0.3]))
    assert seed_noise(runs) == pytest.approx(0.01)
    assert seed_noise(grid()) is None


def test_a_refusal_is_a_result() -> None:
    found = analyse("loss", grid()[:5], FitSpec())
    assert found.analysis is None
    assert "5 runs are too few" in found.refused


# ------------------------------------------------------------------------------------- simulation


@pytest.fixture
def few_judged(monkeypatch) -> None:
    """Judges two data sets only: fits from many starts take most of a simulation's time."""
    monkeypatch.setattr("solo.scaling.laws.simulate.JUDGED", 2)


def spec(tmp_path, **changes):
    content = {
        "design": {"isoflop": {"budgets": [1e17, 1e18, 1e19, 1e20], "points": 7}},
        "noise": 0.003,
        "predict": 1e22,
        "datasets": 60,
        **changes,
    }
    path = tmp_path / "design.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_spec(path)


@pytest.mark.usefixtures("few_judged")
def test_more_runs_and_less_noise_give_a_narrower_interval(tmp_path) -> None:
    def width(**changes) -> float:
        found = simulate(spec(tmp_path, **changes))
        low, high = found.intervals["n"]["80"]
        assert low < found.truth["n"] < high
        return float(np.log(high / low))

    base = width()
    assert width(noise=0.001) < 0.6 * base
    assert width(design={"isoflop": {"budgets": [1e17, 1e18, 1e19, 1e20], "points": 28}}) < 0.75 * base


@pytest.mark.usefixtures("few_judged")
@pytest.mark.parametrize(
    ("design", "runs", "clusters"),
    [
        ({"grid": {"n": [1e8, 3e8, 1e9, 3e9], "tokens_per_parameter": [5, 20, 80]}}, 12, 12),
        ({"grid": {"n": [1e8, 3e8, 1e9, 3e9], "d": [1e9, 1e10, 1e11]}}, 12, 12),
        ({"horizons": {"n": [1e8, 3e8, 1e9, 3e9], "tokens_per_parameter": 80, "at": [0.05, 0.25, 1]}}, 12, 4),
        ({"runs": [[n * 1e8, m * n * 1e8] for n in (1, 4, 16) for m in (5, 20, 80)]}, 9, 9),
    ],
)
def test_designs(tmp_path, design, runs, clusters) -> None:
    found = simulate(spec(tmp_path, design=design, datasets=20, noise=0.001))
    assert (found.runs, found.clusters) == (runs, clusters)
    assert found.flops > 0


@pytest.mark.usefixtures("few_judged")
def test_shared_noise_widens_the_interval(tmp_path) -> None:
    design = {"horizons": {"n": [1e8, 3e8, 1e9, 3e9, 1e10], "tokens_per_parameter": 80, "at": [0.05, 0.25, 0.5, 1]}}
    alone = simulate(spec(tmp_path, design=design, noise=0.002))
    shared = simulate(spec(tmp_path, design=design, noise=0.002, stable_run_noise=0.006))

    def width(found) -> float:
        low, high = found.intervals["alpha"]["80"]
        return high - low

    assert width(shared) > 1.5 * width(alone)


def test_designs_that_do_not_determine_the_law_are_refused(tmp_path) -> None:
    constant = {"grid": {"n": [1e8 * 2**k for k in range(9)], "tokens_per_parameter": [20]}}
    with pytest.raises(FitRefusedError, match="cannot be separated"):
        simulate(spec(tmp_path, design=constant))
    noisy = {"grid": {"n": [1e8, 1.3e8, 1.7e8], "tokens_per_parameter": [10, 20, 40]}}
    with pytest.raises(FitRefusedError, match="data sets"):
        simulate(spec(tmp_path, design=noisy, noise=0.02, datasets=20))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"design": {}}, "give exactly one of isoflop, grid, horizons, runs"),
        ({"design": {"isoflop": {"budgets": [1e18], "point": 3}}}, "design.isoflop.point"),
        ({"design": {"grid": {"n": [1e8]}}}, "give either d or tokens_per_parameter"),
        ({"design": {"runs": [[1e8]]}}, "each is a pair"),
        ({"law": "shared"}, "the law 'shared' has A, B, E, alpha"),
        ({"noise": -1}, "noise"),
        ({"trunk_noise": 0.1}, "trunk_noise: this key is named stable_run_noise now"),
    ],
)
def test_invalid_specs(tmp_path, changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        spec(tmp_path, **changes)


def test_the_design_of_a_sweep(tmp_path) -> None:
    """Its sizes and tokens; the branches of a stable run are one cluster, the stable run itself is not fitted."""
    horizons = {"horizons": {"steps": 4000, "at": [0.25, 0.5, 1.0], "decay": 0.2}}
    sweep = planned(tmp_path, ladder={"width": [16, 32, 64]}, design=horizons, warmup=0.1)
    found = spec(tmp_path, design={"sweep": "sweep.yaml"}, predict=1e14, datasets=10)
    runs = design_runs(found.design, CHINCHILLA, ASSUMED)
    points = [point for point in expand(sweep) if not point.is_stable]
    assert len(runs) == 9
    assert runs.clusters == 3
    assert list(runs.flops) == [point.estimate.flops for point in points]
    assert list(runs.n) == [point.estimate.n_active for point in points]
    assert simulate(found).runs == 9


# ---------------------------------------------------------------------------------- large tables


def test_a_large_table_is_fitted_in_blocks(monkeypatch) -> None:
    """Starts are searched on some of the runs, resamplings are solved in blocks: the minimum is that of all runs."""
    runs = grid(30, 10, noise=0.003)
    whole = fit(CHINCHILLA, runs)
    expected = bootstrap(whole, 100).coefficients
    monkeypatch.setattr("solo.scaling.laws.fit._SEARCHED", 60)
    monkeypatch.setattr("solo.scaling.laws.solver._BLOCK", 3 * len(runs))
    found = fit(CHINCHILLA, runs)
    assert found.objective == pytest.approx(whole.objective, rel=1e-9)
    assert found.coefficients == pytest.approx(whole.coefficients, rel=1e-4)
    said = []
    draws = bootstrap(whole, 100, note=said.append).coefficients
    assert said == ["resampling 100 times"]
    for name in expected:
        np.testing.assert_allclose(draws[name], expected[name], rtol=1e-4)


def test_copies_and_training_curves_are_noted(monkeypatch) -> None:
    runs = grid(6, 5, noise=0.003)
    copies = runs[[*range(len(runs)), 0, 7]]
    spec = FitSpec(draws=100)
    analysis = analyse("text", replace(copies, id=(*runs.id, "copy a", "copy b")), spec).analysis
    assert "2 runs equal another to the last digit" in " ".join(analysis.notes)
    assert "copy a and run 1" in " ".join(analysis.notes)
    monkeypatch.setattr("solo.scaling.laws.result._MANY", 20)
    (note,) = analyse("text", runs, spec).analysis.notes
    assert note.startswith("30 rows count as independent trainings; if they are points of training curves")


def test_scores_that_are_no_shares_are_refused() -> None:
    runs = grid(noise=0.003)
    fitted = fit(CHINCHILLA, replace(runs, score=np.linspace(20.0, 130.0, len(runs))))
    with pytest.raises(FitRefusedError, match="cider lies between 0 and 130; expected scores from 0 to 1"):
        fit_task(fitted, bootstrap(fitted, 100), [], "cider", 0.0, False)
