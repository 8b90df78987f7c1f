"""Estimates how long a step takes on a GPU, from the kernels of the compiled program.

    step = max(computation, overlapped collectives) + awaited collectives

XLA's GPU compiler reports no times, so each kernel is given one:

- Every kernel costs `LAUNCH`, and at least the time to move its bytes at `MEMORY_SHARE` of the bandwidth.
- A product is cut into tiles of 128 x 256, 256 x 128 or 128 x 128, one for each multiprocessor at a time. All
  multiprocessors count as busy until the last tile is done, at `PRODUCT_SHARE` of peak.
- The attention kernels take the FLOPs of their tiles at the chip's `attention_share` of peak, and for every block of
  queries the time of `BLOCK_TILES` more tiles.

`PRODUCT_SHARE` and `LAUNCH` were fitted to five steps that were measured on an H200 (docs/benchmarks.md). Since two
values were fitted to five figures, and the programs were compiled with another version of jax than the one that was
measured, they absorb errors of the other parts. `python -m tests.benchmarks.gpu_fit` repeats the fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

from solo.machines import Machine
from solo.planning.collectives import Collective
from solo.planning.estimate import StepTime
from solo.planning.flops import StepFlops
from solo.planning.hlo import Module
from solo.planning.kernels import Kernel, Product, find_kernels

# Tiles of a product; cuBLAS' and Triton's largest are 128 x 256.
TILES = ((128, 256), (256, 128), (128, 128))
# The time of a tile of attention that a block of queries costs beyond its tiles, from the rates of `solo.chips.gpu`:
# with 64.5 visits of each block, 352 TFLOP/s of visited tiles, and with 8.5 visits 217.
BLOCK_TILES = 6.7
# Attention's rate with heads of 64, relative to those of 128: the exponentials of a tile do not shrink with the head.
# An assumption between no effect (1) and none but exponentials (0.5); all measured heads of 64 are within a step.
SMALL_HEADS = 0.75
FULL_HEAD = 128
# The rate of products of other types, relative to bfloat16's (NVIDIA's data sheets); float32 runs as TF32.
RATES = {"f8": 2.0, "s8": 2.0, "f32": 0.5}


@dataclass(frozen=True)
class Rates:
    """What a GPU reaches.

    products  share of peak that products reach while all multiprocessors are busy
    memory    share of the memory's bandwidth (not fitted)
    launch    seconds of a kernel beyond its work
    """

    products: float = 0.86
    memory: float = 0.9
    launch: float = 4.6e-6


def gpu_step_time(
    module: Module,
    collectives: Sequence[Collective],
    flops: StepFlops,
    machine: Machine,
    rates: Rates = Rates(),
) -> StepTime | str:
    """Estimate a step.

    Args:
        module: the compiled step.
        collectives: collectives of the step.
        flops: FLOPs of the step, over all devices.
        machine: the machine that it is compiled for.
        rates: what its GPUs reach.

    Returns:
        The estimate, or the reason why it is missing.
    """
    chip = machine.chip
    kernels = list(find_kernels(module))
    attention = [each for each in kernels if each.is_attention]
    needed = ["peak_flops", "memory_bandwidth", "gpu_target", *(["attention_share"] if attention else [])]
    if any(each.seconds is None for each in collectives):
        needed += ["link_bandwidth", "network_bandwidth"]
    missing = [name for name in needed if getattr(chip, name) is None]
    if missing or not (chip.peak_flops and chip.memory_bandwidth and chip.gpu_target):
        return f"unknown for {chip.name}: {', '.join(missing)} (solo/chips)"
    peak, bandwidth = chip.peak_flops * rates.products, chip.memory_bandwidth * rates.memory
    cores = chip.gpu_target["core_count"]
    products = elementwise = 0.0
    for each in kernels:
        if each.is_attention:
            continue
        multiplying = sum(product_flops(product, cores) for product in each.products) / peak
        seconds = _times(each, flops) * (max(multiplying, each.bytes / bandwidth) + rates.launch)
        if each.products:
            products += seconds
        else:
            elementwise += seconds
    attending = 0.0
    if attention and chip.attention_share:
        dim = min(each.last_dim for each in attention)
        share = chip.attention_share * (1.0 if dim >= FULL_HEAD else SMALL_HEADS)
        work = flops.computed["attention"] / machine.devices * (1 + BLOCK_TILES / max(flops.visits, 1.0))
        attending = work / (share * chip.peak_flops) + sum(_times(each, flops) for each in attention) * rates.launch
    overlapped = sum(each.seconds or 0.0 for each in collectives if each.overlapped)
    waited = sum(each.seconds or 0.0 for each in collectives if not each.overlapped)
    return StepTime(products, elementwise, attending, overlapped, waited)


def product_flops(product: Product, cores: int) -> float:
    """Returns the bfloat16 FLOPs that all multiprocessors could do until a product's last tile is done."""
    rate = next((rate for kind, rate in RATES.items() if product.dtype.startswith(kind)), 1.0)
    return min(_whole_waves(product, cores)) / rate


def _whole_waves(product: Product, cores: int) -> Iterator[int]:
    for rows, columns in TILES:
        tiles = product.batch * ceil(product.m / rows) * ceil(product.n / columns)
        yield 2 * ceil(tiles / cores) * cores * rows * columns * product.k


def _times(kernel: Kernel, flops: StepFlops) -> float:
    run = kernel.run
    return run.times * max(flops.visits, 1.0) ** run.unbounded
