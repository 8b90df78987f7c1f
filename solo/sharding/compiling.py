"""Compiling with the options of `solo/sharding/flags.py` and of the config, and what is said of one that is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jax.errors import JaxRuntimeError
from jax.sharding import Mesh
from jax.stages import Compiled, Lowered

from solo.config import ConfigError
from solo.sharding.flags import Value, compiler_options


def compile_lowered(
    lowered: Lowered,
    mesh: Mesh,
    changes: Mapping[str, Value | None],
    further: Mapping[str, Any] | None = None,
) -> Compiled:
    """Compile what was lowered with a mesh's options.

    Args:
        lowered: by a `jax.jit` that has `compiler_options(mesh, changes)`.
        mesh: whose devices it is for.
        changes: the config's `compiler_options`.
        further: options that only this call has.

    Raises:
        ConfigError: the compiler refuses one of the mesh's options; the message names it.
        JaxRuntimeError: the compiler complains of something else.
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
                f"{message} it is set in solo/sharding/flags.py, and left out with compiler_options.{name}=null"
            ) from None
        raise ConfigError(f"{message} correct its name or value in the config, or leave it out") from None


def _refused(error: Exception, options: Mapping[str, Value]) -> str | None:
    """The option that an error is about; None: it is about something else."""
    message = str(error)
    if isinstance(error, TypeError):
        # What is no flag of XLA's jax sets on an object of its own, which names the type that it wants, not the option.
        settings = [name for name in options if not name.startswith("xla_")]
        return settings[0] if settings and "ExecutableBuildOptions" in message else None
    words = set(re.findall(r"\w+", message)) if message.startswith("INVALID_ARGUMENT") else set()
    return next((name for name in options if name in words), None)
