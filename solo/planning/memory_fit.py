"""Estimates whether a stage fits in a machine's memory, and finds similar settings that would fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import jax

from solo.chips import chip_of
from solo.config import Config, ConfigError, StageConfig
from solo.data.planning.row_shape import RowShape
from solo.machines import Machine, parse_machine
from solo.model.parameters import ModelDefinition, define
from solo.planning.memory import HandCount, format_bytes, hand_count, memory_limit
from solo.planning.replication import check_replication
from solo.planning.rows import stage_rows
from solo.sharding.axes import mesh_sizes, row_shards


@dataclass(frozen=True)
class Setting:
    """A setting that would fit.

    overrides  overrides of the config
    machine    another machine; None: the same
    needed     estimated bytes per device
    """

    overrides: tuple[str, ...]
    machine: str | None
    needed: int

    def __str__(self) -> str:
        how = " ".join(self.overrides) if self.machine is None else f"--on {self.machine}"
        return f"{how} (about {format_bytes(self.needed)} a device)"


def check_fit(
    config: Config, stage: StageConfig, definition: ModelDefinition, shape: RowShape, machine: Machine
) -> str | None:
    """Check without compiling whether a stage fits. Returns a warning if that is doubtful.

    Raises:
        ConfigError: not even the minimum for any compiler fits; the message names settings that would fit.
    """
    limit = memory_limit(machine)
    if limit is None:
        return None
    count = hand_count(config, stage, definition, shape, machine.devices)
    if count.least > limit:
        raise ConfigError(refusal(config, stage, definition, shape, machine, count, count.total))
    if count.total > limit:
        return (
            f"stage {stage.name!r} may not fit {machine.name}: it needs an estimated {format_bytes(count.total)} of"
            f" the {format_bytes(limit)} of a device; `solo plan --on` compiles it to be sure"
        )
    return None


def check_run(config: Config, machine: Machine) -> list[str]:
    """Check every stage with `check_fit`, with the rows of its data or the stated ones. Returns the warnings.

    A stage is not checked if its rows are unknown: it is counted in epochs and its data is not prepared.
    """
    limit = memory_limit(machine)
    if limit is None:
        return []
    vocab_size = config.model.vocab_size or config.data.tokenizer.vocab_size
    found: list[str | None] = [*check_replication(config, define(config, vocab_size), machine.devices, limit)]
    for stage in config.stages:
        try:
            rows = stage_rows(config, stage)
        except ConfigError:
            continue
        definition = define(config, rows.vocab_size or vocab_size)
        found.append(check_fit(config, stage, definition, rows.shape, machine))
    return [warning for warning in found if warning]


def machine_here() -> Machine | None:
    """Returns the devices of this jax process as a machine, or None if their kind is unknown."""
    devices = jax.devices()
    chip = chip_of(devices[0].device_kind)
    if chip is None:
        return None
    chips, hosts = max(1, len(devices) // chip.devices), jax.process_count()
    return Machine(f"{chip.name}, {len(devices)} devices", chip, chips, None, hosts)


def refusal(
    config: Config,
    stage: StageConfig,
    definition: ModelDefinition,
    shape: RowShape,
    machine: Machine,
    count: HandCount,
    needed: int,
) -> str:
    """Returns the error message for a stage that does not fit: its memory by use, and settings that would fit."""
    limit = memory_limit(machine) or 0
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in count.as_dict().items() if name != "total")
    found = nearest_settings(config, stage, definition, shape, machine, needed)
    instead = "\n".join(f"  {each}" for each in found) or "  none found: use more devices, or a smaller model"
    return (
        f"stage {stage.name!r} does not fit {machine.name}: it needs {format_bytes(needed)} of the"
        f" {format_bytes(limit)} of a device (estimated: {parts})\nwhat would fit (estimated):\n{instead}"
    )


def nearest_settings(
    config: Config, stage: StageConfig, definition: ModelDefinition, shape: RowShape, machine: Machine, needed: int
) -> list[Setting]:
    """Returns settings that would fit, the smallest changes first. `needed`: bytes that the stage needs as it is."""
    limit = memory_limit(machine) or 0
    now = hand_count(config, stage, definition, shape, machine.devices)
    # A compiled step shows the error of the estimate.
    scale = max(1.0, (needed - now.arguments) / now.temporaries)
    found = []
    for changed, changed_stage, where, setting in _candidates(config, stage, machine):
        try:
            count = hand_count(changed, changed_stage, replace(definition, config=changed.model), shape, where.devices)
        except ConfigError:
            continue
        estimate = count.arguments + int(scale * count.temporaries)
        if estimate <= limit:
            found.append(replace(setting, needed=estimate))
    kinds = set()
    nearest = []
    for each in found:
        # The first change of each kind is the smallest.
        kind = each.machine is not None or tuple(part.partition("=")[0] for part in each.overrides)
        if kind not in kinds:
            kinds.add(kind)
            nearest.append(each)
    return nearest


def _candidates(
    config: Config, stage: StageConfig, machine: Machine
) -> Iterator[tuple[Config, StageConfig, Machine, Setting]]:
    number = config.stages.index(stage) if stage in config.stages else 0
    sizes = mesh_sizes(config.mesh, machine.devices)
    full = config.model_copy(update={"model": config.model.model_copy(update={"remat": "attention"})})
    rows = stage.batch_rows // stage.accumulate // row_shards(sizes)
    kinds: list[tuple[Config, tuple[str, ...]]] = [(config, ())]
    if config.model.remat == "none":
        dots = config.model_copy(update={"model": config.model.model_copy(update={"remat": "dots"})})
        kinds.append((dots, ("model.remat=dots",)))
    if config.model.remat != "attention":
        kinds.append((full, ("model.remat=attention",)))
    for changed, words in kinds:
        for times in (1, *(each for each in range(2, rows + 1) if rows % each == 0)):
            accumulate = stage.accumulate * times
            setting = (*words, f"stages.{number}.accumulate={accumulate}") if times > 1 else words
            if setting:
                yield (
                    changed,
                    stage.model_copy(update={"accumulate": accumulate}),
                    machine,
                    Setting(setting, None, 0),
                )
    for axis in ("context", "tensor"):
        # fsdp shrinks as much as the other axis grows, which needs fsdp -1.
        if config.mesh.fsdp != -1:
            break
        for times in (2, 4, 8):
            size = sizes[axis] * times
            mesh = config.mesh.model_copy(update={axis: size})
            yield (
                config.model_copy(update={"mesh": mesh}),
                stage,
                machine,
                Setting((f"mesh.{axis}={size}",), None, 0),
            )
    for chips in sorted(size for size in machine.chip.sizes if size > machine.chips):
        name = f"{machine.chip.name}-{chips * machine.chip.cores}"
        yield config, stage, parse_machine(name, machine.slices), Setting((), name, 0)
