"""Products on one CPU against the plain ones: values and gradients, for one weight and for several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from solo.config import MeshConfig, ModelConfig
from solo.model.dense import Dense, dense, dense_on_cpu
from solo.model.regions import Regions
from solo.sharding.mesh import make_mesh
from solo.sharding.placement import placement

# Shapes of the weights that read the same inputs, and how many of their axes are inputs.
GROUPS = {
    "into the FFN": ([(8, 20), (8, 20)], 1),
    "out of the FFN": ([(20, 8)], 1),
    "into the heads": ([(8, 4, 3), (8, 2, 3), (8, 2, 3)], 1),
    "out of the heads": ([(4, 3, 8)], 2),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("group", GROUPS)
def test_values_and_gradients_are_those_of_plain_products(group: str, dtype: str) -> None:
    shapes, inputs = GROUPS[group]
    rng = np.random.default_rng(0)
    weights = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    x = Regions(*(jnp.asarray(rng.normal(size=(2, n, *shapes[0][:inputs])), dtype) for n in (6, 5)))

    def result(product: Dense) -> tuple:
        def loss(x: Regions, weights: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
            found = product(x, *(nnx.Param(weight, inputs=inputs) for weight in weights))
            leaves = jax.tree.leaves(found)
            return sum(jnp.sum(jnp.sin(leaf.astype(jnp.float32))) for leaf in leaves), leaves

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, weights)

    found, expected = result(dense_on_cpu), result(dense)
    tolerance = 1e-5 if dtype == "float32" else 3e-2
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (left.shape, left.dtype) == (right.shape, right.dtype)
        np.testing.assert_allclose(left.astype(np.float32), right.astype(np.float32), rtol=tolerance, atol=tolerance)


def test_one_cpu_device_has_the_products_for_a_cpu() -> None:
    config = ModelConfig(width=8, layers=1, heads=2, kv_heads=2, ffn_width=8)
    assert placement(make_mesh(MeshConfig(), jax.devices()[:1]), config).dense is dense_on_cpu
