"""Estimates the step time on a GPU from the kernels of the compiled program.

    step = max(computation, overlapped collectives) + exposed collectives

XLA's GPU compiler reports no times, so the time of each kernel is modelled:

- Every kernel takes `Rates.launch`, plus at least the time to move its bytes at `Rates.memory` of the bandwidth.
- A matmul is cut into tiles of 128 x 256, 256 x 128 or 128 x 128, and each multiprocessor (SM) computes one tile at a
  time. All SMs count as busy until the last wave of tiles is done, at `Rates.products` of peak FLOP/s.
- An attention kernel computes the FLOPs of its tiles at the chip's `attention_share` of peak. Every query block costs
  the time of `BLOCK_TILES` additional tiles.

`Rates.products` and `Rates.launch` were fitted to five step times measured on an H200 (docs/benchmarks.md). These are
two values for five figures, and the modelled programs were compiled with another version of JAX than the measured ones,
so the two values absorb errors of the other parts. `python -m tests.benchmarks.gpu_fit` repeats the fit.
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

# Tiles of a matmul. The largest of cuBLAS and Triton are 128 x 256.
TILES = ((128, 256), (256, 128), (128, 128))
# Overhead of a query block of attention, in units of the time of one tile. It follows from the rates in
# `solo.chips.gpu`: 352 TFLOP/s over the visited tiles with 64.5 tiles per query block, and 217 with 8.5.
BLOCK_TILES = 6.7
# Rate of attention with head dimension 64, relative to 128: a tile has half the FLOPs, but as many exponentials.
# Assumed, halfway between no slowdown (1) and a rate limited by the exponentials alone (0.5). Attention with head
# dimension 64 has only been measured as part of whole steps.
SMALL_HEADS = 0.75
FULL_HEAD = 128
# Rate of matmuls in other dtypes, relative to bfloat16 (NVIDIA's data sheets). float32 runs as TF32.
RATES = {"f8": 2.0, "s8": 2.0, "f32": 0.5}


@dataclass(frozen=True)
class Rates:
    """Achievable rates of a GPU.

    products  share of peak FLOP/s that matmuls reach while all SMs are busy
    memory    share of the peak memory bandwidth (not fitted)
    launch    overhead of a kernel in seconds
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
    """Estimates the time of a step.

    Args:
        module: the compiled step.
        collectives: collectives of the step.
        flops: FLOPs of the step, summed over all devices.
        machine: the machine that it is compiled for.
        rates: achievable rates of its GPUs.

    Returns:
        The estimate, or the reason why there is none.
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
    """Returns the bfloat16 FLOPs that all SMs could compute until the last tile of a matmul is done."""
    rate = next((rate for kind, rate in RATES.items() if product.dtype.startswith(kind)), 1.0)
    return min(_whole_waves(product, cores)) / rate


def _whole_waves(product: Product, cores: int) -> Iterator[int]:
    for rows, columns in TILES:
        tiles = product.batch * ceil(product.m / rows) * ceil(product.n / columns)
        yield 2 * ceil(tiles / cores) * cores * rows * columns * product.k


def _times(kernel: Kernel, flops: StepFlops) -> float:
    run = kernel.run
    return run.times * max(flops.visits, 1.0) ** run.unbounded
