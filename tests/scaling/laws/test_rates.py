"""The best learning rate as a power law in parameters and tokens."""

import numpy as np
import pytest

from solo.scaling.laws.catalogue import CHINCHILLA
from solo.scaling.laws.fit import FitRefusedError
from solo.scaling.laws.rates import fit_rates
from solo.scaling.laws.runs import make_runs
from tests.scaling.samples import TRUTH


def tuned(noise: float = 0.0, sizes: int = 4, tokens_per_parameter=(10.0, 40.0, 160.0), power=(-0.713, 0.307), **where):
    """Returns runs and their learning rates; the best is 1.79 N^a D^b and a factor of e costs 2% of the loss."""
    steps = np.geomspace(*where.get("around", (0.3, 3.0)), 5)
    n = np.repeat(np.geomspace(1e7, 1e9, sizes), len(tokens_per_parameter) * 5)
    d = n * np.tile(np.repeat(tokens_per_parameter, 5), sizes)
    best = 1.79 * n ** power[0] * d ** power[1]
    rates = best * np.tile(steps, len(n) // 5)
    loss = CHINCHILLA.loss(TRUTH, {"n": n, "d": d}) * np.exp(0.02 * np.log(rates / best) ** 2)
    return make_runs(n, d, loss * np.exp(np.random.default_rng(1).normal(0, noise, len(n)))), rates


def test_the_law_is_recovered_and_equals_the_step_law() -> None:
    runs, rates = tuned()
    found = fit_rates("rate", "lr", "text", runs, rates, draws=100)
    assert found.values == pytest.approx({"R": 1.79, "a": -0.713, "b": 0.307, "curvature": 0.02}, rel=1e-4)
    assert len(found.cells) == 12
    for cell in found.cells:
        assert cell.best[0] == pytest.approx(cell.published, rel=1e-4)
        assert not cell.at_edge


def test_intervals_contain_the_law() -> None:
    runs, rates = tuned(noise=0.002)
    found = fit_rates("rate", "lr", "text", runs, rates, draws=200)
    for name, truth in {"R": 1.79, "a": -0.713, "b": 0.307}.items():
        low, high = found.intervals[name]["95"]
        assert low < truth < high
        assert low < found.values[name] < high


def test_one_number_of_tokens_per_parameter_gives_one_exponent() -> None:
    runs, rates = tuned(tokens_per_parameter=(20.0,), power=(-0.4, 0.0))
    found = fit_rates("rate", "lr", "text", runs, rates, draws=100)
    assert found.values["a"] == pytest.approx(-0.4, abs=1e-4)
    assert found.values["b"] == 0
    assert found.notes == ("tokens do not vary apart from parameters, so there is no exponent of D of its own",)


def test_settings_without_a_best_value_are_refused() -> None:
    runs, rates = tuned()
    with pytest.raises(FitRefusedError, match="the losses have no minimum in lr"):
        fit_rates("rate", "lr", "text", runs.with_loss(np.exp(1 - 0.1 * np.log(rates) ** 2 / 50)), rates)
    with pytest.raises(FitRefusedError, match="2 pairs of size and tokens have 3 values of lr"):
        fit_rates("rate", "lr", "text", runs[:10], rates[:10])
    noisy, rates = tuned(noise=0.03, sizes=3, tokens_per_parameter=(10.0, 12.0))
    with pytest.raises(FitRefusedError, match=r"not identified|no minimum"):
        fit_rates("rate", "lr", "text", noisy, rates)


def test_a_lowest_loss_at_the_edge_is_noted() -> None:
    runs, rates = tuned(around=(1.1, 4.0))
    found = fit_rates("rate", "lr", "text", runs, rates, draws=100)
    assert found.notes == ("in 12 of 12 pairs the lowest loss is at the smallest or largest lr",)
