"""What of a layer is kept for the backward pass, and what is computed again: `model.remat`.

From the most kept to the least; gradients are the same in all of them.

  none         everything
  dots         outputs of all products with weights, and attention's output
  projections  queries, keys and values, attention's output and its projection: the FFN, which is wide and cheap for
               its bytes, is computed again
  attention    attention's output and the layer's input: all but attention is computed again
  full         the layer's input alone: attention is computed again too
  offload      as `attention`, with the layer's input in the host's memory
  offload_projections   as `projections`, with all of it but attention's output in the host's memory

The layer's input is [B, S, D], kept for every layer whatever the policy; `offload` takes that off the device, for a
transfer each way beside the computation.

Measured with `python -m tests.benchmarks.remat`, by the compiler's count of temporary bytes on a CPU (float32; 8 layers
of D 256, F 768, scanned, over 2 rows of 1,024 slots; all of them, and what a layer adds in units of its input):

  none          510 MiB   28.2      attention    107 MiB   2.0
  dots          237 MiB   11.0      full          91 MiB   1.0
  projections   155 MiB    5.0      offload      107 MiB   2.0

On a CPU the memory of the host is that of the device: there the offload policies work, and save nothing. The same step
with `offload`, compiled for four v5e chips, has all layers' inputs (8.4 MB) in the host's memory, and temporaries of
63.4 MB on the chip instead of 76.7 MB.
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
    """The same values, which a policy can keep by their name."""
    return x.map(lambda part: checkpoint_name(part, name))


def rematerialised(function: Callable[..., Any], config: ModelConfig) -> Callable[..., Any]:
    """A layer, (x, rest) -> results, that keeps for its backward pass what the config says.

    Where it does not already, `x` is to be named `LAYER_INPUT`, and outputs of the narrow products `PROJECTION`.
    """
    if config.remat == "none":
        return function
    # The scan is a barrier already, so the one against common-subexpression elimination would only cost.
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
    # Attention's output is small and dear.
    if name == "projections":
        return policies.save_only_these_names(SAVED, PROJECTION)
    if name == "dots":
        return policies.save_only_these_names(SAVED, PRODUCT)
    return policies.save_only_these_names(SAVED)
