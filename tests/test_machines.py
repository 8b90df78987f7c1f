"""The table of chips and the names of machines agree with each other, with jax's own table, and with vendors."""

from dataclasses import replace

import pytest
from jax.experimental.pallas import tpu as pltpu

from solo.chips import CHIPS, Chip, chip_of, peak_flops
from solo.config import ConfigError
from solo.machines import chips_in, parse_machine
from solo.planning.memory import memory_limit
from solo.planning.topology import machine_devices


@pytest.mark.parametrize("name", CHIPS)
def test_sizes_are_their_topologies(name: str) -> None:
    chip = CHIPS[name]
    assert all(chips_in(topology) == chips for chips, topology in chip.sizes.items())
    dimensions = {topology.count("x") + 1 for topology in chip.sizes.values()}
    assert dimensions <= {chip.links // 2}


@pytest.mark.parametrize(
    ("name", "chips", "topology", "hosts", "devices"),
    [
        ("v5e-256", 256, "v5e:16x16", 64, 256),
        ("v5litepod-16", 16, "v5e:4x4", 4, 16),
        ("v5p-128", 64, "v5p:4x4x4", 16, 64),
        ("v6e-8", 8, "v6e:2x4", 1, 8),
        ("v6e-1", 1, "v6e:1x1", 1, 1),
        ("v4-8", 4, "v4:2x2x1", 1, 4),
        ("tpu7x-128", 64, "tpu7x:4x4x4", 16, 128),
        ("h100-64", 64, None, 8, 64),
        ("h200-1", 1, None, 1, 1),
        ("cpu-8", 8, None, 1, 8),
    ],
)
def test_names(name: str, chips: int, topology: str | None, hosts: int, devices: int) -> None:
    found = parse_machine(name)
    assert (found.chips, found.topology_name, found.hosts, found.devices) == (chips, topology, hosts, devices)
    assert found.hosts * found.devices_per_host == devices
    if bounds := found.chips_per_host_bounds:
        assert bounds[0] * bounds[1] * bounds[2] == found.chips_per_host


def test_no_slices_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^0 slices of v5e-16: expected at least 1$"):
        parse_machine("v5e-16", slices=0)


def test_slices_and_hosts_multiply() -> None:
    two = parse_machine("v5e-16", slices=2)
    assert (two.devices, two.all_hosts) == (32, 8)
    split = parse_machine("cpu-8", hosts=4)
    assert (split.hosts, split.devices_per_host) == (4, 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5p-7", "there are v5p-8, v5p-16"),
        ("v6-8", "did you mean 'v6e'"),
        ("h100-12", "whole number of hosts with 8 each"),
        ("v5e", "v5e-N"),
    ],
)
def test_machines_that_are_not_offered_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_machine(name)


def test_prices_are_dated_and_can_be_replaced() -> None:
    assert parse_machine("v5e-256").usd_per_hour() == pytest.approx(256 * CHIPS["v5e"].price.usd_per_chip_hour)
    assert parse_machine("v5e-256", slices=2).usd_per_hour(0.5) == 256
    assert parse_machine("tpu7x-8").usd_per_hour() is None
    assert all(chip.price.as_of and chip.price.source for chip in CHIPS.values() if chip.price)


def test_peak_flops_are_per_device() -> None:
    assert peak_flops("TPU v5p") == 459e12
    assert peak_flops("TPU7x") == 2307e12 / 2
    assert peak_flops("cpu") is None
    assert peak_flops("abacus") is None
    kinds = [kind for chip in CHIPS.values() for kind in chip.device_kinds]
    assert len(set(kinds)) == len(kinds)
    assert chip_of("TPU v6 lite") is CHIPS["v6e"]


@pytest.mark.parametrize("name", ["v2", "v3", "v4", "v5e", "v5p", "v6e", "tpu7x"])
def test_chips_agree_with_jaxs_table(name: str) -> None:
    """Against the table of jax's own kernels, which counts bytes and FLOPs of one core."""
    chip = CHIPS[name]
    tpu = pltpu.get_tpu_info_for_chip(pltpu.ChipVersion({"tpu7x": "7x"}.get(name, name)), 1)
    cores = chip.cores
    assert tpu.bf16_ops_per_second * cores == pytest.approx(chip.peak_flops, rel=0.01)
    assert tpu.hbm_capacity_bytes * cores == pytest.approx(chip.memory, rel=0.08)
    assert tpu.vmem_capacity_bytes == chip.vector_memory
    assert tpu.mem_bw_bytes_per_second * cores == pytest.approx(chip.memory_bandwidth, rel=0.12)  # v5p: 2460, says jax


def test_a_new_chip_needs_only_name_platform_kind_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be trained on; what is unknown is named by whatever needs it."""
    new = Chip("v9", "tpu", ("TPU v9",), memory=64 * 2**30)
    monkeypatch.setitem(CHIPS, "v9", new)
    assert chip_of("TPU v9") is new
    assert peak_flops("TPU v9") is None
    assert set(new.unknown) == {
        "peak_flops",
        "clock",
        "attention_share",
        "link_bandwidth",
        "network_bandwidth",
        "price",
    }
    with pytest.raises(ConfigError, match=r"the slices of v9 are unknown; add its `sizes`"):
        parse_machine("v9-4")
    monkeypatch.setitem(CHIPS, "v9", replace(new, sizes={4: "2x2", 6: "2x3"}, single_hosts={6: 6}))
    sold = parse_machine("v9-4")
    assert (sold.topology_name, sold.usd_per_hour(), sold.accelerator_type) == (None, None, None)
    assert memory_limit(sold) == 64 * 2**30
    with pytest.raises(ConfigError, match="cannot compile for v9-4: topology_prefix unknown"):
        machine_devices(sold)
    monkeypatch.setitem(CHIPS, "v9", replace(sold.chip, topology_prefix="v9"))
    with pytest.raises(ConfigError, match="cannot compile for v9-6: bounds of 6 chips unknown"):
        machine_devices(parse_machine("v9-6"))
    monkeypatch.setitem(CHIPS, "z100", Chip("z100", "cuda", ("NVIDIA Z100",), memory=2**30))
    with pytest.raises(ConfigError, match=r"description of z100 .*described are h100, h200"):
        machine_devices(parse_machine("z100-8"))


def test_assumed_values_give_their_reason() -> None:
    for chip in CHIPS.values():
        for name, reason in chip.assumed.items():
            assert getattr(chip, name) is not None, (chip.name, name)
            assert len(reason) > 10
