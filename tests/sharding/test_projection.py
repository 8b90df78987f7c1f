"""Products over eight devices, against those on one: values, gradients, and how often a gradient travels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from solo.config import MeshConfig
from solo.model.modules import Parts, Weight, local_project
from solo.sharding.mesh import TABLE, make_mesh, partition
from solo.sharding.projection import project_on

ROWS, PATCHES, TEXT, WIDTH, HEADS, DIM, FFN = 8, 12, 4, 16, 4, 6, 40
MESHES = {
    "fsdp": MeshConfig(fsdp=8),
    "data, fsdp and tensor": MeshConfig(data=2, fsdp=2, tensor=2),
    "replica, context and tensor": MeshConfig(replica=2, context=2, tensor=2),
    "fsdp that does not divide the width": MeshConfig(fsdp=8),
    "tensor that does not divide the FFN": MeshConfig(fsdp=2, tensor=4),
}
WIDTHS = {"fsdp that does not divide the width": 20}
FFNS = {"tensor that does not divide the FFN": 42}
# Axes of the inputs and of the outputs of every weight; two weights are handed over together.
GROUPS: dict[str, list[tuple[tuple[str, ...], int]]] = {
    "into the FFN": [(("embed", "ffn"), 1), (("embed", "ffn"), 1)],
    "out of the FFN": [(("ffn", "embed"), 1)],
    "into the heads": [(("embed", "heads", "head_dim"), 1), (("embed", "kv_heads", "head_dim"), 1)],
    "out of the heads": [(("heads", "head_dim", "embed"), 2)],
}


def case(name: str, group: str) -> tuple[Mesh, Parts, list[Weight]]:
    """Two parts and the weights of a group, where they lie on the mesh."""
    mesh = make_mesh(MESHES[name], jax.devices()[:8])
    sizes = {
        "embed": WIDTHS.get(name, WIDTH),
        "ffn": FFNS.get(name, FFN),
        "heads": HEADS,
        "kv_heads": 4,
        "head_dim": DIM,
    }
    rng = np.random.default_rng(0)
    weights = []
    for axes, inputs in GROUPS[group]:
        shape = tuple(sizes[axis] for axis in axes)
        value = jax.device_put(
            rng.standard_normal(shape, np.float32), NamedSharding(mesh, partition(axes, shape, mesh))
        )
        weights.append(Weight(value, axes, inputs))
    of_inputs = [sizes[axis] for axis in weights[0].axes[: weights[0].inputs]]
    slots = NamedSharding(mesh, PartitionSpec(TABLE["rows"], TABLE["slots"]))
    parts = tuple(
        jax.device_put(rng.standard_normal((ROWS, count, *of_inputs), np.float32), slots) for count in (PATCHES, TEXT)
    )
    return mesh, parts, weights


def loss(project: Any, parts: Parts, values: Sequence[jax.Array], weights: Sequence[Weight]) -> jax.Array:
    """A number that depends on every product otherwise."""
    products = project(parts, [each._replace(value=value) for each, value in zip(weights, values, strict=True)])
    return sum((number + 1) * jnp.sum(jnp.sin(product)) for number, product in enumerate(jax.tree.leaves(products)))  # type: ignore[return-value]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_computes_what_one_device_does(name: str, group: str) -> None:
    mesh, parts, weights = case(name, group)
    values = [each.value for each in weights]

    def on_mesh(parts: Parts, weights: Sequence[Weight]) -> tuple[Parts, ...]:
        return project_on(mesh, parts, weights)

    found = jax.jit(jax.value_and_grad(lambda p, v: loss(on_mesh, p, v, weights), (0, 1)))(parts, values)
    here, there = jax.device_get((parts, values))
    expected = jax.value_and_grad(lambda p, v: loss(local_project, p, v, weights), (0, 1))(here, there)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max())
    for gradient, value in zip(found[1][1], values, strict=True):
        assert gradient.sharding.is_equivalent_to(value.sharding, value.ndim)


def test_a_gradient_travels_once_and_is_scattered() -> None:
    mesh, parts, weights = case("fsdp", "into the FFN")

    def on_mesh(parts: Parts, weights: Sequence[Weight]) -> tuple[Parts, ...]:
        return project_on(mesh, parts, weights)

    gradient = jax.jit(jax.grad(lambda v: loss(on_mesh, parts, v, weights)))
    text = gradient.lower([each.value for each in weights]).compile().as_text()
    kinds = re.findall(r"(f32\[[0-9,]*\])\S* (all-reduce|reduce-scatter)\(", text)
    # One for each weight, though each is in two products.
    assert sorted(kinds) == [(f"f32[{WIDTH // 8},{FFN}]", "reduce-scatter")] * 2
