"""Compiles the step of `solo train` for a machine from shapes, without arrays or devices."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh

from solo.batch import TEXT_AXES, Batch
from solo.config import Config, StageConfig
from solo.data.planning.row_shape import RowShape
from solo.machines import Machine
from solo.model.parameters import ModelDefinition
from solo.planning.topology import machine_devices
from solo.sharding.axes import AXES
from solo.sharding.compiling import compile_lowered
from solo.sharding.mesh import batch_shardings, make_mesh
from solo.training.averages import averaged_paths
from solo.training.step import make_stage

# A TPU compiler option that compiles in a sixth of the time. Memory is within 7%, but the program is far slower.
QUICK = {"exec_time_optimization_effort": -1.0}
_EXHAUSTED = re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class OutOfMemoryError(RuntimeError):
    """The compiler could not fit a step into a device's memory.

    temporaries, available  bytes that the compiler reports, or None
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        found = _EXHAUSTED.search(message)
        sizes = [float(found[i]) * _UNITS[found[i + 1]] for i in (1, 3)] if found else [None, None]
        self.temporaries, self.available = (size if size is None else int(size) for size in sizes)


@dataclass(frozen=True)
class Program:
    """A compiled step.

    text         its optimised HLO
    arguments    bytes on each device as the compiler lays them out, like the next three
    temporaries  bytes of arrays that exist only during a step
    outputs      bytes of the step's outputs, without those that reuse an argument's memory
    code         bytes of the program itself, if it is in the device's memory
    mesh         axis -> size
    devices      devices of the mesh, in its order
    seconds      seconds that compiling took
    """

    text: str
    arguments: int
    temporaries: int
    outputs: int
    code: int
    mesh: Mapping[str, int]
    devices: tuple[Any, ...]
    seconds: float

    @property
    def total(self) -> int:
        """Bytes of a device's memory that a step needs."""
        return self.arguments + self.temporaries + self.outputs + self.code


def abstract_batch(config: Config, rows: int, shape: RowShape, mesh: Any) -> Batch:
    """Returns a batch of a stage as `jax.ShapeDtypeStruct`s with the shardings of training."""
    B, P, T, Y = rows, shape.patch_slots, shape.text_slots, shape.target_slots
    places = (B, P + T) if TEXT_AXES[config.sequence.positions] is None else (B, P + T, 3)
    masks = (len(config.sequence.layer_masks),) if config.sequence.layer_masks else ()
    shapes = Batch(
        patches=((B, P, config.image.patch_size**2 * 3), np.uint8),
        patch_grid=((B, P, 2), np.int32),
        text=((B, T), np.int32),
        positions=(places, np.int32),
        attend=((B, P + T, *masks, 4), np.int32),
        target_slots=((B, Y), np.int32),
        target_ids=((B, Y), np.int32),
        target_weights=((B, Y), np.float32),
        target_source=((B, Y), np.int32),
    )
    shardings = batch_shardings(mesh)
    return Batch(
        *(
            jax.ShapeDtypeStruct(size, dtype, sharding=sharding)
            for (size, dtype), sharding in zip(shapes, shardings, strict=True)
        )
    )


def compile_step(
    config: Config,
    stage: StageConfig,
    definition: ModelDefinition,
    shape: RowShape,
    num_steps: int,
    machine: Machine,
    options: Mapping[str, Any] | None = None,
) -> Program:
    """Compile a stage's step.

    Args:
        config: the run.
        stage: one of its stages.
        definition: its model.
        shape: shape of the stage's rows.
        num_steps: steps of the stage.
        machine: the machine to compile for.
        options: further compiler options.

    Raises:
        ConfigError: the mesh does not fit the machine, rows cannot be sharded evenly, there is no compiler for the
            machine, or it refuses one of the `compiler_options`.
        OutOfMemoryError: the compiler reports that the step does not fit.
    """
    mesh = make_mesh(config.mesh, machine_devices(machine))
    averaged = averaged_paths(config.stages, stage, definition.specs) if config.averages else []
    made = make_stage(
        definition, stage, num_steps, config.safety, mesh, config.compiler_options, config.averages, averaged
    )
    step: Any = made.step
    lowered = step.lower(made.abstract, abstract_batch(config, stage.batch_rows, shape, mesh))
    start = time.monotonic()
    try:
        compiled = compile_lowered(lowered, mesh, config.compiler_options, options)
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise OutOfMemoryError(str(error)) from None
        raise
    return _read(compiled, mesh, time.monotonic() - start, on_device=machine.chip.is_tpu)


def _read(compiled: Any, mesh: Mesh, seconds: float, on_device: bool) -> Program:
    found = compiled.memory_analysis()
    return Program(
        compiled.as_text(),
        found.argument_size_in_bytes,
        found.temp_size_in_bytes,
        found.output_size_in_bytes - found.alias_size_in_bytes,
        found.generated_code_size_in_bytes if on_device else 0,
        {axis: mesh.shape[axis] for axis in AXES},
        tuple(mesh.devices.flat),
        seconds,
    )
