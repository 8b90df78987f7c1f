"""Compiles with the options of the chip and of the config, and explains options that the compiler rejects.

Options are passed to the compiler with each function, not through environment variables, so that `solo plan` and
`solo train` compile with the same options. The config's `compiler_options` adds to the options of the chip
(`solo.chips`), changes them, or removes one with null.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh
from jax.stages import Compiled, Lowered

from solo.chips import OptionValue, chip_of
from solo.config import ConfigError


def compiler_options(mesh: Mesh, changes: Mapping[str, OptionValue | None] | None = None) -> dict[str, OptionValue]:
    """Returns the options for the devices of a mesh, with the config's changes applied. None removes an option."""
    chip = chip_of(mesh.devices.flat[0].device_kind)
    table = chip.compiler_options if chip else ()
    found = {option.name: option.value for option in table if _is_known(option.name, option.value)}
    changed = {name: value for name, value in {**found, **(changes or {})}.items() if value is not None}
    # libtpu expects strings for its own options. XLA's options keep their type.
    return {name: str(value).lower() if _of_libtpu(name) else value for name, value in changed.items()}


def compile_lowered(
    lowered: Lowered,
    mesh: Mesh,
    changes: Mapping[str, OptionValue | None],
    further: Mapping[str, Any] | None = None,
) -> Compiled:
    """Compile a lowered function.

    Args:
        lowered: the result of lowering a `jax.jit` that has `compiler_options(mesh, changes)`.
        mesh: the devices to compile for.
        changes: the config's `compiler_options`.
        further: additional options for this call only.

    Raises:
        ConfigError: the compiler rejects one of these options; the message names it.
        JaxRuntimeError: the compiler fails for another reason.
    """
    try:
        return lowered.compile(compiler_options=dict(further or {}) or None)
    except (JaxRuntimeError, TypeError) as error:
        name = _refused(error, compiler_options(mesh, changes))
        if name is None:
            raise
        reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ").rstrip(": .")
        message = f"compiler_options.{name}: the compiler for {mesh.devices.flat[0].device_kind} refuses it: {reason};"
        if changes.get(name) is None:
            raise ConfigError(
                f"{message} it comes from the chip's entry in solo/chips; remove it with compiler_options.{name}=null"
            ) from None
        raise ConfigError(f"{message} correct its name or value in the config, or remove it") from None


def _refused(error: Exception, options: Mapping[str, OptionValue]) -> str | None:
    """Returns the option that an error refers to, or None if it has another cause."""
    message = str(error)
    if isinstance(error, TypeError):
        # jax sets options that are not XLA flags as attributes. The error then names the expected type, not the option.
        settings = [name for name in options if not name.startswith("xla_")]
        return settings[0] if settings and "ExecutableBuildOptions" in message else None
    words = set(re.findall(r"\w+", message)) if message.startswith("INVALID_ARGUMENT") else set()
    return next((name for name in options if name in words), None)


def _of_libtpu(name: str) -> bool:
    return name.startswith(("xla_tpu_", "xla_jf_", "xla_enable_async_"))


@cache
def _is_known(name: str, value: OptionValue) -> bool:
    """Returns whether XLA has an option. Every XLA compiler parses GPU options and rejects unknown names."""
    if not name.startswith("xla_gpu_"):
        return True
    lowered = jax.jit(lambda: jnp.zeros(())).lower()
    options: Any = {name: value}
    try:
        lowered.compile(compiler_options=options)
    except JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        warnings.warn(f"{name}: this version of XLA has no such option; compiled without it", stacklevel=3)
        return False
    return True
