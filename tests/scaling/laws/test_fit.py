"""Fits reach the minimum from any start, or are refused."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from solo.scaling.laws import solver
from solo.scaling.laws.bootstrap import bootstrap, interval
from solo.scaling.laws.catalogue import CHINCHILLA, LAWS, POWER, REPEATED, SHARED
from solo.scaling.laws.fit import Fit, FitRefusedError, finish, fit
from solo.scaling.laws.problem import ASYMMETRIC, HUBER, SQUARES, Problem
from solo.scaling.laws.start import non_negative, starting_points
from tests.scaling.samples import HOFFMANN, TRUTH, grid, isoflop, overtrain, sweep


def off(found: dict[str, float], truth: dict[str, float]) -> float:
    return max(abs(found[name] / truth[name] - 1) for name in truth)


def everything(**options):
    """Returns 40 runs with all variables, in two groups."""
    runs = grid(noise=0.01, unique=np.full(40, 3e10), **options)
    share = np.tile([0.1, 0.3, 0.7, 0.5], 10)
    more = {"ratio": np.tile([1.0, 4.0, 2.0, 8.0, 1.0], 8), "share": share, "decay": np.tile([0.0, 0.1, 0.2, 0.5], 10)}
    more |= {"images": share * runs.d, "text": (1 - share) * runs.d}
    return replace(runs, more=more, group=np.repeat([0, 1], 20))


# ------------------------------------------------------------------------------------ derivatives

GROUPED = [CHINCHILLA.joint("ab", "AB"), REPEATED.joint("ab", REPEATED.coefficients)]


@pytest.mark.parametrize("objective", [HUBER, SQUARES, ASYMMETRIC])
@pytest.mark.parametrize("law", [*LAWS.values(), *GROUPED], ids=[*LAWS, "shared exponents", "separate"])
def test_gradient_is_that_of_the_objective(law, objective) -> None:
    problem = Problem(law, everything(), objective)
    generator = np.random.default_rng(0)
    count = len(law.coefficients)
    at = np.clip(generator.normal(0.2, 0.05, (3, count)), problem.lower, problem.upper)
    weights = generator.integers(0, 3, (3, 40)).astype(float)
    found = problem.evaluate(at, weights)
    for place, step in enumerate(np.eye(count) * 1e-6):
        rise = (problem.value(at + step, weights) - problem.value(at - step, weights)) / 2e-6
        assert found.gradient[:, place] == pytest.approx(rise, rel=1e-5, abs=1e-9)


def test_without_noise_the_gauss_newton_matrix_is_the_hessian() -> None:
    problem = Problem(CHINCHILLA, grid())
    at, ones = problem.vector(TRUTH)[None], np.ones((1, 40))
    found = problem.evaluate(at, ones)
    for place, step in enumerate(np.eye(5) * 1e-6):
        change = problem.evaluate(at + step, ones).gradient - problem.evaluate(at - step, ones).gradient
        assert found.gauss_newton[:, place] == pytest.approx(change / 2e-6, rel=1e-4, abs=1e-7)


def test_coefficients_and_vectors_are_inverse_to_each_other() -> None:
    problem = Problem(REPEATED, grid(unique=np.full(40, 3e10)))
    there = {**TRUTH, "R": 12.0}
    back = problem.coefficients(problem.vector(there))
    assert {name: float(value) for name, value in back.items()} == pytest.approx(there)


def test_non_negative_amplitudes_match_scipy() -> None:
    from scipy.optimize import nnls

    generator = np.random.default_rng(0)
    columns, target = generator.normal(size=(40, 12, 3)), generator.normal(size=12)
    amplitudes, errors = non_negative(columns, target)
    for table, found, error in zip(columns, amplitudes, errors, strict=True):
        expected, norm = nnls(table, target)
        assert found == pytest.approx(expected, abs=1e-9)
        assert error == pytest.approx(norm**2)
    assert (amplitudes == 0).any()


# --------------------------------------------------------------------------------------- recovery


@pytest.mark.parametrize("design", [grid(), isoflop(), grid(4, 4), isoflop(half_width=16, center=0.33)])
def test_without_noise_the_law_is_recovered(design) -> None:
    found = fit(CHINCHILLA, design)
    assert off(found.coefficients, TRUTH) < 1e-4
    assert found.objective < 1e-15
    assert found.agreeing > 0.5 * found.starts


def test_other_laws_are_recovered() -> None:
    shared = {name: TRUTH[name] for name in ("A", "B", "E")} | {"alpha": 0.3}
    assert off(fit(SHARED, grid(truth=shared, law=SHARED)).coefficients, shared) < 1e-4
    power = {"A": 1500.0, "E": 1.7, "alpha": 0.16}
    assert off(fit(POWER, grid(truth=power, law=POWER)).coefficients, power) < 1e-4
    repeated = {**TRUTH, "R": 12.0}
    runs = grid(6, 6, truth=repeated, law=REPEATED, unique=np.full(36, 1e10))
    assert off(fit(REPEATED, runs).coefficients, repeated) < 1e-4


def test_sparse_models_are_fitted_by_their_active_parameters() -> None:
    """By total parameters, in a ratio that differs between sizes, the same losses do not follow the law."""
    runs = grid(noise=0.001)
    total = sweep(runs.n * np.repeat(np.linspace(2, 8, 8), 5), runs.d).with_loss(runs.loss)
    assert fit(CHINCHILLA, runs).objective < 0.5 * fit(CHINCHILLA, total).objective


def test_published_errors_of_gadre() -> None:
    """The loss fitted to five runs and the error to six: the four relative errors of Gadre et al. for RedPajama."""
    from solo.scaling.laws.downstream import fit_exponential

    rows = {(row["model"], float(row["cc"])): row for row in overtrain()}
    small, large, huge = "d=96_l=8_h=4", "open_lm_1b", "open_lm_7b"
    names = [(small, 1), ("d=512_l=8_h=4", 1), ("d=576_l=24_h=8", 1), ("d=1024_l=24_h=8", 1), (small, 16)]

    def column(keys, name: str) -> np.ndarray:
        return np.array([float(rows[key][name]) for key in keys])

    def runs(keys):
        return sweep(column(keys, "N"), column(keys, "D")).with_loss(column(keys, "loss_c4_val"))

    found = fit(SHARED, runs(names), SQUARES)
    six = [*names, (large, 1)]
    task = fit_exponential(column(six, "loss_c4_val"), column(six, "err17"))
    for key, loss_error, task_error in (((large, 32), 0.7103, 3.6365), ((huge, 1), 0.7320, 0.0464)):
        loss = found.predict(runs([key]))
        assert 100 * abs(loss / column([key], "loss_c4_val") - 1) == pytest.approx(loss_error, abs=0.01)
        assert 100 * abs(task.error(loss) / column([key], "err17") - 1) == pytest.approx(task_error, abs=0.01)


def test_the_objective_is_the_sum_of_huber_losses_of_log_losses() -> None:
    runs = grid()
    off_by = np.zeros(40)
    off_by[:3] = 0.0005, -0.001, 0.02
    problem = Problem(CHINCHILLA, runs.with_loss(runs.loss * np.exp(off_by)))
    found = problem.value(problem.vector(TRUTH)[None], np.ones((1, 40)))
    assert found[0] == pytest.approx(0.5 * 0.0005**2 + 0.5 * 0.001**2 + 0.001 * (0.02 - 0.0005), rel=1e-6)


def test_outliers_hardly_change_the_fit() -> None:
    runs = grid(8, 8, noise=0.001)
    loss = runs.loss.copy()
    loss[[3, 30, 60]] *= 1.2
    robust, plain = (fit(CHINCHILLA, runs.with_loss(loss), objective).coefficients for objective in (HUBER, SQUARES))
    assert off(robust, TRUTH) < 0.2 < off(plain, TRUTH)


# ----------------------------------------------------------------------------- premature stopping


def hard() -> Problem:
    """240 runs with noise and a few outliers, like those of Hoffmann et al."""
    runs = grid(12, 20, noise=0.01)
    loss = runs.loss.copy()
    loss[::60] *= 1.1
    return Problem(CHINCHILLA, runs.with_loss(loss))


def test_a_fit_started_from_the_published_values_converges() -> None:
    runs = hard().runs
    free, trapped = fit(CHINCHILLA, runs), fit(CHINCHILLA, runs, starts=[HOFFMANN])
    assert trapped.objective == pytest.approx(free.objective, rel=1e-9)
    assert off(trapped.coefficients, free.coefficients) < 1e-4
    assert abs(free.coefficients["beta"] / TRUTH["beta"] - 1) < 0.1


def test_the_finish_alone_converges_from_the_published_values() -> None:
    problem = hard()
    found = finish(problem, problem.vector(HOFFMANN))
    assert off(problem.coefficients(found), fit(CHINCHILLA, problem.runs).coefficients) < 1e-4


def test_a_mean_under_default_tolerances_stops_early() -> None:
    """The failure that the two tests above guard against."""
    problem = hard()
    start, ones = problem.vector(HOFFMANN), np.ones((1, len(problem.runs)))

    def mean(vector):
        value = problem.evaluate(vector[None], ones)
        return value.objective[0] / len(problem.runs), value.gradient[0] / len(problem.runs)

    stuck = minimize(mean, start, jac=True, method="L-BFGS-B")
    assert stuck.success
    assert off(problem.coefficients(stuck.x), fit(CHINCHILLA, problem.runs).coefficients) > 0.2


def test_solver_and_scipy_find_the_same_minimum() -> None:
    problem = hard()
    starts = starting_points(problem)
    found = solver.solve(problem, starts)
    assert found.converged.mean() > 0.8
    best = found.vectors[np.argmin(found.objective)]
    scipy = finish(problem, starts[0])
    assert best == pytest.approx(scipy, abs=1e-6)


# --------------------------------------------------------------------------------------- refusals


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(FitRefusedError, match=r"7 runs are too few .* needs 8"):
        fit(CHINCHILLA, grid()[:7])
    with pytest.raises(FitRefusedError, match="4 runs are too few"):
        fit(SHARED, grid()[::10])


def test_constant_tokens_per_parameter_are_refused() -> None:
    n = np.geomspace(5e7, 5e9, 12)
    with pytest.raises(FitRefusedError, match=r"by a factor of 1, 20 to 20: .* cannot be separated"):
        fit(CHINCHILLA, sweep(n, 20 * n))
    with pytest.raises(FitRefusedError, match=r"factor of 3"):
        fit(SHARED, sweep(n, n * np.tile([10, 20, 30], 4)))
    assert fit(POWER, sweep(n, 20 * n)).coefficients["E"] == pytest.approx(TRUTH["E"], rel=0.05)


def test_two_sizes_do_not_determine_an_exponent() -> None:
    with pytest.raises(FitRefusedError, match="2 different numbers of parameters"):
        fit(CHINCHILLA, grid(2, 8))


def test_a_minimum_at_the_edge_of_the_search_is_refused() -> None:
    runs = grid()
    # The loss hardly depends on size, so that its exponent is not determined.
    steep = runs.with_loss(1.8 + 2085 / runs.d**0.3659 + (5e7 / runs.n) ** 6)
    with pytest.raises(FitRefusedError, match=r"at the edge of the search, alpha = 3"):
        fit(CHINCHILLA, steep)


def test_exponents_hidden_by_noise_are_refused() -> None:
    n = np.repeat([1e8, 1.2e8, 1.5e8], 3)
    narrow = sweep(n, np.tile([2e9, 4e9, 9e9], 3), noise=0.003, seed=1)
    with pytest.raises(FitRefusedError, match="not identified"):
        fit(CHINCHILLA, narrow)


def test_two_equally_good_minima_are_refused(monkeypatch) -> None:
    """If sizes are proportional to tokens, A compensates B: starts end at the same loss, far apart."""
    monkeypatch.setattr("solo.scaling.laws.fit.LEAST_RATIO_SPREAD", 0.0)
    n = np.geomspace(5e7, 5e9, 12)
    even = {**TRUTH, "alpha": 0.35, "beta": 0.35}
    other = {**even, "A": 582.0, "B": 2085.0 - 100 * 20**0.35}
    with pytest.raises(FitRefusedError, match=r"two sets of coefficients fit equally well, A .* and A "):
        fit(CHINCHILLA, sweep(n, 20 * n, truth=even), starts=[even, other])


def test_the_law_of_repeats_needs_runs_that_repeat() -> None:
    with pytest.raises(FitRefusedError, match=r"at least 3 runs that read their tokens more than 1\.5 times; 0 do"):
        fit(REPEATED, grid())


def test_a_floor_of_zero_is_noted() -> None:
    bottomless = grid(truth={**TRUTH, "E": 1e-9})
    assert any("E is 0" in note for note in fit(CHINCHILLA, bottomless).notes)


# -------------------------------------------------------------------------------------- intervals


def test_the_bootstrap_is_reproducible_and_widens_with_the_level() -> None:
    found = fit(CHINCHILLA, grid(noise=0.003))
    one, two, other = bootstrap(found, 200, 1), bootstrap(found, 200, 1), bootstrap(found, 200, 2)
    assert (one.coefficients["E"] == two.coefficients["E"]).all()
    assert (one.coefficients["E"] != other.coefficients["E"]).any()
    for values in one.coefficients.values():
        narrow, wide = interval(values, 80), interval(values, 95)
        assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_every_draw_is_a_fit_of_its_runs() -> None:
    """A draw equals a fit of the resampled runs, each repeated as often as it was drawn."""
    runs = grid(5, 5, noise=0.01)
    found = fit(CHINCHILLA, runs)
    counts = np.random.default_rng(5).multinomial(25, np.full(25, 1 / 25))
    weighted = solver.solve(found.problem, found.vector[None], counts[None].astype(float))
    drawn = fit(CHINCHILLA, runs[np.repeat(np.arange(25), counts)])
    here = found.problem.coefficients(weighted.vectors[0])
    assert off({name: float(value) for name, value in here.items()}, drawn.coefficients) < 1e-4


def clustered(seed: int) -> Fit:
    """Eight stable runs with five horizons each, whose branches share most of their noise."""
    runs = grid(noise=0.0005, seed=seed, cluster=[f"stable run {place}" for place in np.repeat(range(8), 5)])
    shared = np.random.default_rng(seed + 1000).normal(0, 0.01, 8)
    return fit(CHINCHILLA, runs.with_loss(runs.loss * np.exp(np.repeat(shared, 5))))


def test_clusters_are_resampled_whole() -> None:
    found = clustered(0)
    by_cluster = bootstrap(found, 300)
    assert by_cluster.clusters == 8
    assert any("8 independent trainings are few" in note for note in by_cluster.notes)
    alone = fit(CHINCHILLA, sweep(found.runs.n, found.runs.d).with_loss(found.runs.loss))
    by_run = bootstrap(alone, 300)
    assert by_run.clusters == 40

    def width(draws) -> float:
        low, high = interval(draws.coefficients["alpha"], 80)
        return high - low

    # Shared noise does not average out over the branches.
    assert width(by_cluster) > 1.3 * width(by_run)


def test_too_few_clusters_give_no_intervals() -> None:
    runs = grid(4, 4, noise=0.001, cluster=["one"] * 8 + ["two"] * 4 + ["three"] * 4)
    with pytest.raises(FitRefusedError, match="16 runs branched from 3 stable runs are 3 independent trainings"):
        bootstrap(fit(CHINCHILLA, runs), 100)


def test_undetermined_resamplings_are_redrawn() -> None:
    runs = grid(4, 4, noise=0.001, cluster=[f"stable run {place}" for place in np.repeat(range(4), 4)])
    draws = bootstrap(fit(CHINCHILLA, runs), 100)
    assert len(draws) == 100
    # A resampling of four sizes has at most two distinct ones in 88 of 256 cases.
    assert 20 < draws.redrawn < 100
    assert any(f"{draws.redrawn} resamplings" in note for note in draws.notes)
