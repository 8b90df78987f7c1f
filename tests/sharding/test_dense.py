"""Products on eight devices against those on one: values, gradients, and how often a gradient travels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from solo.config import MeshConfig
from solo.model.dense import Dense, dense
from solo.model.quantized import Kind
from solo.model.regions import Regions
from solo.sharding.dense import dense_on
from solo.sharding.mesh import TABLE, make_mesh, partition

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
# Axes of every weight, and how many of them are inputs; the weights of a group are given together.
GROUPS: dict[str, list[tuple[tuple[str, ...], int]]] = {
    "into the FFN": [(("embed", "ffn"), 1), (("embed", "ffn"), 1)],
    "out of the FFN": [(("ffn", "embed"), 1)],
    "into the heads": [(("embed", "heads", "head_dim"), 1), (("embed", "kv_heads", "head_dim"), 1)],
    "out of the heads": [(("heads", "head_dim", "embed"), 2)],
}


Values = Sequence[jax.Array]


def case(name: str, group: str) -> tuple[Mesh, Regions, list[jax.Array]]:
    """Slots of both regions and the weights of a group, sharded over the mesh."""
    mesh = make_mesh(MESHES[name], jax.devices()[:8])
    sizes = {
        "embed": WIDTHS.get(name, WIDTH),
        "ffn": FFNS.get(name, FFN),
        "heads": HEADS,
        "kv_heads": 4,
        "head_dim": DIM,
    }
    rng = np.random.default_rng(0)
    values = []
    for axes, _ in GROUPS[group]:
        shape = tuple(sizes[axis] for axis in axes)
        value = rng.standard_normal(shape, np.float32)
        values.append(jax.device_put(value, NamedSharding(mesh, partition(axes, shape, mesh))))
    axes, inputs = GROUPS[group][0]
    features = [sizes[axis] for axis in axes[:inputs]]
    slots = NamedSharding(mesh, PartitionSpec(TABLE["rows"], TABLE["slots"]))
    x = Regions(PATCHES, TEXT).map(
        lambda count: jax.device_put(rng.standard_normal((ROWS, count, *features), np.float32), slots)
    )
    return mesh, x, values


def loss(multiply: Dense, group: str, x: Regions, values: Values) -> jax.Array:
    """A number to which every product contributes differently."""
    weights = [
        nnx.Param(value, axes=axes, inputs=inputs) for value, (axes, inputs) in zip(values, GROUPS[group], strict=True)
    ]
    products = jax.tree.leaves(multiply(x, *weights))
    return sum(((number + 1) * jnp.sum(jnp.sin(each)) for number, each in enumerate(products)), jnp.zeros(()))


def linear(multiply: Dense, group: str, x: Regions, values: Values) -> jax.Array:
    """A linear function of the products, so that their errors do not enter their gradients."""
    weights = [
        nnx.Param(value, axes=axes, inputs=inputs) for value, (axes, inputs) in zip(values, GROUPS[group], strict=True)
    ]
    products = jax.tree.leaves(multiply(x, *weights))
    return sum((jnp.sum(each * jnp.cos(jnp.arange(each.size)).reshape(each.shape)) for each in products), jnp.zeros(()))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_computes_what_one_device_does(name: str, group: str) -> None:
    mesh, x, values = case(name, group)

    def on_mesh(x: Regions, *weights: nnx.Param):
        return dense_on(mesh, x, *weights)

    found = jax.jit(jax.value_and_grad(lambda x, v: loss(on_mesh, group, x, v), (0, 1)))(x, values)
    here, there = jax.device_get((x, values))
    expected = jax.value_and_grad(lambda x, v: loss(dense, group, x, v), (0, 1))(here, there)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max())
    for gradient, value in zip(found[1][1], values, strict=True):
        assert gradient.sharding.is_equivalent_to(value.sharding, value.ndim)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("kind", "bound"), [("fp8", 0.09), ("int8", 0.02)])
def test_a_mesh_quantises_what_each_device_multiplies(kind: Kind, bound: float, group: str) -> None:
    pytest.importorskip("qwix", reason="pip install 'solo-vlm[quantization]'")
    mesh, x, values = case("data, fsdp and tensor", group)

    def gradients(kind: Kind) -> tuple:
        multiply = partial(dense_on, mesh, kind=kind)
        return jax.jit(jax.grad(lambda x, v: linear(multiply, group, x, v), (0, 1)))(x, values)

    for one, other in zip(jax.tree.leaves(gradients(kind)), jax.tree.leaves(gradients("none")), strict=True):
        assert np.linalg.norm(one - other) / np.linalg.norm(other) < bound
        assert one.sharding.is_equivalent_to(other.sharding, one.ndim)


def test_a_gradient_travels_once_and_is_scattered() -> None:
    mesh, x, values = case("fsdp", "into the FFN")

    def on_mesh(x: Regions, *weights: nnx.Param):
        return dense_on(mesh, x, *weights)

    gradient = jax.jit(jax.grad(lambda v: loss(on_mesh, "into the FFN", x, v)))
    text = gradient.lower(values).compile().as_text()
    kinds = re.findall(r"(f32\[[0-9,]*\])\S* (all-reduce|reduce-scatter)\(", text)
    # One for each weight, though each is in two products.
    assert sorted(kinds) == [(f"f32[{WIDTH // 8},{FFN}]", "reduce-scatter")] * 2
