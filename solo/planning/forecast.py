"""Forecasts a run on a machine: memory, FLOPs, collectives, time and cost, as data and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from solo.config import Config, ConfigError, StageConfig
from solo.machines import Machine
from solo.model.parameters import ModelDefinition, define
from solo.planning.collectives import Collective, find_collectives
from solo.planning.estimate import StepTime, step_time
from solo.planning.flops import StepFlops, planned_flops
from solo.planning.gpu_time import gpu_step_time
from solo.planning.hlo import parse_module
from solo.planning.memory import HandCount, hand_count, memory_limit
from solo.planning.program import QUICK, OutOfMemoryError, Program, compile_step
from solo.planning.replication import check_replication
from solo.planning.rows import Rows, stage_rows
from solo.sharding.axes import mesh_sizes

if TYPE_CHECKING:
    from solo.planning.evaluation import EvaluatorForecast

SECONDS_PER_HOUR = 3600
BASIS = {
    "memory.parameters, optimizer, batch": "exact: counted from shapes and shardings, as the compiler's arguments are",
    "memory.arguments, temporaries, outputs, code": "exact: allocated by the compiler",
    "memory.by_hand": "a model, except parameters, optimizer and batch; up to 40% too high where it was compared",
    "flops": "exact for the assumed documents; recomputation follows from model.remat, not from the program",
    "collectives.bytes": "exact: those of the program",
    "collectives.seconds": "a model: rings over the links that a group of devices spans",
    "step": "a model. TPU: libtpu's own cycle counts; 10 to 31% slower than published steps on v5e. GPU: every kernel's"
    " FLOPs and bytes; within 5% of the five steps on one H200 that it was fitted to, never compared with several GPUs",
    "evaluation": "exact: allocated by the compiler, beside the counted state of training",
    "recipe": "a model: step time times steps, without start-up, evaluation, checkpoints and restarts",
}


@dataclass(frozen=True)
class Forecast:
    """One stage's step on a machine.

    config, stage, definition, rows, machine  what was forecast
    by_hand      memory estimated from shapes
    flops        FLOPs of a step over all devices
    program      the compiled step; None if the compiler could not fit it into memory
    refusal      the compiler's error in that case
    collectives  collectives of a step, the largest first
    time         time of a step; None if there is no estimate
    no_time      the reason why `time` is missing
    options      compiler options beyond those of the config
    replicated   a line for every dimension that the mesh replicates because it does not divide it
    """

    config: Config
    stage: StageConfig
    definition: ModelDefinition
    rows: Rows
    machine: Machine
    by_hand: HandCount
    flops: StepFlops
    program: Program | None
    refusal: OutOfMemoryError | None
    collectives: tuple[Collective, ...]
    time: StepTime | None
    no_time: str
    options: Mapping[str, Any] = field(default_factory=dict)
    replicated: tuple[str, ...] = ()

    @property
    def limit(self) -> int | None:
        """Bytes of a device's memory that a program may use."""
        found = self.refusal.available if self.refusal else None
        return found or memory_limit(self.machine)

    @property
    def needed(self) -> int:
        """Bytes of a device's memory that the step needs."""
        if self.program:
            return self.program.total
        assert self.refusal is not None
        return self.by_hand.arguments + (self.refusal.temporaries or self.by_hand.temporaries)

    @property
    def fits(self) -> bool:
        """Whether the step fits in memory. True if the limit is unknown."""
        return self.program is not None and (self.limit is None or self.needed <= self.limit)

    @property
    def mfu(self) -> float | None:
        """Useful FLOP/s divided by the peak FLOP/s of all chips."""
        peak = self.machine.chip.peak_flops
        if self.time is None or peak is None:
            return None
        return sum(self.flops.useful.values()) / self.time.total / (peak * self.machine.all_chips)

    @property
    def tokens_per_second(self) -> float | None:
        """Patches and text tokens, over all devices."""
        return self.flops.tokens / self.time.total if self.time else None

    @property
    def hours(self) -> float | None:
        """Hours of the stage."""
        return self.time.total * self.rows.num_steps / SECONDS_PER_HOUR if self.time else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        shape, program, flops = self.rows.shape, self.program, self.flops
        memory: dict[str, Any] = {
            "limit": self.limit,
            "needed": self.needed,
            "fits": self.fits,
            "parameters": self.by_hand.parameters,
            "optimizer": self.by_hand.optimizer,
            "averages": self.by_hand.averages,
            "batch": self.by_hand.batch,
            "by_hand": self.by_hand.as_dict(),
        }
        memory |= {part: getattr(program, part, None) for part in ("arguments", "temporaries", "outputs", "code")}
        return {
            "stage": self.stage.name,
            "mesh": mesh_sizes(self.config.mesh, self.machine.devices),
            "settings": settings(self.config, self.stage),
            "rows": {
                "patch_slots": shape.patch_slots,
                "text_slots": shape.text_slots,
                "target_slots": shape.target_slots,
                "source": self.rows.source,
                "measured": self.rows.measured,
            },
            "replicated": self.replicated,
            "memory": memory,
            "flops": {
                "useful": flops.useful,
                "computed": flops.computed,
                "useful_share": flops.useful_share,
                "kernel_share_of_peak": self.machine.chip.attention_share,
            },
            "collectives": [asdict(each) for each in self.collectives],
            "step": None if self.time is None else {**asdict(self.time), "seconds": self.time.total},
            "no_step": self.no_time or None,
            "mfu": self.mfu,
            "tokens_per_second": self.tokens_per_second,
            "steps": self.rows.num_steps,
            "hours": self.hours,
            "compiler_options": {**self.config.compiler_options, **self.options},
            "compiled_in_seconds": program and program.seconds,
        }


def settings(config: Config, stage: StageConfig) -> dict[str, Any]:
    """Returns the settings that a search changes, and others that matter most."""
    model = config.model
    return {
        "batch_rows": stage.batch_rows,
        "accumulate": stage.accumulate,
        "remat": model.remat,
        "attention_implementation": model.attention_implementation,
        "attention_block": model.attention_block,
        "compute_dtype": model.compute_dtype,
        "loss_chunk_size": stage.loss.chunk_size,
    }


def forecast(
    config: Config,
    stage: StageConfig,
    machine: Machine,
    options: Mapping[str, Any] | None = None,
    document_slots: int | None = None,
) -> Forecast:
    """Compile a stage's step for a machine and derive its forecast from the program.

    Args:
        config: the run, with its mesh over all slices.
        stage: one of its stages.
        machine: all slices.
        options: further compiler options.
        document_slots: slots of the assumed documents; None: those of the data, or one document per row.

    Raises:
        ConfigError: the config does not fit the machine, or there is no compiler for it.
    """
    rows = stage_rows(config, stage, document_slots)
    definition = define(config, rows.vocab_size or config.model.vocab_size or config.data.tokenizer.vocab_size)
    replicated = check_replication(config, definition, machine.devices, memory_limit(machine))
    by_hand = hand_count(config, stage, definition, rows.shape, machine.devices)
    flops = planned_flops(config, stage, definition, rows, machine.chip, machine.devices)
    found = (config, stage, definition, rows, machine, by_hand, flops)
    try:
        program = compile_step(config, stage, definition, rows.shape, rows.num_steps, machine, options)
    except OutOfMemoryError as error:
        return Forecast(
            *found, None, error, (), None, "the step does not fit into memory", dict(options or {}), tuple(replicated)
        )
    module = parse_module(program.text)
    collectives = find_collectives(module, program.mesh, machine, program.devices)
    if (options or {}).items() >= QUICK.items():
        time: StepTime | str = "a program compiled with --quick is slower than the real one"
    else:
        estimate_time = gpu_step_time if machine.chip.platform == "cuda" else step_time
        time = estimate_time(module, collectives, flops, machine)
    estimate, reason = (None, time) if isinstance(time, str) else (time, "")
    return Forecast(*found, program, None, tuple(collectives), estimate, reason, dict(options or {}), tuple(replicated))


def forecast_recipe(
    config: Config,
    machine: Machine,
    stage: str | None = None,
    report: Callable[[str], None] = lambda line: None,
    earlier: Sequence[Forecast] = (),
    document_slots: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[Forecast]:
    """Forecast all stages, or the named one. Stages that differ only in their mixture are compiled once.

    Args:
        config: the run.
        machine: all slices.
        stage: a stage's name.
        report: is called with the progress.
        earlier: existing forecasts of the same config.
        document_slots: see `forecast`.
        options: see `forecast`.

    Raises:
        ConfigError: there is no such stage; see also `forecast`.
    """
    found: list[Forecast] = []
    for each in chosen_stages(config, stage):
        report(f"compiling stage {each.name} for {machine.name}")
        found.append(_again([*earlier, *found], each) or forecast(config, each, machine, options, document_slots))
    return found


def chosen_stages(config: Config, name: str | None) -> list[StageConfig]:
    """Returns all stages, or the named one. Raises ConfigError if there is none."""
    found = [stage for stage in config.stages if name in (None, stage.name)]
    if not found:
        known = ", ".join(stage.name for stage in config.stages) or "none: it describes a model but no run"
        raise ConfigError(f"{config.name!r} has no stage {name or ''!r}; it has {known}")
    return found


def _again(earlier: Sequence[Forecast], stage: StageConfig) -> Forecast | None:
    """Returns an earlier forecast for this stage, if they differ only in name, mixture and number of steps."""
    neutral = {"name": "", "mixture": {"": 1.0}, "steps": 1, "optimizer_state": "reset"}
    neutral |= {"mixture_schedule": {}, "mixture_changes": {}, "max_epochs": None, "mixture_learning": None}
    for each in earlier:
        same = stage.model_copy(update=neutral) == each.stage.model_copy(update=neutral)
        if stage == each.stage or (same and not each.rows.measured):
            rows = replace(each.rows, num_steps=stage.steps or each.rows.num_steps)
            return replace(each, stage=stage, rows=rows)
    return None


def as_json(
    config: Config,
    machine: Machine,
    found: list[Forecast],
    usd_per_chip_hour: float | None,
    evaluation: Sequence[EvaluatorForecast] = (),
) -> dict[str, Any]:
    """Returns the whole recipe: every stage, evaluators, total hours and cost, and how reliable each figure is."""
    hours = recipe_hours(found)
    rate = machine.usd_per_hour(usd_per_chip_hour)
    price = machine.chip.price
    return {
        "config": config.name,
        "machine": {
            "name": machine.name,
            "slices": machine.slices,
            "chips": machine.all_chips,
            "devices": machine.devices,
            "topology": machine.topology,
            "clock": machine.chip.clock,
            "unknown": machine.chip.unknown,
            "assumed": dict(machine.chip.assumed),
        },
        "stages": [each.as_dict() for each in found],
        "evaluation": [each.as_dict() for each in evaluation],
        "recipe": {
            "fits": all(each.fits for each in found) and all(each.fits for each in evaluation),
            "hours": hours,
            "usd": None if hours is None or rate is None else hours * rate,
            "usd_per_hour": rate,
            "price": "given" if usd_per_chip_hour is not None else price and f"{price.as_of}, {price.source}",
        },
        "basis": BASIS,
    }


def recipe_hours(found: list[Forecast]) -> float | None:
    """Returns the hours of all stages, or None if one has no estimate."""
    hours = [each.hours for each in found]
    return None if None in hours else sum(hour for hour in hours if hour is not None)
