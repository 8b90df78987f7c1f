"""Attention and the KV cache on a mesh whose devices share the slots of a row, also where a region is empty."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solo.config import ConfigError, MeshConfig, ModelConfig
from solo.model.kv_cache import keys_and_values
from solo.model.placement import local_attention
from solo.model.regions import Regions
from solo.sharding.generation import generation, make_cache
from solo.sharding.mesh import make_mesh
from solo.sharding.placement import placement

CONFIG = ModelConfig(
    width=16, layers=1, heads=4, kv_heads=2, ffn_width=16, attention_implementation="dense", attention_block=8
)
ROWS = 2
SIZES = [(8, 16), (0, 16), (16, 0)]


def regions(rng: np.random.Generator, sizes: tuple[int, int], heads: int) -> Regions:
    return Regions(*(rng.standard_normal((ROWS, size, heads, 4), np.float32) for size in sizes))


@pytest.mark.parametrize("sizes", SIZES)
def test_attention_on_a_context_axis_is_that_of_one_device(sizes: tuple[int, int]) -> None:
    mesh = make_mesh(MeshConfig(fsdp=2, context=4), jax.devices()[:8])
    rng = np.random.default_rng(0)
    q, k, v = (regions(rng, sizes, heads) for heads in (4, 2, 2))
    ends = rng.integers(0, 17, (ROWS, sum(sizes), 2)).astype(np.int32)
    attend = np.stack([0 * ends[..., 0], ends[..., 0], 0 * ends[..., 1], ends[..., 1]], axis=-1)
    attend = np.minimum(attend, np.array([sizes[0], sizes[0], sizes[1], sizes[1]], np.int32))
    attention = placement(mesh, CONFIG).attention
    found = jax.jit(lambda q, k, v, attend: attention(q, k, v, attend, CONFIG))(q, k, v, attend)
    expected = local_attention(q, k, v, jnp.asarray(attend), CONFIG)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert sum(float(np.abs(part).sum()) for part in expected) > 1


@pytest.mark.parametrize("sizes", SIZES)
def test_a_cache_on_a_context_axis_gets_the_keys_of_all_devices(sizes: tuple[int, int]) -> None:
    mesh = make_mesh(MeshConfig(fsdp=2, context=4), jax.devices()[:8])
    rng = np.random.default_rng(0)
    k, v = (regions(rng, sizes, 2) for _ in range(2))
    empty = make_cache(mesh, CONFIG, ROWS, *sizes)
    found = jax.jit(generation(mesh, CONFIG).prefill.append)(empty, np.int32(0), k, v)
    for part, wanted in zip(keys_and_values(found, np.int32(0)), (k, v), strict=True):
        for one, other in zip(part, wanted, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_tensor_axis_divides_the_key_heads_of_every_type_of_layers() -> None:
    types = {"layer_types": [{"name": "near"}, {"name": "far", "kv_heads": 1}], "layer_pattern": ["near", "far"]}
    config = ModelConfig.model_validate({**CONFIG.model_dump(), **types, "layers": 2}, strict=False)
    with pytest.raises(ConfigError, match=r"mesh\.tensor 2 does not divide kv_heads of far in model\.layer_types, 1"):
        placement(make_mesh(MeshConfig(tensor=2), jax.devices()[:2]), config)
