"""The time of a step on a GPU: by hand for a small program, and for one that XLA compiled."""

import importlib.util
from dataclasses import replace

import pytest

from solo.config import load_config
from solo.machines import parse_machine
from solo.planning.collectives import Collective, find_collectives
from solo.planning.estimate import StepTime
from solo.planning.flops import StepFlops
from solo.planning.forecast import forecast
from solo.planning.gpu_time import BLOCK_TILES, SMALL_HEADS, Rates, gpu_step_time, product_flops
from solo.planning.hlo import parse_module
from solo.planning.kernels import Product
from tests.planning.record import FOLDER
from tests.planning.test_kernels import PROGRAM

H200 = parse_machine("h200-8")
FLOPS = StepFlops({"attention": 1}, {"attention": 8 * 10**12}, 1, 5.0)
# One of 132 multiprocessors has a tile; the others wait for it.
WAVE = 132 * 2 * 128 * 128


def test_a_product_takes_whole_waves_of_tiles() -> None:
    # Four tiles of 128 x 128 for every multiprocessor, and another row of tiles: a fifth wave.
    even, odd = Product(1, 128 * 132, 512, 64, "bf16"), Product(1, 128 * 132 + 1, 512, 64, "bf16")
    assert product_flops(even, 132) == even.flops
    assert product_flops(odd, 132) == 5 * even.flops / 4
    # A small product is cut into the smallest tiles.
    assert product_flops(Product(1, 16, 16, 64, "bf16"), 132) == WAVE * 64


@pytest.mark.parametrize(("dtype", "rate"), [("bf16", 1), ("f8e4m3fn", 2), ("f8e5m2", 2), ("s8", 2), ("f32", 0.5)])
def test_types_have_their_rates(dtype: str, rate: float) -> None:
    assert product_flops(Product(1, 128, 128, 64, dtype), 132) == WAVE * 64 / rate


def test_a_step_is_the_sum_of_its_kernels() -> None:
    rates = Rates(products=0.5, memory=0.5, launch=1e-3)
    time = gpu_step_time(parse_module(PROGRAM), [], FLOPS, H200, rates)
    peak, bandwidth = 0.5 * 989e12, 0.5 * 4.8e12
    # Two products of bfloat16, one of float8. All are bound by their few tiles, not by memory.
    work = WAVE * (32 + 8 + 32 / 2)
    assert time.products == pytest.approx(3e-3 + work / peak, rel=1e-6)
    moved = {"weights": 2 * (24 + 1) * 64 * 32, "sliced": 2 * 2 * 64 * 32 + 4, "saved": 2 * 4 * 64 + 4, "end": 4096}
    assert time.elementwise == pytest.approx(4e-3 + sum(moved.values()) / bandwidth, rel=1e-6)
    attended = 10**12 * (1 + BLOCK_TILES / 5) / (H200.chip.attention_share * SMALL_HEADS * 989e12)
    assert time.kernels == pytest.approx(1e-3 + attended)


def test_collectives_are_added_or_overlapped() -> None:
    found = [Collective("all-gather", ("fsdp",), 8, overlapped, 1, 1, 0.25) for overlapped in (True, False)]
    time = gpu_step_time(parse_module(PROGRAM), found, FLOPS, H200)
    assert (time.overlapped, time.waited) == (0.25, 0.25)
    assert time.total == 0.5


def test_an_unknown_value_of_the_chip_is_the_reason_for_no_estimate() -> None:
    for name in ("peak_flops", "memory_bandwidth", "attention_share"):
        machine = replace(H200, chip=replace(H200.chip, **{name: None}))
        assert gpu_step_time(parse_module(PROGRAM), [], FLOPS, machine) == f"unknown for h200: {name} (solo/chips)"


GATHER = """HloModule gather

ENTRY %main (a: bf16[1024]) -> bf16[16384] {
  %a = bf16[1024]{0} parameter(0)
  %start = (bf16[1024]{0}, bf16[16384]{0}) all-gather-start(%a), replica_groups=GROUPS, dimensions={0}, CONFIG
  ROOT %done = bf16[16384]{0} all-gather-done(%start)
}
"""


def _gather(groups: str, sync: str = "false") -> Collective:
    options = f'backend_config={{"collective_backend_config":{{"is_sync":{sync},"is_pipelined":false}}}}'
    module = parse_module(GATHER.replace("GROUPS", groups).replace("CONFIG", options))
    mesh = {"replica": 1, "data": 2, "fsdp": 8, "context": 1, "tensor": 1}
    (found,) = find_collectives(module, mesh, parse_machine("h100-16"), range(16))
    return found


def test_a_collective_that_nothing_runs_beside_is_awaited() -> None:
    assert _gather("[1,16]<=[16]").overlapped
    assert not _gather("[1,16]<=[16]", sync="true").overlapped


def test_what_crosses_hosts_is_divided_among_the_gpus_of_a_host() -> None:
    size = 2 * 16384
    # Two hosts: half of the array enters each, over eight links of 50 GB/s; NVLink is slower here.
    both = _gather("[1,16]<=[16]")
    assert both.network
    assert both.seconds == pytest.approx(max(size / 2 / (8 * 50e9), size * 15 / 16 / 450e9))
    # Pairs of GPUs, one in each host, have one link each.
    pairs = _gather("[8,2]<=[2,8]T(1,0)")
    assert pairs.seconds == pytest.approx(pairs.bytes / 2 / 50e9)
    within = _gather("[2,8]<=[16]")
    assert not within.network
    assert within.seconds == pytest.approx(within.bytes * 7 / 8 / 450e9)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax_plugins") is None, reason="no compiler for GPUs: solo-vlm[cuda]")
def test_a_compiled_step_has_a_time() -> None:
    config = load_config(FOLDER / "small.yaml")
    found = forecast(config, config.stages[0], parse_machine("h100-8"))
    assert isinstance(found.time, StepTime), found.no_time
    # Attention, products and the rest all take part; useful FLOPs take a few percent of peak in so small a step.
    assert min(found.time.products, found.time.elementwise, found.time.kernels) > 0
    assert 0.001 < found.mfu < 0.5
    assert any(not each.overlapped for each in found.collectives)
