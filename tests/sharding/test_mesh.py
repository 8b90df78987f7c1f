"""Mesh axes follow the torus of TPUs, and the rows of processes follow the mesh."""

import importlib.util
from itertools import combinations

import jax
import numpy as np
import pytest

from solo.config import ConfigError, MeshConfig
from solo.machines import parse_machine
from solo.planning.topology import machine_devices, slice_mesh
from solo.sharding.axes import mesh_sizes, slices_spanned
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


@needs_libtpu
def test_two_axes_span_slices_where_one_is_too_small() -> None:
    devices = machine_devices(parse_machine("v5e-8", slices=4))
    mesh = make_mesh(MeshConfig(replica=2, data=2), devices)
    assert (np.vectorize(lambda device: device.slice_index)(mesh.devices).reshape(4, 8) == np.arange(4)[:, None]).all()


@pytest.mark.parametrize(
    ("mesh", "slices", "spanned"),
    [
        ({"replica": 2}, 2, {"replica": 2}),
        ({"replica": 3, "data": 4}, 2, {"data": 2}),
        ({"replica": 4, "data": 4}, 8, {"replica": 4, "data": 2}),
        ({}, 4, {"fsdp": 4}),
    ],
)
def test_the_outermost_axes_span_slices(mesh: dict[str, int], slices: int, spanned: dict[str, int]) -> None:
    sizes = mesh_sizes(MeshConfig(**mesh), 96)
    assert {axis: size for axis, size in slices_spanned(sizes, slices).items() if size > 1} == spanned


def test_slices_that_no_axes_can_span_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"the axes cannot span the 3 slices; set mesh\.replica=3"):
        slices_spanned(mesh_sizes(MeshConfig(), 16), 3)


@pytest.mark.parametrize(
    ("mesh", "replica"),
    [
        ({}, 2),
        ({"fsdp": 4, "tensor": 2}, 2),
        ({"data": 2, "fsdp": 4, "tensor": 2}, 1),
        ({"replica": 2, "data": 3}, None),
        ({"replica": -1, "fsdp": 8}, -1),
        ({"data": -1, "fsdp": 8}, 1),
    ],
)
def test_a_plan_over_slices_keeps_a_mesh_whose_outer_axes_span_them(mesh: dict[str, int], replica: int | None) -> None:
    machine = parse_machine("v5e-8", slices=2)
    if replica is None:
        with pytest.raises(ConfigError, match=r"does not make 16 devices|not a multiple of 2 slices"):
            mesh_sizes(slice_mesh(MeshConfig(**mesh), machine), machine.devices)
    else:
        assert slice_mesh(MeshConfig(**mesh), machine) == MeshConfig(**{**mesh, "replica": replica})


def test_a_plan_refuses_an_inner_axis_across_slices() -> None:
    with pytest.raises(ConfigError, match=r"replica 3 x mesh\.data 1 is not a multiple of 2 slices.*replica=2"):
        slice_mesh(MeshConfig(replica=3), parse_machine("v5p-384", slices=2))
