"""Products in eight bits against plain ones: values, gradients, which weights they reach, and what is refused."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from solo.config import ConfigError, MeshConfig, ModelConfig, QuantizationConfig, parse_config
from solo.model.dense import Dense, dense
from solo.model.quantized import product, quantized_dense
from solo.model.regions import Regions
from solo.sharding.mesh import make_mesh
from solo.sharding.placement import placement, training_placement
from tests.tiny import MODEL, tiny_config

pytest.importorskip("qwix", reason="pip install 'solo-vlm[quantization]'")

# Shapes of the weights that read the same inputs, their component, and how many of their axes are inputs.
GROUPS = {
    "into the FFN": ([(64, 96), (64, 96)], "ffn", 1),
    "out of the heads": ([(4, 16, 64)], "out", 2),
}
# Root mean square errors relative to the values': rounding to three bits of mantissa (e4m3) or two (e5m2) is off by
# 2.6 or 5.1% of a number on average, rounding to an 8-bit integer by 0.9% of the root mean square of a normal vector.
BOUNDS = {"fp8": {"product": 0.045, "x": 0.07, "weight": 0.07}, "int8": {"product": 0.015, "x": 0.02, "weight": 0.01}}


SLOTS = 48


def _gradient(rng: np.random.Generator, features: tuple[int, ...]) -> np.ndarray:
    """Gradients of slots whose sizes differ by up to 2^8, as in training."""
    sizes = 2.0 ** rng.integers(-4, 5, (2, SLOTS))
    return rng.normal(size=(2, SLOTS, *features)) * sizes.reshape(2, SLOTS, *(1 for _ in features))


def error(found: jax.Array, expected: jax.Array) -> float:
    found, expected = (np.asarray(each, np.float32) for each in (found, expected))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_products_and_gradients_are_within_what_rounding_costs(kind: str, group: str, dtype: str) -> None:
    shapes, component, inputs = GROUPS[group]
    rng = np.random.default_rng(0)
    weights = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    x = Regions(*(jnp.asarray(rng.normal(size=(2, n, *shapes[0][:inputs])), dtype) for n in (SLOTS, 0)))
    signs = [jnp.asarray(_gradient(rng, shape[inputs:]), dtype) for shape in shapes]

    def result(multiply: Dense) -> tuple:
        def loss(x: Regions, weights: list) -> tuple:
            params = [nnx.Param(weight, inputs=inputs, component=component) for weight in weights]
            found = multiply(x, *params)
            products = [each.patches for each in ((found,) if len(params) == 1 else found)]
            sums = [jnp.sum((y * sign).astype(jnp.float32)) for y, sign in zip(products, signs, strict=True)]
            return sum(sums), products

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, weights)

    (_, products), (d_x, d_weights) = result(quantized_dense(QuantizationConfig(kind=kind), dense))
    (_, plain), (plain_x, plain_weights) = result(dense)
    bounds = BOUNDS[kind]
    for found, expected in zip(products, plain, strict=True):
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        assert 1e-4 < error(found, expected) < bounds["product"]
    assert d_x.patches.dtype == x.patches.dtype
    assert 1e-4 < error(d_x.patches, plain_x.patches) < bounds["x"]
    for found, expected in zip(d_weights, plain_weights, strict=True):
        assert found.dtype == jnp.float32
        assert error(found, expected) < bounds["weight"]


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_numbers_that_are_not_finite_stay_so(kind: str) -> None:
    # A step with such a loss is skipped or stops the run: rounding must not hide it.
    weight = jnp.ones((4, 4), jnp.bfloat16)
    for value in (np.nan, np.inf):
        x = jnp.ones((1, 2, 4), jnp.bfloat16).at[0, 0, 0].set(value)
        found = product(kind, x, weight, 1).astype(jnp.float32)
        assert not np.isfinite(found[0, 0]).any()
        np.testing.assert_allclose(found[0, 1], 4.0, rtol=0.01)
    assert not product(kind, jnp.zeros((1, 2, 4), jnp.bfloat16), weight, 1).any()
    small = product(kind, jnp.full((1, 2, 4), 1e-12, jnp.bfloat16), weight, 1)
    np.testing.assert_allclose(small.astype(jnp.float32), 4e-12, rtol=0.02)


def test_other_components_are_multiplied_as_before() -> None:
    weight = nnx.Param(jnp.ones((4, 4)), inputs=1, component="qkv")
    multiply = quantized_dense(QuantizationConfig(kind="int8", components=("ffn",)), lambda x, *weights: "plain")
    assert multiply(jnp.ones((1, 1, 4)), weight) == "plain"


def test_only_training_is_quantised() -> None:
    config = ModelConfig(width=8, layers=1, heads=2, kv_heads=2, ffn_width=8, quantization={"kind": "int8"})
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert training_placement(mesh, config).dense is not placement(mesh, config).dense
    plain = config.model_copy(update={"quantization": QuantizationConfig()})
    assert training_placement(mesh, plain) is placement(mesh, plain)


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"kind": "fp4"}, "model.quantization.kind"),
        ({"kind": "int8", "components": []}, "model.quantization.components"),
        ({"kind": "int8", "components": ["head"]}, "model.quantization.components"),
        ({"kind": "int8", "components": ["ffn", "ffn"]}, "has a duplicate"),
        ({"kinds": "int8"}, "model.quantization.kinds"),
    ],
)
def test_other_values_are_refused(quantization: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(model={**MODEL, "quantization": quantization})


def test_the_experts_of_a_router_are_refused() -> None:
    experts = {**MODEL, "experts": {"ffn": "moe"}, "quantization": {"kind": "int8"}}
    with pytest.raises(ConfigError, match="does not reach the experts of a router"):
        tiny_config(model=experts)
    experts["quantization"]["components"] = ["attention"]
    assert tiny_config(model=experts).model.quantization.kind == "int8"


class _Device:
    """A device that is absent."""

    platform = "tpu"

    def __init__(self, device_kind: str) -> None:
        self.device_kind = device_kind


class _Mesh:
    size, shape = 1, {}

    def __init__(self, device_kind: str) -> None:
        self.devices = np.array([_Device(device_kind)])


def test_chips_without_such_products_are_refused() -> None:
    config = ModelConfig(width=8, layers=1, heads=2, kv_heads=2, ffn_width=8, quantization={"kind": "fp8"})
    with pytest.raises(ConfigError, match="v5e has no such products; choose int8, or set it to none"):
        training_placement(_Mesh("TPU v5 lite"), config)
    with pytest.raises(ConfigError, match="v4 has no such products; set it to none"):
        training_placement(_Mesh("TPU v4"), config)
    assert training_placement(_Mesh("TPU7x"), config).dense


def test_a_missing_library_is_one_line(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "qwix", None)
    config = ModelConfig(width=8, layers=1, heads=2, kv_heads=2, ffn_width=8, quantization={"kind": "fp8"})
    with pytest.raises(ConfigError, match=r"pip install 'solo-vlm\[quantization\]'"):
        training_placement(make_mesh(MeshConfig(), jax.devices()[1:2]), config)


def test_a_config_without_the_section_has_no_quantisation() -> None:
    assert parse_config({"name": "a", "model": MODEL}).model.quantization == QuantizationConfig(kind="none")
