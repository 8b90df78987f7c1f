"""Estimates the parameters, tokens, FLOPs, memory and time of a run before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

from solo.config import Config
from solo.machines import parse_machine
from solo.model.count import count_parameters
from solo.model.flops import BatchStats, step_flops
from solo.model.parameters import ModelDefinition
from solo.planning.memory import hand_count
from solo.scaling.sweep.batch_statistics import StageStatistics
from solo.scaling.sweep.spec import MachineSpec
from solo.training.groups import trainable_paths


@dataclass(frozen=True)
class Estimate:
    """Estimates of one run.

    n_active        parameters that a token passes through, averaged over the tokens of both modalities; see `active`
    text, visual    tokens
    flops           FLOPs of the whole run
    paid_flops      FLOPs that this run has to compute; a branch computes only its decay
    memory          bytes per device, summed from shapes; `solo plan --on` compiles the step instead
    """

    n_active: int
    n_total: int
    text: int
    visual: int
    targets: int
    unique_tokens: float
    flops: int
    paid_flops: int
    memory: int

    @property
    def tokens(self) -> int:
        """Tokens of both modalities."""
        return self.text + self.visual


def estimate(
    config: Config, definition: ModelDefinition, statistics: StageStatistics, devices: int, branch_step: int = 0
) -> Estimate:
    """Returns the estimates of a config with one stage.

    Args:
        config: the run.
        definition: its model.
        statistics: its batches.
        devices: number of devices that it is sharded over.
        branch_step: first step that is not part of its stable run.
    """
    stage = config.stages[0]
    assert stage.steps is not None
    stats = statistics.over(stage.steps)
    flops = run_flops(config, definition, stats)
    before = run_flops(config, definition, statistics.over(branch_step)) if branch_step else 0
    return Estimate(
        n_active=active(definition, stats),
        n_total=sum(component.total for component in count_parameters(definition)),
        text=stats.text,
        visual=stats.patches,
        targets=stats.targets,
        unique_tokens=statistics.unique_tokens(stage.steps),
        flops=flops,
        paid_flops=flops - before,
        memory=hand_count(config, stage, definition, statistics.shape, devices).total,
    )


def run_flops(config: Config, definition: ModelDefinition, stats: BatchStats) -> int:
    """Returns the FLOPs of a run with these totals, including attention and the head."""
    trained = frozenset(trainable_paths(definition.specs, config.stages[0]))
    return sum(step_flops(definition, stats, trained).values())


def active(definition: ModelDefinition, stats: BatchStats) -> int:
    """Returns the number of parameters that a token passes through, averaged over the tokens of both modalities.

    The head counts for text tokens, and the patch embedding for patches. An embedding table that is only looked up
    does not count.
    """
    components = count_parameters(definition)
    if not definition.config.tied_head:
        components = [component for component in components if component.name != "text_embed"]
    text, patches = (sum(getattr(each, name) for each in components) for name in ("of_text", "of_patches"))
    return round((text * stats.text + patches * stats.patches) / (stats.text + stats.patches))


@dataclass(frozen=True)
class Speed:
    """The speed of runs.

    measured   (active parameters, FLOPs per second) of finished runs
    rate       FLOPs per second if no run has finished; None if unknown
    source     where the figures come from, in words
    """

    measured: tuple[tuple[float, float], ...]
    rate: float | None
    source: str

    def seconds(self, found: Estimate, spec: MachineSpec) -> float | None:
        """Returns the time of a run, at the rate of the finished run nearest in size."""
        rate = self.rate
        if self.measured:
            rate = min(self.measured, key=lambda pair: abs(log(pair[0] / found.n_active)))[1]
        return None if rate is None else spec.startup_seconds + found.paid_flops / rate


def speed(spec: MachineSpec, finished: Sequence[tuple[float, float]] = ()) -> Speed:
    """Returns the speed of finished runs, else the configured speed, else the machine's peak times the assumed MFU."""
    if finished:
        return Speed(tuple(finished), None, f"measured in {len(finished)} finished runs")
    if spec.flops_per_second is not None:
        return Speed((), spec.flops_per_second, f"{spec.flops_per_second:.3g} FLOPs/s, as given")
    found = parse_machine(spec.name)
    if found.chip.peak_flops is None:
        return Speed((), None, f"unknown for {spec.name}: set machine.flops_per_second")
    peak = found.chip.peak_flops * found.chips
    return Speed((), peak * spec.mfu, f"{found.name} at an assumed {spec.mfu:.0%} of its peak")
