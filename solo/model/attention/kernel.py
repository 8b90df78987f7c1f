"""Which implementation computes attention where, and in tiles of which size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax

from solo.config import ConfigError, ModelConfig
from solo.model.attention.tiles import round_up

Implementation = Literal["blocks", "dense", "pallas_tpu", "pallas_gpu"]

# A tile's queries lie along the lanes of a register, and its keys where the backward pass transposes it.
LANES = 128
# Queries and keys of a tile, by what jax calls the chip. Chosen on 2026-11-26 from the schedules of libtpu 0.0.42.1
# (bfloat16, heads of 128, four to a key head): FLOPs of a tile's products over its bundles of instructions, as a share
# of peak, of tiles with a mask and without. Bundles leave waiting out, as for memory and for
# products under way, and so can promise more than the peak.
#
#           tile         forward      backward     splash, measured alike
#   v5e     256 x 256    76 to 84%    109 to 111%  forward 46 to 51% (blocks of 512; 1,024), backward 104%
#   v6e     256 x 256    26 to 29%    45 to 48%    forward 27%, backward 40% (blocks of 512)
#
# With each product holding its unit for the cycles that its numbers need, v5e reaches 66 to 70% forwards and 89 to 90%
# backwards; v5p has the cores of v5e. Heads of 128 fill half of a unit of v6e. Larger tiles visit more of what nobody
# sees: on rows of 4,096 with documents of about 1,000 slots, three quarters patches, 3.8 times the pairs that are seen
# in tiles of 512 x 512, 2.3 times in tiles of 256 x 256.
TILES: Mapping[str, tuple[int, int]] = {"TPU v5 lite": (256, 256), "TPU v5": (256, 256), "TPU v6 lite": (256, 256)}
OTHER_TPU = (256, 256)
# Their vector memory of 16 MiB does not hold the gradients of a row of 8,192 keys: `auto` is blocks there.
SMALL_MEMORY = ("TPU v2", "TPU v3", "TPU v4")
# Measured on an H100 with jax 0.11.2 on 2026-11-26, bfloat16, heads of 128, by the pairs that are seen: two rows of
# 8,192 causal slots, 32 heads, 369 TFLOP/s forwards and 349 backwards (cuDNN 622 and 472, 128 x 64 tiles 345 and 310);
# two rows of 4,096 with documents of 1,024, 16 heads, 212 and 201 (128 x 64 tiles at their best 212 and 166).
GPU = (64, 64)
# The smallest matrix that the tensor cores of a GPU multiply has this many rows and columns.
LEAST_GPU = 16


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

    def fitted(self, queries: int, num_patches: int, num_text: int) -> Kernel:
        """The same with tiles no larger than what there is, in whole lanes: what `interval_attention` computes."""
        block = min(self.block, round_up(queries, LANES))
        return self._replace(block=block, key_block=min(self.key_block, round_up(max(num_patches, num_text), LANES)))


def choose_kernel(config: ModelConfig, platform: str, device_kind: str) -> Kernel:
    """Choose the kernel that `model.attention_implementation` means on a device.

    Args:
        config: the model.
        platform: `tpu`, `gpu`, `cuda` or `cpu`.
        device_kind: jax's name of the device.

    Raises:
        ConfigError: the chip cannot lay out tiles of `model.attention_tile`.
    """
    name = config.attention_implementation
    if name == "auto":
        name = "blocks" if platform == "cpu" or device_kind in SMALL_MEMORY else "pallas"
    if name != "pallas":
        return Kernel(name, config.attention_block, config.attention_block)
    if platform in ("gpu", "cuda"):
        tile = config.attention_tile or GPU
        if any(size < LEAST_GPU or size & (size - 1) for size in tile):
            raise _misfit(tile, f"a GPU computes blocks of 2^n, at least {LEAST_GPU}; choose 64, 64")
        return Kernel("pallas_gpu", *tile)
    tile = config.attention_tile or TILES.get(device_kind, OTHER_TPU)
    if platform == "tpu" and any(size % LANES for size in tile):
        raise _misfit(tile, f"a TPU lays out queries and keys in lanes of {LANES}; choose multiples of {LANES}")
    return Kernel("pallas_tpu", *tile, interpret=platform == "cpu")


def _misfit(tile: tuple[int, int], reason: str) -> ConfigError:
    return ConfigError(f"model.attention_tile {tile[0]} x {tile[1]}: {reason}, or leave it out for what suits the chip")


def local_kernel(config: ModelConfig) -> Kernel:
    """The kernel of the devices that jax computes on by default."""
    device = jax.devices()[0]
    return choose_kernel(config, device.platform, device.device_kind)
