"""Rematerialisation policies: the same gradients from less and less memory."""

from itertools import pairwise
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solo.config import ExpertsConfig, ImageConfig, MeshConfig, ModelConfig
from solo.data.planning.row_shape import RowShape
from solo.data.rows.assembly import assemble_row, stack
from solo.model.parameters import ModelDefinition
from solo.model.placement import Placement
from solo.sharding.mesh import make_mesh
from solo.sharding.placement import placement
from tests.reference import random_document

POLICIES = get_args(ModelConfig.model_fields["remat"].annotation)
IMAGE = ImageConfig(patch_size=2, max_side=64)


def compiled(remat: str, parameters: dict, batch):
    config = ModelConfig(
        width=32, layers=6, heads=4, kv_heads=2, ffn_width=96, experts=ExpertsConfig(ffn="modality"),
        attention_block=16, init_std=0.2, remat=remat,
    )  # fmt: skip
    definition = ModelDefinition(config, IMAGE, 50)

    def loss(parameters, batch):
        return jnp.sum(jnp.square(definition.bind(parameters).hidden(batch).hidden.join())) / 1000

    return jax.jit(jax.grad(loss)).lower(parameters, batch).compile()


@pytest.mark.slow
def test_each_policy_keeps_less_than_the_one_before_and_no_gradient_changes() -> None:
    rng = np.random.default_rng(0)
    documents = [(random_document(rng, 50, patch_size=2, parts=4), 0) for _ in range(2)]
    batch = stack([assemble_row(documents, RowShape(64, 96, 16), IMAGE, 0)])
    model = ModelConfig(
        width=32, layers=6, heads=4, kv_heads=2, ffn_width=96, experts=ExpertsConfig(ffn="modality"), init_std=0.2
    )
    parameters = ModelDefinition(model, IMAGE, 50).initialise(jax.random.key(0))
    held, expected = {}, None
    for remat in POLICIES:
        gradient = compiled(remat, parameters, batch)
        held[remat] = gradient.memory_analysis().temp_size_in_bytes
        found = gradient(parameters, batch)
        expected = expected or found
        for path, value in expected.items():
            scale = float(np.abs(value).max())
            np.testing.assert_allclose(found[path] / scale, value / scale, atol=1e-5, rtol=0, err_msg=f"{remat} {path}")
    shrinking = [held[remat] for remat in ("none", "dots", "projections", "attention", "full")]
    layer_input = 160 * 32 * 4 * model.layers
    assert all(more - less > layer_input / 2 for more, less in pairwise(shrinking)), held


@pytest.mark.parametrize("remat", POLICIES)
def test_a_mesh_recomputes_as_much_as_one_device(remat: str) -> None:
    """The names that a policy looks for must be visible outside the products on a mesh."""
    config = ModelConfig(
        width=32, layers=2, heads=4, kv_heads=2, ffn_width=96, attention_implementation="dense", remat=remat
    )
    definition = ModelDefinition(config, IMAGE, 50)
    rng = np.random.default_rng(0)
    row = assemble_row([(random_document(rng, 50, patch_size=2, parts=4), 0)], RowShape(64, 96, 16), IMAGE, 0)
    batch = stack([row] * 4)
    parameters = {path: spec.abstract() for path, spec in definition.specs.items()}

    def products(where: Placement) -> int:
        def loss(parameters, batch):
            return jnp.sum(jnp.square(definition.bind(parameters).hidden(batch, where).hidden.join()))

        return str(jax.make_jaxpr(jax.grad(loss))(parameters, batch)).count("dot_general[")

    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2), jax.devices()[:8])
    assert products(placement(mesh, config)) == products(Placement())
