"""Searches for the compiler options that make a step fastest, among the trials that the chip's entry lists.

The search is greedy. Trials are compiled one after another. Each adds its options to those kept so far, and is kept if
the step fits in memory and its estimate is faster. So there is one compilation per trial, not one per combination.
Which options are kept may depend on the order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jax.errors import JaxRuntimeError

from solo.chips import OptionValue, Trial
from solo.config import Config, ConfigError, StageConfig
from solo.machines import Machine
from solo.planning.forecast import Forecast, forecast

# An option must save at least this share of the step.
LEAST_GAIN = 0.002


@dataclass(frozen=True)
class Tried:
    """One trial.

    found    forecast of the step with these options; None if the compiler refused them
    refusal  the reason for a refusal
    kept     whether the options were kept
    """

    trial: Trial
    found: Forecast | None
    refusal: str
    kept: bool

    @property
    def words(self) -> str:
        """The options as overrides."""
        return " ".join(as_overrides(self.trial.options))


@dataclass(frozen=True)
class OptionSearch:
    """The step without any trial, all trials, the best step, and the overrides that lead to it."""

    first: Forecast
    tried: tuple[Tried, ...]
    best: Forecast
    overrides: tuple[str, ...]


def search_options(
    config: Config,
    stage: StageConfig,
    machine: Machine,
    first: Forecast | None = None,
    report: Callable[[str], None] = lambda line: None,
    plan: Callable[..., Forecast] = forecast,
    document_slots: int | None = None,
    keep: Callable[[tuple[str, ...]], None] = lambda overrides: None,
) -> OptionSearch:
    """Compiles a stage's step with each trial of the chip, and keeps those that make it faster.

    Args:
        config: the run.
        stage: one of its stages.
        machine: all slices.
        first: an existing forecast of this config and stage; default: it is compiled.
        report: called with progress messages.
        plan: compiles one setting.
        document_slots: see `forecast`.
        keep: called with the best overrides so far, and first with none, once it is known that the search can start.
            Save them at once: for some values, libtpu aborts the process instead of refusing them.

    Raises:
        ConfigError: the chip's entry has no trials, the step time cannot be estimated, or the step does not fit.
    """
    trials = [each for each in machine.chip.trials if not _in_use(each, config, machine)]
    if not trials:
        raise ConfigError(f"solo/chips lists no compiler options to try for {machine.chip.name}")
    if first is None:
        report("without further options")
        first = plan(config, stage, machine, document_slots=document_slots)
    if first.time is None:
        raise ConfigError(f"options are compared by step time, and there is no estimate: {first.no_time}")
    best, tried = first, []
    kept: dict[str, OptionValue | None] = {}
    keep(())
    for number, trial in enumerate(trials):
        report(f"{number + 1} of {len(trials)}: {' '.join(as_overrides(trial.options))}")
        found, refusal = _compiled(_with(config, {**kept, **trial.options}), stage, machine, plan, document_slots)
        gained = found is not None and _faster(found, best)
        if found and gained:
            best, kept = found, {**kept, **trial.options}
            keep(as_overrides(kept))
        tried.append(Tried(trial, found, refusal, gained))
    return OptionSearch(first, tuple(tried), best, as_overrides(kept))


def as_overrides(options: Mapping[str, OptionValue | None]) -> tuple[str, ...]:
    """Returns the config overrides that set these compiler options."""
    return tuple(f"compiler_options.{name}={_text(value)}" for name, value in options.items())


def _text(value: OptionValue | None) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _in_use(trial: Trial, config: Config, machine: Machine) -> bool:
    """Returns whether the step already uses these options."""
    used = {option.name: option.value for option in machine.chip.compiler_options} | config.compiler_options
    return all(used.get(name) == value for name, value in trial.options.items())


def _with(config: Config, options: Mapping[str, OptionValue | None]) -> Config:
    return config.model_copy(update={"compiler_options": {**config.compiler_options, **options}})


def _compiled(
    config: Config, stage: StageConfig, machine: Machine, plan: Callable[..., Forecast], document_slots: int | None
) -> tuple[Forecast | None, str]:
    """Returns the forecast, or the compiler's reason for refusing the options.

    Some options cause internal errors of the compiler. These count as refusals, since the same config has compiled
    without the options.
    """
    try:
        return plan(config, stage, machine, document_slots=document_slots), ""
    except (ConfigError, JaxRuntimeError) as error:
        return None, str(error).splitlines()[0]


def _faster(found: Forecast, best: Forecast) -> bool:
    assert best.time is not None
    return found.fits and found.time is not None and found.time.total < (1 - LEAST_GAIN) * best.time.total
