"""The laws: their formulas, their optima, and the value of repeated tokens."""

import re

import numpy as np
import pytest

from solo.scaling.laws.catalogue import CHINCHILLA, LAWS, POWER, SHARED, effective_tokens
from tests.scaling.samples import HOFFMANN, TRUTH


def test_chinchilla_at_known_points() -> None:
    # 70 B parameters, 1.4 T tokens: 1.6934 + 406.4/70e9^.33917 + 410.7/1.4e12^.28491, by hand.
    assert CHINCHILLA.loss(HOFFMANN, {"n": 70e9, "d": 1.4e12}) == pytest.approx(1.6934 + 0.08450 + 0.14129, abs=2e-3)
    found = CHINCHILLA.loss(TRUTH, {"n": np.array([1e8, 1e9]), "d": 2e10})
    assert found == pytest.approx([1.8172 + 482 / n**0.3478 + 2085 / 2e10**0.3659 for n in (1e8, 1e9)])


def test_the_optimum_has_the_lowest_loss_of_its_compute() -> None:
    for law, coefficients in ((CHINCHILLA, TRUTH), (SHARED, {**TRUTH, "beta": None})):
        for flops in (1e18, 1e24):
            n, d = law.optimum(coefficients, flops)
            assert 6 * n * d == pytest.approx(flops)
            sizes = n * np.geomspace(0.5, 2, 2001)
            losses = law.loss(coefficients, {"n": sizes, "d": flops / 6 / sizes})
            assert sizes[np.argmin(losses)] == pytest.approx(n, rel=1e-3)


def test_the_optimum_at_the_compute_of_chinchilla() -> None:
    """By the refitted law, the optimum of 5.88e23 FLOPs is 74 B parameters and 1.3 T tokens (Besiroglu et al. 2024)."""
    refitted = {"A": 477.826, "B": 2143.42, "E": 1.81722, "alpha": 0.347310, "beta": 0.367172}
    n, d = CHINCHILLA.optimum(refitted, 5.88e23)
    assert (n, d, d / n) == (
        pytest.approx(74e9, rel=0.01),
        pytest.approx(1.32e12, rel=0.01),
        pytest.approx(17.9, rel=0.01),
    )
    assert CHINCHILLA.loss(refitted, {"n": n, "d": d}) == pytest.approx(1.973, abs=1e-3)


def test_exponents_of_the_optimum() -> None:
    # Shukor et al. 2025, table of early fusion on captions: alpha .3111 and beta .3386 go with a .5203 and b .4785.
    found = CHINCHILLA.optimum_exponents({"alpha": 0.3111, "beta": 0.3386})
    assert found["a"] == pytest.approx(0.5203, abs=2e-3)
    assert found["a"] + found["b"] == pytest.approx(1)
    grown = [CHINCHILLA.optimum(TRUTH, flops)[0] for flops in (1e20, 1e21)]
    assert np.log10(grown[1] / grown[0]) == pytest.approx(CHINCHILLA.optimum_exponents(TRUTH)["a"])


def test_the_optimum_uses_the_measured_flops_factor() -> None:
    n, d = CHINCHILLA.optimum(TRUTH, 1e20, 8.0)
    assert 8 * n * d == pytest.approx(1e20)


def test_the_power_law_does_not_allocate_compute() -> None:
    assert POWER.optimum_exponents({"alpha": 0.1}) == {}
    with pytest.raises(ValueError, match="does not say how to split"):
        POWER.optimum({"A": 1.0, "E": 1.0, "alpha": 0.1}, 1e20)


def test_repeated_tokens_have_diminishing_value() -> None:
    assert effective_tokens(3e9, 1e10, 15.0) == 3e9
    assert effective_tokens(3e9, np.inf, 15.0) == 3e9
    assert effective_tokens(1e10, 1e10, 15.0) == 1e10
    worth = effective_tokens(1e10 * np.array([2, 4, 16, 1000]), 1e10, 15.0)
    # Four epochs are nearly as good as fresh tokens; no number of them is worth more than 1 + R epochs.
    assert worth[1] == pytest.approx(4e10, rel=0.1)
    assert list(worth / [2e10, 4e10, 16e10, 1e13]) == sorted(worth / [2e10, 4e10, 16e10, 1e13], reverse=True)
    assert worth[-1] == pytest.approx(16e10, rel=1e-6)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_coefficients_are_those_of_the_formula(law) -> None:
    assert all(re.search(rf"\b{name}\b", law.formula) for name in law.coefficients)
    symbols = set(re.findall(r"\b[a-zA-Z]+\b", law.formula.replace("exp", "")))
    assert len(set(law.coefficients)) == len(law.coefficients) == len(set(law.coefficients) & symbols)
