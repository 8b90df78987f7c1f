"""Estimates how long a step takes, from the compiler's cycle counts, counted FLOPs and link bandwidths.

    step = max(computation, overlapped collectives) + awaited collectives

The time of computation is the sum over instructions of libtpu's `estimated_cycles`, times the number of executions,
divided by the chip's clock. Loops whose length depends on the data (attention in blocks) are assumed to run as often as
the assumed documents require. Pallas kernels have no cycle count: their time is the FLOPs of the tiles that they visit,
at the chip's `attention_share` of peak FLOP/s. Gathers and scatters that are not fused have no cycle count either.
Compared with published step times for v5e, the estimate was 10 to 31% too slow, so use it only to rank settings. GPUs
have a model of their own, `solo.planning.gpu_time`. CPUs have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from solo.machines import Machine
from solo.planning.collectives import Collective
from solo.planning.flops import StepFlops
from solo.planning.hlo import Module, Run

_PRODUCTS = ("convolution", "dot")
_KERNEL = 'custom_call_target="tpu_custom_call"'


@dataclass(frozen=True)
class StepTime:
    """The seconds of a step by part.

    products     matrix products, including instructions fused into them
    elementwise  all other instructions with a cycle count
    kernels      attention kernels
    overlapped   collectives that run during computation
    waited       collectives that the computation waits for
    """

    products: float
    elementwise: float
    kernels: float
    overlapped: float
    waited: float

    @property
    def computing(self) -> float:
        """Seconds of computation."""
        return self.products + self.elementwise + self.kernels

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return max(self.computing, self.overlapped) + self.waited


def step_time(module: Module, collectives: Sequence[Collective], flops: StepFlops, machine: Machine) -> StepTime | str:
    """Estimate a step.

    Args:
        module: the compiled step.
        collectives: collectives of the step.
        flops: FLOPs of the step, over all devices.
        machine: the machine that it is compiled for.

    Returns:
        The estimate, or the reason why it is missing.
    """
    chip = machine.chip
    products = elementwise = 0.0
    kernels = False
    for run in module.runs():
        kernels = kernels or _KERNEL in run.instruction.rest
        cycles = _cycles(run, flops.visits)
        if _is_product(run, module):
            products += cycles
        else:
            elementwise += cycles
    if not products + elementwise:
        return f"the compiler for {chip.name} gives no cycle counts"
    missing = [] if chip.clock else ["clock"]
    if kernels:
        missing += [name for name in ("peak_flops", "attention_share") if getattr(chip, name) is None]
    if any(each.seconds is None for each in collectives):
        missing += [name for name in ("link_bandwidth", "network_bandwidth") if getattr(chip, name) is None]
    if missing or chip.clock is None:
        return f"unknown for {chip.name}: {', '.join(missing)} (solo/chips)"
    kernel_seconds = 0.0
    if kernels and chip.device_peak_flops and chip.attention_share:
        kernel_seconds = flops.computed["attention"] / machine.devices / (chip.attention_share * chip.device_peak_flops)
    overlapped = sum(each.seconds or 0.0 for each in collectives if each.overlapped)
    waited = sum(each.seconds or 0.0 for each in collectives if not each.overlapped)
    return StepTime(products / chip.clock, elementwise / chip.clock, kernel_seconds, overlapped, waited)


def _cycles(run: Run, visits: float) -> float:
    # A fusion's cycles include those of its instructions.
    if any(place.startswith("fusion ") for place in run.inside):
        return 0.0
    return run.instruction.cycles * run.times * max(visits, 1.0) ** run.unbounded


def _is_product(run: Run, module: Module) -> bool:
    if run.instruction.opcode in _PRODUCTS:
        return True
    targets = run.instruction.called.values()
    return any(each.opcode in _PRODUCTS for target in targets for each in module.computations.get(target, ()))
