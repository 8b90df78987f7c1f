"""What a run comes to before it is started: parameters, tokens, FLOPs, memory, time, cost."""

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
from solo.scaling.sweep.batch_statistics import Flow
from solo.scaling.sweep.spec import MachineSpec
from solo.training.optimizer import trainable_paths


@dataclass(frozen=True)
class Estimate:
    """Of one run.

    n_active        parameters that a token passes through, mean over the tokens of both modalities; see `active`
    text, visual    tokens
    flops           of the whole run, as its result will have it
    paid_flops      of these, what is computed for it: a branch only pays its decay
    memory          bytes on each device, counted by hand; `solo plan --on` compiles instead
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
        """Of both modalities."""
        return self.text + self.visual


def estimate(config: Config, definition: ModelDefinition, flow: Flow, devices: int, branch_step: int = 0) -> Estimate:
    """What a config with one stage comes to.

    Args:
        config: the run.
        definition: its model.
        flow: its data.
        devices: it is sharded over.
        branch_step: steps that its trunk has paid for.
    """
    stage = config.stages[0]
    assert stage.steps is not None
    work = flow.work(stage.steps)
    flops = run_flops(config, definition, work)
    before = run_flops(config, definition, flow.work(branch_step)) if branch_step else 0
    return Estimate(
        n_active=active(definition, work),
        n_total=sum(component.total for component in count_parameters(definition)),
        text=work.text,
        visual=work.patches,
        targets=work.targets,
        unique_tokens=flow.unique_tokens(stage.steps),
        flops=flops,
        paid_flops=flops - before,
        memory=hand_count(config, stage, definition, flow.shape, devices).total,
    )


def run_flops(config: Config, definition: ModelDefinition, work: BatchStats) -> int:
    """FLOPs of the work of a whole run: the model's own count, attention and head included."""
    trained = frozenset(trainable_paths(definition.specs, config.stages[0]))
    return sum(step_flops(definition, work, trained).values())


def active(definition: ModelDefinition, work: BatchStats) -> int:
    """Parameters that a token passes through, mean over the tokens of both modalities.

    The head counts for text, the patch embedder for patches; a table that is only looked up in does not count.
    """
    components = count_parameters(definition)
    if not definition.config.tied_head:
        components = [component for component in components if component.name != "text_embed"]
    text, patches = (sum(getattr(each, name) for each in components) for name in ("of_text", "of_patches"))
    return round((text * work.text + patches * work.patches) / (work.text + work.patches))


@dataclass(frozen=True)
class Speed:
    """How fast runs are.

    measured   (active parameters, FLOPs per second) of finished runs
    rate       FLOPs per second of others; None: not known
    source     where the figures come from, in words
    """

    measured: tuple[tuple[float, float], ...]
    rate: float | None
    source: str

    def seconds(self, found: Estimate, spec: MachineSpec) -> float | None:
        """Of one run; the rate is that of the finished run nearest in size."""
        rate = self.rate
        if self.measured:
            rate = min(self.measured, key=lambda pair: abs(log(pair[0] / found.n_active)))[1]
        return None if rate is None else spec.startup_seconds + found.paid_flops / rate


def speed(spec: MachineSpec, finished: Sequence[tuple[float, float]] = ()) -> Speed:
    """By finished runs, else as given, else the peak of the machine times the assumed MFU."""
    if finished:
        return Speed(tuple(finished), None, f"measured in {len(finished)} finished runs")
    if spec.flops_per_second is not None:
        return Speed((), spec.flops_per_second, f"{spec.flops_per_second:.3g} FLOPs/s, as given")
    found = parse_machine(spec.name)
    if found.chip.peak_flops is None:
        return Speed((), None, f"not known of {spec.name}: give machine.flops_per_second")
    peak = found.chip.peak_flops * found.chips
    return Speed((), peak * spec.mfu, f"{found.name} at an assumed {spec.mfu:.0%} of its peak")
