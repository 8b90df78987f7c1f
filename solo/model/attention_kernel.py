"""Which implementation computes attention where, and in tiles of which size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax

from solo.config import ConfigError, ModelConfig

Implementation = Literal["blocks", "dense", "pallas_tpu"]

# A tile's queries lie along the lanes of a register, and its keys where the backward pass transposes it.
LANES = 128
# Queries and keys of a tile, by what jax calls the chip.
TILES: Mapping[str, tuple[int, int]] = {"TPU v5 lite": (512, 512), "TPU v5": (512, 512), "TPU v6 lite": (512, 512)}
OTHER_TPU = (512, 512)


class Kernel(NamedTuple):
    """An implementation of `interval_attention`, and how it is to run.

    block      queries of a tile
    key_block  keys of a tile
    interpret  compute a kernel step by step, as on a CPU: right, and slow
    """

    implementation: Implementation
    block: int
    key_block: int
    interpret: bool = False


def choose_kernel(config: ModelConfig, platform: str, device_kind: str) -> Kernel:
    """What `model.attention` means on a platform: `tpu`, `gpu`, `cuda` or `cpu`, and jax's name of the device there.

    Raises:
        ConfigError: the platform has no such kernel, or the chip cannot lay out tiles of `model.attention_tile`.
    """
    name = config.attention
    if name == "auto":
        name = "pallas" if platform == "tpu" else "blocks"
    if name != "pallas":
        return Kernel(name, config.attention_block, config.attention_block)
    if platform not in ("tpu", "cpu"):
        raise ConfigError(f"model.attention pallas has no kernel for {platform}; set it to auto or blocks")
    query_block, key_block = config.attention_tile or TILES.get(device_kind, OTHER_TPU)
    if platform == "tpu" and (query_block % LANES or key_block % LANES):
        raise ConfigError(
            f"model.attention_tile {query_block} x {key_block}: a TPU lays out queries and keys in lanes of {LANES}; "
            f"choose multiples of {LANES}, or leave it out for what suits the chip"
        )
    return Kernel("pallas_tpu", query_block, key_block, interpret=platform == "cpu")


def local_kernel(config: ModelConfig) -> Kernel:
    """The kernel of the devices that jax computes on by default."""
    device = jax.devices()[0]
    return choose_kernel(config, device.platform, device.device_kind)
