"""The one table of chips: memory, speed, topologies, attention tiles, compiler options, and names at vendors.

To add a chip, add an entry to `solo.chips.tpu` or `solo.chips.gpu`: name, platform, device kind and memory are enough
to train on it. A plan lists other values that it needs and that are unknown. Nothing here imports jax.

Prices are list prices on demand, in US dollars for one chip and one hour; `solo plan --usd-per-chip-hour` overrides
them.
"""

from __future__ import annotations

from collections.abc import Mapping

from solo.chips.chip import Chip, Option, OptionValue, Price, Trial
from solo.chips.gpu import GPUS
from solo.chips.tpu import TPUS

__all__ = ["CHIPS", "Chip", "Option", "OptionValue", "Price", "Trial", "chip_of", "peak_flops"]

_CPU = Chip("cpu", "cpu", ("cpu",), quantized_products=("fp8", "int8"))
CHIPS: Mapping[str, Chip] = {chip.name: chip for chip in (*TPUS, *GPUS, _CPU)}


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip of jax devices of this kind, or None if it is not in the table."""
    return next((chip for chip in CHIPS.values() if device_kind in chip.device_kinds), None)


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak bfloat16 FLOPs per second of a jax device, or None if unknown, as for every CPU."""
    chip = chip_of(device_kind)
    return None if chip is None else chip.device_peak_flops
