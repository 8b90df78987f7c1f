"""Searches for the best setting of a run on a machine: mesh shape, rows per device, rematerialisation, attention, and
on GPUs whether the layers are a loop.

All combinations are first estimated from shapes, which takes about a second. Those whose state and saved activations
cannot fit are dropped. The most promising of the rest are compiled, up to a given number, and the one with the highest
estimated tokens per second is returned. Without time estimates (CPU), this is the setting that was ranked first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

from solo.config import Config, ConfigError, ModelConfig, StageConfig
from solo.data.planning.row_shape import RowShape
from solo.machines import Machine
from solo.model.parameters import ModelDefinition, define
from solo.planning.flops import StepFlops, planned_flops
from solo.planning.forecast import Forecast, forecast
from solo.planning.memory import HandCount, hand_count, memory_limit
from solo.planning.rows import Rows, stage_rows
from solo.planning.topology import slice_mesh
from solo.sharding.axes import mesh_sizes, row_shards

ROWS = (1, 2, 4, 8)
SPLITS = (1, 2, 4, 8)
# dense is for tests, since it materialises S x S; auto is one of the others.
_NEVER = ("auto", "dense")


@dataclass(frozen=True)
class Candidate:
    """A setting and its estimate.

    config     config with the setting
    stage      stage of that config
    overrides  overrides that give the setting
    count      its estimated memory
    cost       rough seconds per token; the cheapest are compiled first
    """

    config: Config
    stage: StageConfig
    overrides: tuple[str, ...]
    count: HandCount
    cost: float


@dataclass(frozen=True)
class SearchResult:
    """The best forecast and its overrides, all compiled settings, and how many were dropped or not compiled."""

    best: Forecast
    overrides: tuple[str, ...]
    compiled: tuple[tuple[tuple[str, ...], Forecast], ...]
    pruned: int
    left: int


def candidates(
    config: Config, stage: StageConfig, machine: Machine, document_slots: int | None = None
) -> tuple[list[Candidate], int]:
    """Returns the settings that may fit, the most promising first, and the number of those that cannot.

    Raises:
        ConfigError: no setting fits the machine.
    """
    rows = stage_rows(config, stage, document_slots)
    limit, number = memory_limit(machine), config.stages.index(stage)
    # The parameters are the same in every setting.
    definition = define(config, rows.vocab_size or config.model.vocab_size or config.data.tokenizer.vocab_size)
    row = _row_flops(definition, rows, machine)
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
        # Settings that are estimated to be too large may still fit, but are tried later.
        tight = 1.0 if limit is None else max(1.0, count.total / limit)
        kept.append(Candidate(changed, its_stage, overrides, count, tight * seconds))
    if not kept:
        raise ConfigError(
            f"stage {stage.name!r}: none of {dropped} settings is estimated to fit {machine.name}; use a larger machine"
        )
    return sorted(kept, key=lambda each: each.cost), dropped


def search(
    config: Config,
    stage: StageConfig,
    machine: Machine,
    most: int = 6,
    report: Callable[[str], None] = lambda line: None,
    plan: Callable[..., Forecast] = forecast,
    document_slots: int | None = None,
) -> SearchResult:
    """Compile the most promising settings and return the best.

    Args:
        config: the run.
        stage: one of its stages.
        machine: all slices.
        most: number of settings to compile.
        report: is called with the progress.
        plan: compiles one setting.
        document_slots: see `forecast`.

    Raises:
        ConfigError: no setting fits.
    """
    kept, dropped = candidates(config, stage, machine, document_slots)
    compiled: list[tuple[tuple[str, ...], Forecast]] = []
    for number, each in enumerate(kept[:most]):
        report(f"{number + 1} of {min(most, len(kept))}: {' '.join(each.overrides)}")
        compiled.append((each.overrides, plan(each.config, each.stage, machine, document_slots=document_slots)))
    fitting = [(overrides, found) for overrides, found in compiled if found.fits]
    if not fitting:
        raise ConfigError(f"none of the {len(compiled)} settings compiled fits {machine.name}; raise --tries")
    overrides, best = max(fitting, key=lambda pair: pair[1].tokens_per_second or 0.0)
    return SearchResult(best, overrides, tuple(compiled), dropped, len(kept) - len(compiled))


def _settings(
    config: Config, stage: StageConfig, number: int, machine: Machine
) -> Iterator[tuple[Config, tuple[str, ...]]]:
    kernels = [kind for kind in _choices("attention_implementation") if kind not in _NEVER and _goes(kind, machine)]
    for context in SPLITS:
        for tensor in SPLITS:
            mesh = config.mesh.model_copy(update={"data": 1, "fsdp": -1, "context": context, "tensor": tensor})
            try:
                mesh = slice_mesh(mesh, machine)
                sizes = mesh_sizes(mesh, machine.devices)
            except ConfigError:
                continue
            for rows in ROWS:
                batch = rows * row_shards(sizes)
                # Offloading has no estimate: the bandwidth to host memory is unknown.
                for remat in (policy for policy in _choices("remat") if not policy.startswith("offload")):
                    for kernel in kernels:
                        for loop in _loops(config, machine):
                            yield _with(config, number, mesh, batch, remat, kernel, loop)


def _with(
    config: Config, number: int, mesh: Any, batch: int, remat: str, kernel: str, loop: bool
) -> tuple[Config, tuple[str, ...]]:
    stages = list(config.stages)
    stages[number] = stages[number].model_copy(update={"batch_rows": batch, "accumulate": 1})
    changes = {"remat": remat, "attention_implementation": kernel, "scan_layers": loop}
    model = config.model.model_copy(update=changes)
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
        *([f"model.scan_layers={str(loop).lower()}"] if loop != config.model.scan_layers else []),
    )
    return config.model_copy(update={"mesh": mesh, "model": model, "stages": tuple(stages)}), overrides


def _choices(field: str) -> tuple[str, ...]:
    """Returns the values that the schema allows for a key of the model section."""
    return get_args(ModelConfig.model_fields[field].annotation)


def _goes(kernel: str, machine: Machine) -> bool:
    """Returns whether a kernel is worth trying on a machine. CPUs only interpret Pallas kernels."""
    return kernel == "blocks" or machine.chip.name != "cpu"


def _loops(config: Config, machine: Machine) -> tuple[bool, ...]:
    """Returns the values of `model.scan_layers` to try. Unrolled layers would take hours to compile for a TPU."""
    return (False, True) if machine.chip.platform == "cuda" else (config.model.scan_layers,)


def _row_flops(definition: ModelDefinition, rows: Rows, machine: Machine) -> Callable[[Config, StageConfig], StepFlops]:
    """Returns a function that counts the FLOPs of one row, once for all configs that have the same."""
    counted: dict[tuple[str, str], StepFlops] = {}

    def of(config: Config, stage: StageConfig) -> StepFlops:
        key = (config.model.remat, config.model.attention_implementation)
        if key not in counted:
            one = stage.model_copy(update={"batch_rows": 1})
            counted[key] = planned_flops(config, one, definition, rows, machine.chip, machine.devices)
        return counted[key]

    return of


def _seconds(
    config: Config, stage: StageConfig, definition: ModelDefinition, shape: RowShape, row: StepFlops, machine: Machine
) -> float:
    """Returns rough seconds per token, at peak FLOPs and full link speed.

    Only their order matters: a chip of unknown speed is ranked like one of 1 TFLOP/s with links of 10 GB/s.
    """
    sizes, model = mesh_sizes(config.mesh, machine.devices), config.model
    peak = (machine.chip.peak_flops or 1e12) / machine.chip.devices
    link = (machine.chip.link_bandwidth or 1e10) * max(1, machine.chip.links // 2)
    item = 2 if model.compute_dtype == "bfloat16" else 4
    rows = stage.batch_rows / machine.devices
    # Every device gathers the weights twice and reduces their gradients. Activations are reduced over the tensor axis
    # four times per layer, forward and backward; keys and values are gathered over the context axis.
    weights = 4 * item * definition.num_parameters() / sizes["tensor"]
    slots = rows * shape.slots * sizes["tensor"] * model.layers * item
    activations = 8 * slots * model.width * (sizes["tensor"] > 1)
    dims = sum(count * typed.kv_heads * (typed.dim_per_query + typed.dim_per_value) for typed, count in model.each_type)
    keys = 3 * slots * sizes["context"] * dims / model.layers / sizes["tensor"] * (sizes["context"] > 1)
    # Attention in blocks moves scores through memory; kernels keep them on the chip.
    slow = 1.5 if model.attention_implementation == "blocks" and machine.chip.is_tpu else 1.0
    # On an H200, steps took 1.29 and 1.35 times as long with layers in a loop (docs/benchmarks.md).
    slow *= 1.1 if model.scan_layers and machine.chip.platform == "cuda" else 1.0
    computing = slow * sum(row.computed.values()) * rows / peak
    return (computing + (weights + activations + keys) / link) / (row.tokens * rows)
