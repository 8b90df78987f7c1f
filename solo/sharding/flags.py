"""Options of XLA for each kind of machine, each with the reason why it is not left at its default.

They are handed to the compiler with the step itself, not through the environment: what a run was compiled with is
known, and `solo plan` compiles the same. The config's `compiler_options` adds to them, changes them, or, with null,
takes one away. Every option here is accepted by libtpu 0.0.42 for its chips, or by XLA's GPU compiler of jaxlib 0.10.2
(tests/sharding/test_flags.py). Those for GPUs come and go with XLA's versions (0.11 has no pipelined ones): one of this
table that the XLA at hand does not know is left out, with a warning. v4, v5e and tpu7x have none: the sets that
are passed around for them left the compiled program as it was (v5e), or are switched on by themselves (tpu7x moves its
collectives to the SparseCore).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh

from solo.sharding.hardware import chip_of

Value = str | int | float | bool


@dataclass(frozen=True)
class Option:
    """One option of the compiler, and why."""

    name: str
    value: Value
    reason: str


_FETCH_AHEAD = (
    Option(
        "xla_tpu_enable_async_collective_fusion",
        True,
        "weights of the next products are gathered beside the present ones, in steps fused into them. For a 7B model"
        " on v5p-128, fsdp 64, 27.4 of 28.2 GB of all-gathers a step no longer stop the computation, with 1.4 GB less"
        " of temporaries (estimated step 3.55 -> 3.50 s, compiled ahead of time)",
    ),
    Option("xla_tpu_enable_async_collective_fusion_fuse_all_gather", True, "the same, for all-gathers: FSDP's weights"),
    Option("xla_tpu_enable_async_collective_fusion_multiple_steps", True, "the same, over more than one product"),
    Option("xla_tpu_overlap_compute_collective_tc", True, "the same, for the collectives that the TensorCore issues"),
    Option("xla_enable_async_all_gather", True, "without it there is no asynchronous all-gather to be fused"),
)
_GATHER_IN_THREE_DIMENSIONS = (
    Option(
        "xla_tpu_prefer_async_allgather_to_allreduce",
        True,
        "on a torus of three closed dimensions libtpu writes an all-gather as an all-reduce of zeros, which sends twice"
        " as much and stops the computation; with it, and the options above, it stays an all-gather beside it",
    ),
)
_GPU = (
    Option(
        "xla_gpu_enable_latency_hiding_scheduler",
        True,
        "collectives start as early and are waited for as late as their data allow; off by default",
    ),
    Option(
        "xla_gpu_all_gather_combine_threshold_bytes",
        1 << 30,
        "one gather for all weights of a layer: small ones are bound by latency (NVIDIA's JAX-Toolbox uses 1 GiB)",
    ),
    Option(
        "xla_gpu_reduce_scatter_combine_threshold_bytes",
        1 << 27,
        "the same for gradients; smaller, as what is combined waits for its last part (JAX-Toolbox: 128 MiB)",
    ),
    Option("xla_gpu_all_reduce_combine_threshold_bytes", 1 << 30, "the same for gradients over data and replica"),
    Option("xla_gpu_enable_pipelined_all_gather", True, "a layer's weights are gathered in the scan's step before"),
    Option("xla_gpu_enable_pipelined_reduce_scatter", True, "its gradients are scattered in the step after"),
    Option(
        "xla_gpu_enable_while_loop_double_buffering",
        True,
        "the scan's body twice, without which a pipelined collective copies what it carries over",
    ),
)

OPTIONS: Mapping[str, tuple[Option, ...]] = {
    "v5p": _FETCH_AHEAD + _GATHER_IN_THREE_DIMENSIONS,
    "v6e": _FETCH_AHEAD,
    "h100": _GPU,
    "h200": _GPU,
    "a100": _GPU,
    "a100-40gb": _GPU,
}


def compiler_options(mesh: Mesh, changes: Mapping[str, Value | None] | None = None) -> dict[str, Value]:
    """The options for a mesh's devices, with the config's changes over them; None takes one away."""
    chip = chip_of(mesh.devices.flat[0].device_kind)
    table = OPTIONS.get(chip.name if chip else "", ())
    found = {option.name: option.value for option in table if _is_known(option.name, option.value)}
    # libtpu takes words for its own options; XLA's are read by their type.
    changed = {name: value for name, value in {**found, **(changes or {})}.items() if value is not None}
    return {name: str(value).lower() if _of_libtpu(name) else value for name, value in changed.items()}


def _of_libtpu(name: str) -> bool:
    return name.startswith(("xla_tpu_", "xla_jf_", "xla_enable_async_"))


@cache
def _is_known(name: str, value: Value) -> bool:
    """Whether XLA has the option: it reads those of GPUs in every compiler, and refuses names that it does not know."""
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
