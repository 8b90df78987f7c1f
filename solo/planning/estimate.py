"""How long a step takes: a model, made of the compiler's own cycle counts, counted FLOPs and links' bandwidths.

    step = max(computing, collectives that run meanwhile) + collectives that are waited for

Computing is libtpu's `estimated_cycles` of every instruction times how often it runs, at the chip's clock. Loops whose
length the data decides (those of attention in blocks) run as often as the assumed documents need. Pallas kernels have
no cycle count: theirs are the FLOPs of the tiles that they visit, at a stated share of peak. Gathers and scatters
that are not fused have none either. Against step times published for v5e the same estimate was 10 to 31% too slow:
rank with it, do not promise with it. Compilers for GPU and CPU give no cycles, and so there is no time for those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from solo.planning.collectives import Collective
from solo.planning.hlo import Module, Run
from solo.planning.work import StepWork
from solo.sharding.hardware import Machine

# Of peak, in the interval attention kernel, forward and backward together (2 to 5), by its schedule with every product
# holding its unit (solo/model/attention/kernel.py): v5e 55 and 75%, v6e 22 and 42%, a sixth being taken off for what a
# schedule leaves out, waiting for memory above all. v5p and v4 have v5e's units, tpu7x has v6e's. Not measured.
KERNEL_SHARE: Mapping[str, float] = {"v4": 0.68, "v5e": 0.68, "v5p": 0.68, "v6e": 0.33, "tpu7x": 0.33}
# tpu7x: not published. v5p's and v6e's.
ASSUMED_CLOCK = 1.75e9
_PRODUCTS = ("convolution", "dot")
_KERNEL = 'custom_call_target="tpu_custom_call"'


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, and what they are made of.

    products    matrix products, with what is fused into them
    elementwise everything else that has cycles
    kernels     attention kernels
    overlapped  collectives that run while the device computes
    waited      collectives that it waits for
    total       of the step
    """

    products: float
    elementwise: float
    kernels: float
    overlapped: float
    waited: float

    @property
    def computing(self) -> float:
        """What the device is busy with."""
        return self.products + self.elementwise + self.kernels

    @property
    def total(self) -> float:
        """Of the step."""
        return max(self.computing, self.overlapped) + self.waited


def step_time(
    module: Module,
    collectives: Sequence[Collective],
    work: StepWork,
    machine: Machine,
) -> StepTime | None:
    """Estimate a step. None where the program has no cycle counts.

    Args:
        module: the compiled step.
        collectives: of it.
        work: of the step, over all devices.
        machine: it is compiled for.
    """
    products = elementwise = 0.0
    kernels = False
    for run in module.runs():
        kernels = kernels or _KERNEL in run.instruction.rest
        cycles = _cycles(run, work.visits)
        if _is_product(run, module):
            products += cycles
        else:
            elementwise += cycles
    if not products + elementwise:
        return None
    clock, peak = machine.chip.clock or ASSUMED_CLOCK, machine.chip.peak_flops
    of_kernels = 0.0
    if kernels and peak:
        flops = work.computed["attention"] / machine.devices
        of_kernels = flops / (KERNEL_SHARE[machine.chip.name] * peak / machine.chip.devices)
    overlapped = sum(each.seconds for each in collectives if each.overlapped)
    waited = sum(each.seconds for each in collectives if not each.overlapped)
    return StepTime(products / clock, elementwise / clock, of_kernels, overlapped, waited)


def _cycles(run: Run, visits: float) -> float:
    # What is within a fusion is counted with it.
    if any(place.startswith("fusion ") for place in run.inside):
        return 0.0
    return run.instruction.cycles * run.times * max(visits, 1.0) ** run.unbounded


def _is_product(run: Run, module: Module) -> bool:
    if run.instruction.opcode in _PRODUCTS:
        return True
    targets = run.instruction.called.values()
    return any(each.opcode in _PRODUCTS for target in targets for each in module.computations.get(target, ()))
