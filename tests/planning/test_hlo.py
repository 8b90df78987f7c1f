"""Parsing programs: an excerpt from libtpu, and small hand-written ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from solo.chips import CHIPS
from solo.machines import parse_machine
from solo.planning.collectives import find_collectives
from solo.planning.estimate import StepTime, step_time
from solo.planning.flops import StepFlops
from solo.planning.hlo import Module, parse_module, shape_bytes

LOOPS = """HloModule loops, is_scheduled=true

%condition (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element((s32[], f32[8]{0}) %p), index=0
  %limit = s32[]{:T(128)} constant(6)
  ROOT %less = pred[] compare(s32[] %i, s32[] %limit), direction=LT
}

%open (q: (s32[], f32[8])) -> pred[] {
  %q = (s32[], f32[8]{0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  ROOT %any = pred[] compare(%j, %j), direction=LT
}

%inner (r: (s32[], f32[8])) -> (s32[], f32[8]) {
  %r = (s32[], f32[8]{0}) parameter(0)
  ROOT %c = (s32[], f32[8]{0}) fusion(%r), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"7"}
}

%fused (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  ROOT %s = (s32[], f32[8]{0}) parameter(0)
  %hidden = f32[8]{0} copy(%s), backend_config={"estimated_cycles":"1000"}
}

%matmul (t: f32[8]) -> f32[8] {
  %t = f32[8]{0} parameter(0)
  ROOT %d = f32[8]{0} convolution(%t, %t), dim_labels=bf_io->bf
}

%body (u: (s32[], f32[8])) -> (s32[], f32[8]) {
  %u = (s32[], f32[8]{0}) parameter(0)
  %v = f32[8]{0} get-tuple-element(%u), index=1
  %m = f32[8]{0} fusion(%v), kind=kOutput, calls=%matmul, backend_config={"estimated_cycles":"100"}
  %w = f32[64]{0} all-gather(%m), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %x = (s32[], f32[8]{0}) while(%u), condition=%open, body=%inner
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %b = (s32[], f32[8]{0}) while(%a), condition=%condition, body=%body
  %known = (s32[], f32[8]{0}) while(%a), condition=%open, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  %scatter = f32[2]{0} reduce-scatter(%a), channel_id=2, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}
  ROOT %e = f32[8]{0} get-tuple-element(%b), index=1
}
"""
MESH = {"replica": 1, "data": 2, "fsdp": 4, "context": 1, "tensor": 1}
FLOPS = StepFlops({"attention": 1}, {"attention": 10**12}, 1, 5.0)


def test_trip_counts_multiply_and_unknown_ones_are_told_apart() -> None:
    runs = {(run.instruction.name, run.times, run.unbounded) for run in parse_module(LOOPS).runs()}
    assert {("m", 6, 0), ("w", 6, 0), ("c", 6, 1), ("c", 3, 0)} <= runs


def test_bytes_and_axes_of_collectives() -> None:
    gather, scatter = find_collectives(parse_module(LOOPS), MESH, parse_machine("cpu-8"), range(8))
    assert (gather.kind, gather.axes, gather.members, gather.count, gather.bytes) == (
        *("all-gather", ("fsdp",), 4),
        *(6, 6 * 64 * 4),
    )
    # What a device hands in, not what it is left with.
    assert (scatter.kind, scatter.axes, scatter.bytes) == ("reduce-scatter", ("data",), 2 * 4 * 2)


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("((f32[16], f32[4]), (f32[4], f32[1])) reduce-scatter-start(%a), replica_groups=[2,4]<=[8]", 4 * (16 + 4)),
        ("((f32[4], f32[1]), (f32[16], f32[4])) all-gather-start(%a), replica_groups=[2,4]<=[8]", 4 * (16 + 4)),
        ("(f32[4], f32[4], u32[], u32[]) collective-permute-start(%a), source_target_pairs={{0,1},{1,0}}", 16),
        ("f32[4] all-reduce-start(%a), replica_groups=[2,4]<=[8]", 16),
    ],
)
def test_asynchronous_collectives_count_once(line: str, size: int) -> None:
    text = LOOPS.replace("  ROOT %e", f"  %s = {line}\n  ROOT %e")
    found = find_collectives(parse_module(text), MESH, parse_machine("cpu-8"), range(8))
    (started,) = [each for each in found if each.overlapped]
    assert started.bytes == size


def test_a_loop_of_unknown_length_runs_as_often_as_documents_need() -> None:
    time = step_time(parse_module(LOOPS), [], FLOPS, parse_machine("v5e-8"))
    assert time.products * 1.5e9 == pytest.approx(6 * 100)
    # 6 x 5 visits and 3 known ones; what is within a fusion is not counted again.
    assert time.elementwise * 1.5e9 == pytest.approx((6 * 5 + 3) * 7)
    assert time.kernels == 0


def test_kernels_are_counted_at_a_share_of_peak() -> None:
    call = '  %k = f32[8]{0} custom-call(%a), custom_call_target="tpu_custom_call"\n  ROOT %e'
    time = step_time(parse_module(LOOPS.replace("  ROOT %e", call)), [], FLOPS, parse_machine("v5e-8"))
    assert time.kernels == pytest.approx(10**12 / 8 / (CHIPS["v5e"].attention_share * 197e12))


def test_an_unknown_value_of_the_chip_is_the_reason_for_no_estimate() -> None:
    call = '  %k = f32[8]{0} custom-call(%a), custom_call_target="tpu_custom_call"\n  ROOT %e'
    kernel, v5e = parse_module(LOOPS.replace("  ROOT %e", call)), parse_machine("v5e-8")

    def estimate(module: Module, **unknown: None) -> StepTime | str:
        machine = replace(v5e, chip=replace(v5e.chip, **unknown))
        devices = [_Device(*place) for place in np.ndindex(2, 4)]
        return step_time(module, find_collectives(module, MESH, machine, devices), FLOPS, machine)

    assert isinstance(estimate(kernel), StepTime)
    # A program without kernels needs no share of peak.
    assert isinstance(estimate(parse_module(LOOPS), attention_share=None), StepTime)
    assert estimate(kernel, attention_share=None) == "unknown for v5e: attention_share (solo/chips)"
    assert estimate(kernel, clock=None, link_bandwidth=None) == "unknown for v5e: clock, link_bandwidth (solo/chips)"
    assert step_time(parse_module("ENTRY %e (a: f32[]) -> f32[] {\n}\n"), [], FLOPS, v5e) == (
        "the compiler for v5e gives no cycle counts"
    )


def test_unknown_cycles_are_not_counted() -> None:
    line = (
        f'  %k = f32[8]{{0}} fusion(%a), kind=kCustom, backend_config={{"estimated_cycles":"{2**63 - 1}"}}\n  ROOT %e'
    )
    known = step_time(parse_module(LOOPS), [], FLOPS, parse_machine("v5e-8"))
    assert step_time(parse_module(LOOPS.replace("  ROOT %e", line)), [], FLOPS, parse_machine("v5e-8")) == known


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[2,3]{1,0:T(8,128)}", 24),
        ("(bf16[4]{0}, s32[])", 12),
        ("pred[8]", 8),
        ("f8e4m3fn[16]", 16),
        ("s4[16]", 8),
        ("token[]", 0),
    ],
)
def test_bytes_of_shapes(shape: str, size: int) -> None:
    assert shape_bytes(shape) == size


def test_text_that_is_not_a_program_is_refused() -> None:
    with pytest.raises(ValueError, match="ENTRY"):
        parse_module("nothing")


class TestProgramOfLibtpu:
    """Five layers x @ w then relu then @ w.T, on 2 x 2 chips, w sharded over fsdp and tensor; see its first lines."""

    @pytest.fixture(scope="class")
    def module(self):
        return parse_module((Path(__file__).parent / "golden" / "excerpt.hlo").read_text())

    def test_layers_run_five_times_and_have_cycles(self, module) -> None:
        products = {run.times for run in module.runs() if run.instruction.opcode == "fusion" and run.instruction.cycles}
        assert 5 in products
        loops = [module.trip_count(run.instruction) for run in module.runs() if run.instruction.opcode == "while"]
        assert sorted(loops, key=str) == [5, None]

    def test_weights_are_gathered_along_fsdp_once_a_layer(self, module) -> None:
        mesh = {"replica": 1, "data": 1, "fsdp": 2, "context": 1, "tensor": 2}
        devices = [_Device(*place) for place in np.ndindex(2, 2)]
        found = find_collectives(module, mesh, parse_machine("v5e-4"), devices)
        gathered = [each for each in found if each.kind == "all-gather" and each.axes == ("fsdp",)]
        assert sum(each.bytes for each in gathered) % (5 * 256 * 256 * 2) == 0
        assert gathered
        summed = [each for each in found if each.kind == "all-reduce" and each.axes == ("tensor",)]
        assert summed
        assert all(each.seconds > 0 for each in found)


class _Device:
    def __init__(self, x: int, y: int) -> None:
        self.coords = (x, y, 0)
