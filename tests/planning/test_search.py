"""A search: which settings are dropped, which are compiled first, and which wins."""

import dataclasses
from types import SimpleNamespace

import pytest

from solo.config import ConfigError, load_config
from solo.machines import parse_machine
from solo.planning.memory import memory_limit
from solo.planning.search import candidates, search

V5E = parse_machine("v5e-64")


@pytest.fixture(scope="module")
def solo_7b():
    return load_config("configs/plans/solo_7b_8k.yaml")


@pytest.fixture(scope="module")
def kept_and_dropped(solo_7b):
    return candidates(solo_7b, solo_7b.stages[0], V5E)


def test_settings_that_cannot_fit_are_dropped(kept_and_dropped) -> None:
    kept, dropped = kept_and_dropped
    assert dropped > 0
    assert all(each.count.least <= memory_limit(V5E) for each in kept)
    assert len({each.overrides for each in kept}) == len(kept)
    # One row on a device without recomputation: 32 layers of 8,192 slots' FFNs alone are 16 GiB.
    whole = [each for each in kept if each.config.mesh.tensor == each.config.mesh.context == 1]
    assert whole
    assert not any("model.remat=none" in each.overrides for each in whole)


def test_overrides_give_the_counted_config(kept_and_dropped, solo_7b) -> None:
    for each in kept_and_dropped[0][:3]:
        assert load_config("configs/plans/solo_7b_8k.yaml", each.overrides) == each.config


def test_settings_that_recompute_and_send_less_come_first(kept_and_dropped) -> None:
    kept, _ = kept_and_dropped
    first = kept[0]
    assert first.cost == min(each.cost for each in kept)
    # Tensor parallelism on one row only adds what is sent.
    assert first.config.mesh.tensor < 8


def test_the_fastest_setting_that_fits_wins(solo_7b) -> None:
    speeds = iter([10.0, 30.0, 20.0])

    def plan(config, stage, where, **options):
        speed = next(speeds)
        return SimpleNamespace(config=config, stage=stage, fits=speed != 30.0, tokens_per_second=speed)

    lines = []
    found = search(solo_7b, solo_7b.stages[0], V5E, 3, lines.append, plan)
    assert found.best.tokens_per_second == 20.0
    assert found.overrides == found.compiled[2][0]
    assert [line[:6] for line in lines] == ["1 of 3", "2 of 3", "3 of 3"]


def test_a_model_that_fits_nowhere_is_refused(solo_7b) -> None:
    tiny = dataclasses.replace(V5E, chip=dataclasses.replace(V5E.chip, usable_memory=2**28))
    with pytest.raises(ConfigError, match="use a larger machine"):
        candidates(solo_7b, solo_7b.stages[0], tiny)
