"""Mesh axes follow the torus of TPUs, and the rows of processes follow the mesh."""

import importlib.util
from itertools import combinations

import jax
import numpy as np
import pytest

from solo.config import ConfigError, MeshConfig
from solo.machines import parse_machine
from solo.planning.topology import machine_devices
from solo.sharding.hosts import process_rows
from solo.sharding.mesh import make_mesh

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (extra tpu)")


def test_devices_without_a_torus_keep_their_order() -> None:
    devices = jax.devices()[:8]
    mesh = make_mesh(MeshConfig(fsdp=2, context=2, tensor=2), devices)
    assert list(mesh.devices.flat) == devices


@needs_libtpu
@pytest.mark.parametrize(
    ("on", "sizes"),
    [
        ("v5e-256", {"tensor": 16}),
        ("v5e-256", {"fsdp": 16, "data": 16}),
        ("v5p-128", {"tensor": 4}),
        ("v5p-128", {"context": 4, "tensor": 4}),
    ],
)
def test_neighbours_along_an_axis_are_neighbours_on_the_torus(on: str, sizes: dict[str, int]) -> None:
    machine = parse_machine(on)
    mesh = make_mesh(MeshConfig(**{"fsdp": -1, **sizes}), machine_devices(machine))
    sides = [int(side) for side in (machine.topology or "").split("x")]
    for axis in sizes:
        lines = np.moveaxis(mesh.devices, mesh.axis_names.index(axis), -1).reshape(-1, mesh.shape[axis])
        for line in lines:
            for one, other in zip(line, np.roll(line, 1), strict=True):
                hops = [abs(a - b) for a, b in zip(one.coords, other.coords, strict=False)]
                assert sum(min(hop, side - hop) for hop, side in zip(hops, sides, strict=False)) == 1


@needs_libtpu
@pytest.mark.parametrize("on", ["v5e-16", "v5e-256", "v6e-64", "v5p-128", "v5p-384", "tpu7x-128"])
@pytest.mark.parametrize("sizes", [{}, {"tensor": 2}, {"context": 4}, {"tensor": 8}, {"data": 2, "tensor": 4}], ids=str)
def test_every_process_holds_as_many_rows_and_shares_all_or_none(on: str, sizes: dict[str, int]) -> None:
    held = process_rows(make_mesh(MeshConfig(**sizes), machine_devices(parse_machine(on))).devices)
    assert len({len(rows) for rows in held.values()}) == 1
    assert all(one == other or not one & other for one, other in combinations(set(held.values()), 2))


@needs_libtpu
def test_only_the_outermost_axis_spans_slices() -> None:
    devices = machine_devices(parse_machine("v5e-16", slices=2))
    for sizes, spanning in (({"replica": 2}, 0), ({"data": 4}, 1), ({}, 2)):
        slices = np.vectorize(lambda device: device.slice_index)(make_mesh(MeshConfig(**sizes), devices).devices)
        halves = np.split(slices, 2, axis=spanning)
        assert {len(np.unique(half)) for half in halves} == {1}
    four = machine_devices(parse_machine("v5e-8", slices=4))
    with pytest.raises(ConfigError, match=r"no axis is a multiple of the 4 slices; set mesh.replica=4"):
        make_mesh(MeshConfig(replica=2, data=2, fsdp=2, context=2, tensor=2), four)
