"""The output projection on eight devices against one: values, gradients, and how often it travels."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from solo.config import MeshConfig
from solo.model.placement import called_once
from solo.sharding.head import with_head_on
from solo.sharding.mesh import make_mesh, partition

ROWS, TARGETS, WIDTH, VOCAB, CHUNKS = 8, 12, 16, 40, 3
MESHES = {
    "fsdp": MeshConfig(fsdp=8),
    "replica, data and fsdp": MeshConfig(replica=2, data=2, fsdp=2),
    "fsdp and context": MeshConfig(fsdp=2, context=4),
    "context that does not divide the targets": MeshConfig(fsdp=1, context=8),
}


def losses(x_BYD: jax.Array, ids_BY: jax.Array, kernel_DV: jax.Array) -> jax.Array:
    """A loss for every slot, a third of the slots at a time."""

    def of_chunk(chunk: tuple[jax.Array, jax.Array]) -> jax.Array:
        logits = jnp.matmul(chunk[0], kernel_DV.astype(x_BYD.dtype), preferred_element_type=jnp.float32)
        return jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, chunk[1][..., None], axis=-1)[..., 0]

    chunks = [jnp.stack(jnp.split(array, CHUNKS, axis=1)) for array in (x_BYD, ids_BY)]
    return jnp.concatenate(jax.lax.map(of_chunk, tuple(chunks)), axis=1)


def case(name: str, dtype: Any) -> tuple[Any, tuple[jax.Array, jax.Array, jax.Array]]:
    mesh = make_mesh(MESHES[name], jax.devices()[:8])
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, TARGETS, WIDTH), np.float32).astype(dtype)
    ids = rng.integers(VOCAB, size=(ROWS, TARGETS))
    kernel = rng.standard_normal((WIDTH, VOCAB), np.float32)
    axes = ("rows", None, None), ("rows", None), ("embed", "vocab")
    placed = tuple(
        jax.device_put(value, NamedSharding(mesh, partition(names, value.shape, mesh)))
        for value, names in zip((x, ids, kernel), axes, strict=True)
    )
    return mesh, placed


def value_and_gradients(with_head: Any, arrays: tuple) -> tuple:
    def total(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = with_head(losses, x, arrays[1], kernel)
        return jnp.sum(jnp.sin(jnp.arange(found.size).reshape(found.shape)) * found), found

    return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(arrays[0], arrays[2])


@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_computes_what_one_device_does(name: str) -> None:
    mesh, arrays = case(name, np.float32)
    found = value_and_gradients(lambda *given: with_head_on(mesh, *given), arrays)
    expected = value_and_gradients(called_once, jax.device_get(arrays))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max())
    assert found[1][1].sharding.is_equivalent_to(arrays[2].sharding, 2)


def test_the_projection_is_gathered_once_and_its_gradient_reduced_once() -> None:
    mesh, arrays = case("fsdp", np.float32)
    gradient = jax.jit(jax.grad(lambda kernel: with_head_on(mesh, losses, *arrays[:2], kernel).sum()))
    text = gradient.lower(arrays[2]).compile().as_text()
    kinds = "all-reduce|all-gather|reduce-scatter|collective-permute"
    found = re.findall(rf"(f32\[[0-9,]*\])\S* ({kinds})\(.*replica_groups={{{{0,1", text)
    shard = f"f32[{WIDTH // 8},{VOCAB}]"
    assert sorted(found) == [(f"f32[{WIDTH},{VOCAB}]", "all-gather"), (shard, "reduce-scatter")]
    # Neither is inside the loop over chunks.
    loops = re.findall(r"^%?(\S*body\S*|\S*region\S*) .*?^}", text, re.MULTILINE | re.DOTALL)
    assert not any("all-gather(" in each or "reduce-scatter(" in each for each in loops)


def test_gradients_of_chunks_are_summed_in_float32() -> None:
    """A large gradient of one chunk does not swallow the small ones of the others, as it would in bfloat16."""
    mesh = make_mesh(MESHES["fsdp"], jax.devices()[:8])

    def linear(x_BYD: jax.Array, ids_BY: jax.Array, kernel_DV: jax.Array) -> jax.Array:
        chunks = jnp.stack(jnp.split(x_BYD, 16, axis=1))
        found = jax.lax.map(lambda x: (x @ kernel_DV.astype(x.dtype)).sum(-1), chunks)
        return jnp.concatenate(list(found), axis=1)

    x = np.ones((8, 16, 8), jnp.bfloat16)
    x[0, 0] = 256  # the next larger bfloat16 is 258
    kernel = jnp.zeros((8, 4), jnp.float32)
    ids = np.zeros((8, 16), np.int32)
    gradient = jax.jit(jax.grad(lambda k: with_head_on(mesh, linear, x, ids, k).astype(jnp.float32).sum()))(kernel)
    # 256 + 15 on the first device, rounded to 272, and 16 on each of the seven others.
    np.testing.assert_array_equal(gradient, np.full((8, 4), 384.0))
