"""The best setting of a run for a machine: mesh shape, rows on a device, rematerialisation, attention kernel.

All combinations are counted by hand first, which takes a second; those whose state and saved activations cannot fit
are dropped. The rest are compiled, the most promising first, until a number of them is reached. Estimated tokens per
second decide; what has no estimate (GPU, CPU) is ordered by what it recomputes and sends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, get_args

from solo.config import Config, ConfigError, ModelConfig, StageConfig
from solo.data.planning.row_shape import RowShape
from solo.model.parameters import ModelDefinition, define
from solo.planning.forecast import Forecast, forecast
from solo.planning.memory import HandCount, hand_count, memory_limit
from solo.planning.rows import Rows, stage_rows
from solo.planning.work import StepWork, step_work
from solo.sharding.axes import mesh_sizes
from solo.sharding.hardware import Chip, Machine
from solo.sharding.mesh import TABLE

ROWS = (1, 2, 4, 8)
SPLITS = (1, 2, 4, 8)
# dense is for tests: it holds a square of a row's slots; auto is one of the others.
_NEVER = ("auto", "dense")


@dataclass(frozen=True)
class Candidate:
    """A setting, counted by hand.

    config     with it
    stage      of that config
    overrides  that make it so
    count      memory
    promise    what it is tried by first: FLOPs that are computed, over tokens, with a charge for what is sent
    """

    config: Config
    stage: StageConfig
    overrides: tuple[str, ...]
    count: HandCount
    promise: float


@dataclass(frozen=True)
class Found:
    """What a search ended with: the best forecast and its overrides, and everything that was compiled."""

    best: Forecast
    overrides: tuple[str, ...]
    compiled: tuple[tuple[tuple[str, ...], Forecast], ...]
    pruned: int
    left: int


def candidates(
    config: Config, stage: StageConfig, machine: Machine, document_slots: int | None = None
) -> tuple[list[Candidate], int]:
    """Those that may fit, the most promising first, and how many were dropped because they cannot.

    Raises:
        ConfigError: the config goes with the machine in no way.
    """
    rows = stage_rows(config, stage, document_slots)
    limit, number = memory_limit(machine), config.stages.index(stage)
    # Its parameters are the same in every setting.
    definition = define(config, rows.vocab_size or config.model.vocab_size or config.data.tokenizer.vocab_size)
    row = _work_of_a_row(definition, rows, machine.chip)
    kept, dropped = [], 0
    for changed, overrides in _settings(config, stage, number, machine):
        its_stage = changed.stages[number]
        try:
            count = hand_count(changed, its_stage, definition, rows.shape, machine.devices)
        except ConfigError:
            continue
        if limit is not None and count.least > limit:
            dropped += 1
            continue
        seconds = _seconds(changed, its_stage, definition, rows.shape, row(changed, its_stage), machine)
        # What seems too large by hand may fit; what seems to fit is tried first.
        tight = 1.0 if limit is None else max(1.0, count.total / limit)
        kept.append(Candidate(changed, its_stage, overrides, count, tight * seconds))
    if not kept:
        raise ConfigError(
            f"stage {stage.name!r}: of {dropped} settings none fits {machine.name} by hand count: take a larger machine"
        )
    return sorted(kept, key=lambda each: each.promise), dropped


def search(
    config: Config,
    stage: StageConfig,
    machine: Machine,
    most: int = 6,
    report: Callable[[str], None] = lambda line: None,
    plan: Callable[..., Forecast] = forecast,
    document_slots: int | None = None,
) -> Found:
    """Compile the most promising settings and take the best.

    Args:
        config: the run.
        stage: of it.
        machine: all slices.
        most: so many are compiled.
        report: is told how it goes.
        plan: compiles one.
        document_slots: see `forecast`.

    Raises:
        ConfigError: none fits.
    """
    kept, dropped = candidates(config, stage, machine, document_slots)
    compiled: list[tuple[tuple[str, ...], Forecast]] = []
    for number, each in enumerate(kept[:most]):
        report(f"{number + 1} of {min(most, len(kept))}: {' '.join(each.overrides)}")
        compiled.append((each.overrides, plan(each.config, each.stage, machine, document_slots=document_slots)))
    fitting = [(overrides, found) for overrides, found in compiled if found.fits]
    if not fitting:
        raise ConfigError(f"none of the {len(compiled)} settings compiled fits {machine.name}; try more with --tries")
    overrides, best = max(fitting, key=lambda pair: pair[1].tokens_per_second or 0.0)
    return Found(best, overrides, tuple(compiled), dropped, len(kept) - len(compiled))


def _settings(
    config: Config, stage: StageConfig, number: int, machine: Machine
) -> Iterator[tuple[Config, tuple[str, ...]]]:
    kernels = [kind for kind in _choices("attention_implementation") if kind not in _NEVER and _goes(kind, machine)]
    for context in SPLITS:
        for tensor in SPLITS:
            mesh = config.mesh.model_copy(update={"data": 1, "fsdp": -1, "context": context, "tensor": tensor})
            try:
                sizes = mesh_sizes(mesh, machine.devices)
            except ConfigError:
                continue
            for rows in ROWS:
                batch = rows * prod(sizes[axis] for axis in TABLE["rows"])
                # How fast a host's memory is reached is in no table, so that offloading has no estimate.
                for remat in (policy for policy in _choices("remat") if not policy.startswith("offload")):
                    for kernel in kernels:
                        yield _with(config, number, mesh, batch, remat, kernel)


def _with(
    config: Config, number: int, mesh: Any, batch: int, remat: str, kernel: str
) -> tuple[Config, tuple[str, ...]]:
    stages = list(config.stages)
    stages[number] = stages[number].model_copy(update={"batch_rows": batch, "accumulate": 1})
    model = config.model.model_copy(update={"remat": remat, "attention_implementation": kernel})
    overrides = (
        f"mesh.replica={mesh.replica}",
        "mesh.data=1",
        "mesh.fsdp=-1",
        f"mesh.context={mesh.context}",
        f"mesh.tensor={mesh.tensor}",
        f"stages.{number}.batch_rows={batch}",
        f"stages.{number}.accumulate=1",
        f"model.remat={remat}",
        f"model.attention_implementation={kernel}",
    )
    return config.model_copy(update={"mesh": mesh, "model": model, "stages": tuple(stages)}), overrides


def _choices(field: str) -> tuple[str, ...]:
    """Values that the schema allows, so that new ones are tried without a word here."""
    return get_args(ModelConfig.model_fields[field].annotation)


def _goes(kernel: str, machine: Machine) -> bool:
    """Whether a kernel is one of the machine's: on CPUs those of Pallas are only interpreted."""
    return kernel == "blocks" or machine.chip.name != "cpu"


def _work_of_a_row(definition: ModelDefinition, rows: Rows, chip: Chip) -> Callable[[Config, StageConfig], StepWork]:
    """FLOPs of one row under a config, counted once for all that have the same."""
    counted: dict[tuple[str, str], StepWork] = {}

    def of(config: Config, stage: StageConfig) -> StepWork:
        key = (config.model.remat, config.model.attention_implementation)
        if key not in counted:
            counted[key] = step_work(config, stage.model_copy(update={"batch_rows": 1}), definition, rows, chip)
        return counted[key]

    return of


def _seconds(
    config: Config, stage: StageConfig, definition: ModelDefinition, shape: RowShape, row: StepWork, machine: Machine
) -> float:
    """Seconds per token in the roughest model: peak FLOPs, every link at full speed. Only their order matters."""
    sizes, model = mesh_sizes(config.mesh, machine.devices), config.model
    peak = (machine.chip.peak_flops or 1e12) / machine.chip.devices
    link = (machine.chip.link_bandwidth or 1e10) * max(1, machine.chip.links // 2)
    item = 2 if model.compute_dtype == "bfloat16" else 4
    rows = stage.batch_rows / machine.devices
    # Weights are fetched twice and their gradients summed, on every device. Activations are summed over the tensor
    # axis four times a layer, forwards and backwards; keys and values are gathered along the context axis.
    weights = 4 * item * definition.num_parameters() / sizes["tensor"]
    slots = rows * shape.slots * sizes["tensor"] * model.layers * item
    activations = 8 * slots * model.width * (sizes["tensor"] > 1)
    keys = 6 * slots * sizes["context"] * model.kv_heads * model.dim_per_head / sizes["tensor"] * (sizes["context"] > 1)
    # Blocks pass through memory what kernels keep on the chip.
    slow = 1.5 if model.attention_implementation == "blocks" and machine.chip.is_tpu else 1.0
    computing = slow * sum(row.computed.values()) * rows / peak
    return (computing + (weights + activations + keys) / link) / (row.tokens * rows)
