"""Chooses the attention implementation and its tile sizes for a device."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
from jax.experimental.pallas import next_power_of_2

from solo.chips import chip_of
from solo.config import ConfigError, ModelConfig
from solo.model.attention.tiles import round_up

Implementation = Literal["blocks", "dense", "pallas_tpu", "pallas_gpu"]

# A tile's queries lie along the lanes of a register. So do its keys when the backward pass transposes the tile.
LANES = 128
# Queries and keys per tile on chips without a tile size in `solo.chips`.
TPU_TILE = (256, 256)
GPU_TILE = (64, 64)
# The smallest matrix that a GPU's tensor cores multiply has this many rows and columns.
LEAST_GPU = 16
# Numbers of a tile's queries, or keys, that fit in a GPU's shared memory with the rest. Compiled for an H100, which has
# 227 KiB, 64 x 64 tiles of heads of 512 need 320 KiB, those of 256 fit, and so do 32 x 32 tiles of 512.
_GPU_NUMBERS = 64 * 256


class Kernel(NamedTuple):
    """An implementation of `interval_attention` and its settings.

    block      queries of a tile
    key_block  keys of a tile
    interpret  interpret a kernel, as on a CPU: correct, but slow
    """

    implementation: Implementation
    block: int
    key_block: int
    interpret: bool = False

    def fitted(self, queries: int, num_patches: int, num_text: int, dim: int) -> Kernel:
        """Returns the kernel with tiles no larger than a row needs, in multiples of `LANES`.

        On a GPU, the tiles of heads wider than 256 (`dim`) are no larger than its shared memory.
        """
        block = min(self.block, round_up(queries, LANES))
        key_block = min(self.key_block, round_up(max(num_patches, num_text), LANES))
        if self.implementation == "pallas_gpu" and dim > 256:
            most = max(LEAST_GPU, _GPU_NUMBERS // next_power_of_2(dim))
            block, key_block = min(block, most), min(key_block, most)
        return self._replace(block=block, key_block=key_block)


def choose_kernel(config: ModelConfig, platform: str, device_kind: str) -> Kernel:
    """Returns the kernel that `model.attention_implementation` selects on a device.

    Args:
        config: the model.
        platform: `tpu`, `gpu`, `cuda` or `cpu`.
        device_kind: JAX's name of the device.

    Raises:
        ConfigError: the chip cannot lay out tiles of `model.attention_tile`.
    """
    name, chip = config.attention_implementation, chip_of(device_kind)
    if name == "auto":
        name = "pallas" if platform != "cpu" and (chip is None or chip.runs_attention_kernel) else "blocks"
    if name != "pallas":
        return Kernel(name, config.attention_block, config.attention_block)
    if platform in ("gpu", "cuda"):
        tile = config.attention_tile or (chip and chip.attention_tile) or GPU_TILE
        if any(size < LEAST_GPU or size & (size - 1) for size in tile):
            raise _misfit(tile, f"a GPU computes blocks of 2^n, at least {LEAST_GPU}; choose 64, 64")
        return Kernel("pallas_gpu", *tile)
    tile = config.attention_tile or (chip and chip.attention_tile) or TPU_TILE
    if platform == "tpu" and any(size % LANES for size in tile):
        raise _misfit(tile, f"a TPU lays out queries and keys in lanes of {LANES}; choose multiples of {LANES}")
    return Kernel("pallas_tpu", *tile, interpret=platform == "cpu")


def _misfit(tile: tuple[int, int], reason: str) -> ConfigError:
    return ConfigError(f"model.attention_tile {tile[0]} x {tile[1]}: {reason}, or leave it out for the default")


def local_kernel(config: ModelConfig) -> Kernel:
    """Returns the kernel for JAX's default device."""
    device = jax.devices()[0]
    return choose_kernel(config, device.platform, device.device_kind)
