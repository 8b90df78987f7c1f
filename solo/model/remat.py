"""Rematerialisation (`model.remat`): what a layer saves for the backward pass, and what it recomputes.

The policies, from the most memory to the least. All of them give the same gradients.

  none         keeps all intermediate results
  dots         keeps the outputs of all products with weights, and of attention
  projections  keeps queries, keys and values, attention's output and its projection; recomputes the FFN, which takes
               much memory for its FLOPs
  attention    keeps the layer's input and attention's output
  full         keeps only the layer's input; attention is recomputed too
  offload      same as `attention`, with the layer's input in host memory
  offload_projections   same as `projections`, with everything but attention's output in host memory

Every policy keeps the layer's input [B, S, D]. `offload` moves it to the host and back while the device computes.

Measured with `python -m tests.benchmarks.remat`, by the compiler's count of temporary bytes on a CPU (float32; 8
scanned layers with D 256 and F 768, over 2 rows of 1,024 slots). The columns are the total, and the increase
per layer in units of the layer's input:

  none          510 MiB   28.2      attention    107 MiB   2.0
  dots          237 MiB   11.0      full          91 MiB   1.0
  projections   155 MiB    5.0      offload      107 MiB   2.0

On a CPU, host and device memory are the same: the offload policies work there, but save nothing. Compiled for four
v5e chips, the same step with `offload` has all layers' inputs (8.4 MB) in host memory, and 63.4 MB of temporaries on
the chip instead of 76.7 MB.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from solo.config import ModelConfig
from solo.model.attention.tiles import SAVED
from solo.model.dense import PRODUCT
from solo.model.regions import Regions

LAYER_INPUT = "layer_input"
PROJECTION = "projection"
_NAMED = (LAYER_INPUT, PROJECTION)


def named(x: Regions, name: str) -> Regions:
    """Names both regions of an array for rematerialisation policies."""
    return x.map(lambda part: checkpoint_name(part, name))


def rematerialised(function: Callable[..., Any], config: ModelConfig) -> Callable[..., Any]:
    """Wrap a layer, (x, rest) -> results, so that it saves the outputs that `model.remat` selects.

    The layer must name `x` as `LAYER_INPUT`, and the projections around attention as `PROJECTION`.
    """
    if config.remat == "none":
        return function
    # A scan already prevents common-subexpression elimination across layers; a barrier would only cost time.
    return jax.checkpoint(function, prevent_cse=not config.scan_layers, policy=_policy(config.remat))


def _policy(name: str) -> Any:
    policies = jax.checkpoint_policies
    if name == "full":
        return policies.nothing_saveable
    if name.startswith("offload"):
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[SAVED],
            names_which_can_be_offloaded=[LAYER_INPUT] if name == "offload" else [*_NAMED],
            offload_src="device",
            offload_dst="pinned_host",
        )
    # Attention's output is small and expensive to recompute.
    if name == "projections":
        return policies.save_only_these_names(SAVED, PROJECTION)
    if name == "dots":
        return policies.save_only_these_names(SAVED, PRODUCT)
    return policies.save_only_these_names(SAVED)
