"""A search for compiler options: which trials are compiled, which are kept, and what happens to refused ones."""

import dataclasses
from types import SimpleNamespace

import pytest
from jax.errors import JaxRuntimeError

from solo.chips import CHIPS, Option, Trial
from solo.config import ConfigError, load_config
from solo.machines import parse_machine
from solo.planning.option_search import as_overrides, search_options

PLAN = "configs/plans/solo_7b_8k.yaml"
IN_USE = Option("xla_a", 2, "the chip's entry has it, so it is not tried")


def machine(*trials: Trial):
    v5e = parse_machine("v5e-64")
    return dataclasses.replace(v5e, chip=dataclasses.replace(v5e.chip, compiler_options=(IN_USE,), trials=trials))


def trial(**options) -> Trial:
    return Trial(options, "a test")


class Compiler:
    """Gives a step the seconds of its options, and notes what it compiled."""

    def __init__(self, **seconds: float):
        self.seconds, self.compiled = seconds, []

    def __call__(self, config, stage, where, document_slots=None):
        options = dict(config.compiler_options)
        self.compiled.append(options)
        if "xla_refused" in options:
            raise ConfigError("compiler_options.xla_refused: the compiler for TPU v5e refuses it: unknown;\ncorrect it")
        if "xla_fails" in options:
            raise JaxRuntimeError("INTERNAL: cannot lower")
        total = 10.0
        for name, value in options.items():
            total -= self.seconds.get(f"{name}_{value}", 0.0)
        return SimpleNamespace(
            config=config, stage=stage, fits="xla_large" not in options, time=SimpleNamespace(total=total), no_time=""
        )


def searched(compiler: Compiler, *trials: Trial, **arguments):
    config = load_config(PLAN)
    return search_options(config, config.stages[0], machine(*trials), plan=compiler, **arguments)


def test_faster_options_are_kept_and_added_to_those_before() -> None:
    compiler = Compiler(xla_size_1=1.0, xla_size_2=3.0, xla_size_3=2.0, xla_b_True=1.0, xla_large_True=5.0)
    trials = [trial(xla_size=size) for size in (1, 2, 3)]
    saved: list[tuple[str, ...]] = []
    last = trial(xla_large=True), trial(xla_b=True, xla_c=None), trial(xla_a=2)
    found = searched(compiler, *trials, *last, keep=saved.append)
    assert compiler.compiled == [
        {},
        {"xla_size": 1},
        {"xla_size": 2},
        {"xla_size": 3},
        {"xla_size": 2, "xla_large": True},
        {"xla_size": 2, "xla_b": True, "xla_c": None},
    ]
    assert [each.kept for each in found.tried] == [True, True, False, False, True]
    assert saved[:3] == [(), ("compiler_options.xla_size=1",), ("compiler_options.xla_size=2",)]
    assert saved[3:] == [found.overrides]
    assert found.first.time.total == 10.0
    assert found.best.time.total == 6.0
    assert found.best.config.compiler_options == {"xla_size": 2, "xla_b": True, "xla_c": None}


def test_the_overrides_give_the_best_config() -> None:
    found = searched(Compiler(xla_b_True=1.0), trial(xla_b=True, xla_c=None, xla_mode="NATIVE"))
    assert found.overrides == (
        "compiler_options.xla_b=true",
        "compiler_options.xla_c=null",
        "compiler_options.xla_mode=NATIVE",
    )
    assert load_config(PLAN, found.overrides) == found.best.config


def test_refused_options_are_named_and_the_search_goes_on() -> None:
    compiler, lines = Compiler(xla_b_True=1.0), []
    trials = trial(xla_refused=True), trial(xla_fails=1), trial(xla_b=True)
    found = searched(compiler, *trials, report=lines.append)
    refused = [(each.words, each.refusal) for each in found.tried if each.found is None]
    assert refused == [
        (
            "compiler_options.xla_refused=true",
            "compiler_options.xla_refused: the compiler for TPU v5e refuses it: unknown;",
        ),
        ("compiler_options.xla_fails=1", "INTERNAL: cannot lower"),
    ]
    assert found.overrides == ("compiler_options.xla_b=true",)
    assert lines[-1] == "3 of 3: compiler_options.xla_b=true"


def test_a_known_forecast_is_not_compiled_again_and_a_small_gain_is_no_gain() -> None:
    first = SimpleNamespace(fits=True, time=SimpleNamespace(total=10.0), no_time="")
    compiler = Compiler(xla_b_True=0.01)
    found = searched(compiler, trial(xla_b=True), first=first)
    assert compiler.compiled == [{"xla_b": True}]
    assert found.best is first
    assert found.overrides == ()


def test_a_chip_without_trials_or_estimates_is_refused_and_nothing_is_written() -> None:
    saved: list[tuple[str, ...]] = []
    with pytest.raises(ConfigError, match="no compiler options to try for v5e"):
        searched(Compiler(), keep=saved.append)
    untimed = SimpleNamespace(fits=True, time=None, no_time="no clock")
    with pytest.raises(ConfigError, match="there is no estimate: no clock"):
        searched(Compiler(), trial(xla_b=True), first=untimed, keep=saved.append)
    assert saved == []


def test_every_trial_names_its_source_and_changes_something() -> None:
    for chip in CHIPS.values():
        used = {option.name: option.value for option in chip.compiler_options}
        for each in chip.trials:
            assert len(each.source) > 20
            assert any(used.get(name) != value for name, value in each.options.items()), (chip.name, each.options)
        words = [as_overrides(each.options) for each in chip.trials]
        assert len(set(words)) == len(words)
