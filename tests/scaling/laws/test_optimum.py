"""The best split of compute, sizes that are nearly as good, and the split if the model is served."""

import numpy as np
import pytest

from solo.scaling.laws.bootstrap import bootstrap
from solo.scaling.laws.catalogue import CHINCHILLA, SHARED, SPARSE, TRANSFER
from solo.scaling.laws.fit import fit
from solo.scaling.laws.optimum import equal_loss, near_optimal, optimum, serve
from solo.scaling.laws.predict import predict
from tests.scaling.samples import TRUTH, grid

FLOPS = 1e22


def losses(n, flops: float = FLOPS):
    return CHINCHILLA.loss(TRUTH, {"n": n, "d": flops / 6 / n})


def test_sizes_near_the_optimum() -> None:
    low, high = near_optimal(CHINCHILLA, TRUTH, FLOPS, 6.0)
    best = losses(CHINCHILLA.optimum(TRUTH, FLOPS)[0])
    assert losses(np.array([low, high])) == pytest.approx(1.005 * best, rel=1e-9)
    assert low < CHINCHILLA.optimum(TRUTH, FLOPS)[0] < high


def test_a_prediction_says_what_other_sizes_give_up() -> None:
    runs = grid(noise=0.002)
    found = fit(CHINCHILLA, runs)
    draws = bootstrap(found, 100)
    flat = predict(found, draws, FLOPS, tied=fit(SHARED, runs)).flat
    best = CHINCHILLA.optimum(found.coefficients, FLOPS)[0]
    lowest = CHINCHILLA.loss(found.coefficients, {"n": best, "d": FLOPS / 6 / best})
    for name, factor in (("half the size", 0.5), ("twice the size", 2.0)):
        n, lost, (low, high) = flat.given_up[name]
        assert n == pytest.approx(best * factor)
        there = CHINCHILLA.loss(found.coefficients, {"n": n, "d": FLOPS / 6 / n})
        assert lost == pytest.approx(there / lowest - 1)
        assert 0 < low < lost < high < 0.02
    tied, lost, _ = flat.given_up["tied, a = 0.5"]
    again = SHARED.optimum(fit(SHARED, runs).coefficients, 4 * FLOPS)[0]
    assert again / tied == pytest.approx(2.0)
    assert 0 <= lost < 0.005
    assert flat.smallest[1][0] < flat.smallest[0] < best < flat.largest[0] < flat.largest[1][1]


def test_a_served_model_is_smaller_and_trained_for_longer() -> None:
    n, _ = CHINCHILLA.optimum(TRUTH, FLOPS)
    found = serve(CHINCHILLA, TRUTH, FLOPS, 6.0, 2e12)
    target = losses(n)
    assert CHINCHILLA.loss(TRUTH, {"n": found["n"], "d": found["d"]}) == pytest.approx(target, rel=1e-9)
    # By brute force: training and serving of all sizes that reach the loss.
    sizes = n * np.geomspace(0.1, 1, 20001)
    gap = target - TRUTH["E"] - TRUTH["A"] / sizes ** TRUTH["alpha"]
    tokens = np.where(gap > 0, (TRUTH["B"] / np.maximum(gap, 1e-9)) ** (1 / TRUTH["beta"]), np.inf)
    total = 6 * sizes * tokens + 2 * sizes * 2e12
    assert found["n"] == pytest.approx(sizes[np.argmin(total)], rel=1e-3)
    assert found["total"] == pytest.approx(total.min(), rel=1e-6)
    assert found["saved"] == pytest.approx(1 - total.min() / (FLOPS + 2 * n * 2e12), rel=1e-4)
    nothing = serve(CHINCHILLA, TRUTH, FLOPS, 6.0, 1.0)
    assert nothing["n"] == pytest.approx(n, rel=1e-3)


def test_a_law_without_closed_form_has_a_numerical_optimum() -> None:
    """Only text, at k = 1 or any share: the law of transfer is Chinchilla's."""
    coefficients = {**TRUTH, "k": 1.0}
    found = optimum(TRANSFER, coefficients, FLOPS, 6.0, {"share": 0.3})
    assert found["n"] == pytest.approx(CHINCHILLA.optimum(TRUTH, FLOPS)[0], rel=1e-5)
    # If an image token is worth a tenth, the run has (1 - 0.3 + 0.03) D effective tokens, as if B were larger.
    scaled = {**TRUTH, "B": TRUTH["B"] * 0.73 ** -TRUTH["beta"]}
    found = optimum(TRANSFER, {**TRUTH, "k": 0.1}, FLOPS, 6.0, {"share": 0.3})
    assert found["n"] == pytest.approx(CHINCHILLA.optimum(scaled, FLOPS)[0], rel=1e-5)


def test_experts_act_as_a_smaller_amplitude() -> None:
    coefficients = {**TRUTH, "gamma": 0.1}
    found = optimum(SPARSE, coefficients, FLOPS, 6.0, {"ratio": 8.0})
    scaled = {**TRUTH, "A": TRUTH["A"] * 8**-0.1}
    assert found["n"] == pytest.approx(CHINCHILLA.optimum(scaled, FLOPS)[0])
    assert found["loss"] < optimum(SPARSE, coefficients, FLOPS, 6.0, {"ratio": 1.0})["loss"]


def test_compute_for_the_same_loss() -> None:
    target = optimum(CHINCHILLA, TRUTH, FLOPS, 6.0)["loss"]
    assert equal_loss(CHINCHILLA, TRUTH, target, FLOPS / 50, 6.0) == pytest.approx(FLOPS, rel=1e-6)
    # Twice the FLOPs per parameter and token take twice the compute; a floor above the loss cannot be reached.
    assert equal_loss(CHINCHILLA, TRUTH, target, FLOPS, 12.0) == pytest.approx(2 * FLOPS, rel=1e-6)
    assert equal_loss(CHINCHILLA, {**TRUTH, "E": 3.0}, target, FLOPS, 6.0) == np.inf
