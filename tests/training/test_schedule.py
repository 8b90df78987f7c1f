"""Schedules over steps and over tokens, against their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solo.config import OptimizerConfig, StageConfig
from solo.training.schedule import (
    TokenCount,
    learning_rate,
    learning_rate_over_tokens,
    no_tokens,
    schedule_notes,
)


def solo_rate(n: int, steps: int) -> float:
    """SOLO's schedule (scripts/megatron/train/curriculum): update k uses n = k - 1."""
    if n <= 200:
        return 5e-5 * n / 200
    return 5e-6 + 0.5 * (1 + math.cos(math.pi * (n - 200) / (steps - 200))) * 4.5e-5


@pytest.mark.parametrize("steps", [1525, 3481, 300])
def test_the_schedule_of_solo(steps) -> None:
    config = OptimizerConfig(learning_rate=5e-5, warmup_steps=200, start_at_zero=True)
    rates = [float(learning_rate(config, steps, jnp.int32(n))) for n in (0, 1, 100, 199, 200, 201, 250, steps - 1)]
    expected = [solo_rate(n, steps) for n in (0, 1, 100, 199, 200, 201, 250, steps - 1)]
    assert rates[0] == 0
    np.testing.assert_allclose(rates[1:], expected[1:], rtol=1e-5)


def test_published_rates_of_solo() -> None:
    """Compares with known values of SOLO's schedule."""
    config = OptimizerConfig(learning_rate=5e-5, warmup_steps=200, start_at_zero=True)
    known = {(1525, 300): 4.9371e-5, (1525, 762): 3.2811e-5, (3481, 300): 4.9897e-5, (3481, 1740): 2.9662e-5}
    known |= {(300, 201): 4.9989e-5, (300, 250): 2.75e-5}
    for (steps, n), rate in known.items():
        assert float(learning_rate(config, steps, jnp.int32(n))) == pytest.approx(rate, rel=2e-5)


def config(**keys) -> OptimizerConfig:
    return OptimizerConfig.model_validate({"learning_rate": 1.0, **keys})


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"schedule": "constant"}, {0: 0.5, 1: 1.0, 9: 1.0}),
        ({"schedule": "linear"}, {0: 0.5, 1: 1.0, 5: 1 - 0.9 * 4 / 8, 9: 0.1}),
        ({"schedule": "cosine"}, {0: 0.5, 1: 1.0, 5: 0.1 + 0.9 * 0.5, 9: 0.1}),
        ({"schedule": "wsd"}, {0: 0.5, 1: 1.0, 7: 1.0, 8: 0.55, 9: 0.1}),
        (
            {"schedule": "wsd", "decay_steps": 4, "decay_shape": "1-sqrt", "final_fraction": 0.0},
            {5: 1.0, 6: 0.5, 7: 1 - 0.5**0.5, 9: 0.0},
        ),
        ({"schedule": "inverse_sqrt"}, {0: 0.5, 1: 1.0, 3: 0.5**0.5, 7: 0.5, 9: 0.2**0.5}),
    ],
)
def test_schedules_of_ten_steps(keys: dict, expected: dict[int, float]) -> None:
    for step, rate in expected.items():
        found = float(learning_rate(config(warmup_steps=2, **keys), 10, jnp.asarray(step)))
        assert found == pytest.approx(rate, abs=1e-6), step


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd", "inverse_sqrt"])
@pytest.mark.parametrize("late", [False, True])
def test_a_schedule_over_tokens_is_that_over_steps_of_equal_tokens(schedule: str, late: bool) -> None:
    """2.3e8 tokens a step: the count leaves 32 bits within 20 steps."""
    size, steps, common = 230_000_000, 40, {"schedule": schedule, "start_at_zero": late}
    over_steps, over_tokens = config(**common, warmup_steps=4), config(**common, warmup_tokens=4 * size)
    count = no_tokens()
    for step in range(steps):
        after = count.add(jnp.int32(size))
        found = learning_rate_over_tokens(over_tokens, steps * size, count, after)
        expected = float(learning_rate(over_steps, steps, jnp.int32(step)))
        assert float(found) == pytest.approx(expected, rel=2e-6, abs=1e-7), step
        count = after
    assert (int(count.high) << 30) + int(count.low) == steps * size > 2**33


def test_ten_trillion_tokens_are_counted_exactly_and_end_where_they_should() -> None:
    """The decay's last tokens, 1e13 in, move the rate as they would alone."""
    total, decay, batch = 10**13 + 7, 10**9, 16_000_000

    def at(tokens: int) -> TokenCount:
        return TokenCount(jnp.int32(tokens >> 30), jnp.int32(tokens & (2**30 - 1)))

    of = config(schedule="wsd", decay_tokens=decay, final_fraction=0.0)
    rate = jax.jit(lambda before, after: learning_rate_over_tokens(of, total, before, after))
    for left in (decay + batch, decay, decay - 1000, decay // 2, batch, 1, 0):
        before = at(total - left - batch)
        after = jax.jit(TokenCount.add)(before, jnp.int32(batch))
        assert (int(after.high) << 30) + int(after.low) == total - left
        expected = min(1.0, left / decay)
        assert float(rate(before, after)) == pytest.approx(expected, abs=1e-7), left


def stage(**keys) -> StageConfig:
    optimizer = {"learning_rate": 0.5, **keys.pop("optimizer", {})}
    data = {"name": "s", "mixture": {"a": 1.0}, "batch_rows": 1, "optimizer": optimizer, **keys}
    return StageConfig.model_validate(data)


def test_a_warm_up_or_decay_that_does_not_fit_its_stage_is_told() -> None:
    (note,) = schedule_notes(stage(steps=50, optimizer={"warmup_steps": 100}), 50)
    assert "warm-up of 100 steps is longer than the stage, which has 50" in note
    assert "reaches 0.25 of its peak of 0.5" in note
    (note,) = schedule_notes(stage(tokens=10**6, optimizer={"warmup_tokens": 4 * 10**6}), 50)
    assert "4,000,000 tokens is longer than the stage, which has 1,000,000" in note
    wsd = {"schedule": "wsd", "warmup_steps": 40, "decay_steps": 20}
    (note,) = schedule_notes(stage(steps=50, optimizer=wsd), 50)
    assert "decay of 20 steps is shortened to the 10" in note
    assert not schedule_notes(stage(steps=60, optimizer=wsd), 60)
    (note,) = schedule_notes(stage(steps=60, optimizer={"schedule": "constant", "final_fraction": 0.0}), 60)
    assert "final_fraction is not used, because schedule constant" in note
    assert not schedule_notes(stage(epochs=2.0, optimizer={"warmup_steps": 100}), 100)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"tokens": 100, "optimizer": {"warmup_steps": 2}},
            r"optimizer\.warmup_steps: the stage's length is given in tokens; set optimizer\.warmup_tokens",
        ),
        (
            {"steps": 100, "optimizer": {"warmup_tokens": 2}},
            r"optimizer\.warmup_tokens: .* set optimizer\.warmup_steps, or the",
        ),
        (
            {"epochs": 1.0, "optimizer": {"schedule": "wsd", "decay_tokens": 2}},
            r"optimizer\.decay_tokens",
        ),
        ({"tokens": 100, "steps": 2}, "exactly one of steps, epochs and tokens"),
        ({"steps": 2, "optimizer": {"schedule": "inverse_sqrt"}}, "inverse_sqrt needs a warm-up"),
        ({"steps": 2, "optimizer": {"decay_shape": "1-sqrt"}}, "decay_shape belongs to schedule wsd"),
        ({"steps": 2, "optimizer": {"schedule": "constant", "decay_steps": 1}}, "decay_steps belongs to schedule wsd"),
    ],
)
def test_a_schedule_counts_in_the_unit_of_its_stage(keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stage(**keys)
