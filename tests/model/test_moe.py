"""Experts with a learned router: held against a loop over slots, on one device and on meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solo.config import ExpertsConfig, LossConfig, MeshConfig, MoEConfig
from solo.data.planning.row_shape import RowShape
from solo.data.rows.assembly import stack
from solo.model.moe import ExpertWeights, routed_ffn
from solo.model.parameters import ModelDefinition
from solo.model.placement import Placement
from solo.model.regions import Regions
from solo.sharding.mesh import device_batch, make_mesh, parameter_shardings
from solo.sharding.placement import placement
from solo.training.losses import batch_loss, normalised_weights
from tests.model.test_transformer import make, pack
from tests.reference import random_document

D, E, F = 8, 4, 6
SETTINGS = MoEConfig(count=E, top_k=2, width=F)


def weights(seed: int = 0) -> ExpertWeights:
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = (D, E), (E, D, F), (E, D, F), (E, F, D)
    return ExpertWeights(*(0.5 * jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)))


def slots(seed: int = 1) -> tuple[Regions, Regions]:
    keys = jax.random.split(jax.random.key(seed), 4)
    x = Regions(jax.random.normal(keys[0], (2, 3, D)), jax.random.normal(keys[1], (2, 5, D)))
    return x, Regions(jax.random.uniform(keys[2], (2, 3)) < 0.7, jax.random.uniform(keys[3], (2, 5)) < 0.7)


def one_by_one(x_ND: jax.Array, found: ExpertWeights, top_k: int) -> jax.Array:
    """One slot at a time, with every expert on it."""

    def one(x):
        probability = jax.nn.softmax(x @ found.router)
        chosen = jnp.argsort(-probability)[:top_k]
        share = probability[chosen] / (probability[chosen].sum() if top_k > 1 else 1)
        each = jnp.stack([(jax.nn.silu(x @ g) * (x @ u)) @ d for g, u, d in zip(*found[1:], strict=True)])
        return share @ each[chosen]

    return jax.lax.map(one, x_ND)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_no_slot_is_dropped_and_each_uses_its_experts(top_k) -> None:
    (x, live), found = slots(), weights()
    out, load = jax.jit(routed_ffn, static_argnums=3)(x, live, found, top_k)
    flat = x.join().reshape(-1, D)
    np.testing.assert_allclose(out.join().reshape(-1, D), one_by_one(flat, found, top_k), atol=1e-5)
    assert load.slots == live.join().sum()
    assert load.chosen.sum() == top_k * load.slots
    np.testing.assert_allclose(load.probability.sum(), load.slots, rtol=1e-6)


def test_gradients_equal_those_of_the_loop() -> None:
    (x, live), found = slots(), weights()
    flat = x.join().reshape(-1, D)

    def sparse(found: ExpertWeights, x: Regions) -> jax.Array:
        return jnp.sum(jnp.sin(routed_ffn(x, live, found, 2)[0].join()))

    grads = jax.jit(jax.grad(sparse, argnums=(0, 1)))(found, x)
    loop = jax.jit(jax.grad(lambda f, x: jnp.sum(jnp.sin(one_by_one(x, f, 2))), argnums=(0, 1)))
    expected = loop(found, flat)
    for got, wanted in zip(grads[0], expected[0], strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5)
    np.testing.assert_allclose(grads[1].join().reshape(-1, D), expected[1], atol=2e-5)


def definition() -> ModelDefinition:
    return make(ExpertsConfig(ffn="moe"), "causal", moe=SETTINGS)


def test_the_balancing_loss_is_one_for_an_even_load_and_grows_with_its_weight() -> None:
    model = definition()
    parameters = jax.jit(model.initialise)(jax.random.key(0))
    even = {**parameters, "layers/ffn/moe/router": jnp.zeros_like(parameters["layers/ffn/moe/router"])}
    row = stack([pack([random_document(np.random.default_rng(0), 50, 2)], model, RowShape(32, 40, 32))])
    # With equal probabilities E x sum(share x 1/E) = 1 for any choice.
    auxiliary = jax.jit(lambda parameters: model.bind(parameters).hidden(row).auxiliary)
    assert auxiliary(even) == pytest.approx(1.0, rel=1e-5)
    assert auxiliary(parameters) > 1.0

    @jax.jit
    def loss(share: jax.Array) -> jax.Array:
        config = LossConfig()
        weighted = row._replace(target_weights=normalised_weights(jnp.asarray(row.target_weights), config))
        return batch_loss(model, Placement(), parameters, weighted, config, share=share)[0]

    expected = SETTINGS.auxiliary_weight * float(auxiliary(parameters))
    assert float(loss(1.0)) - float(loss(0.0)) == pytest.approx(expected, rel=1e-2)


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.mark.parametrize("sizes", [{"fsdp": 2, "tensor": 2, "context": 2}, {"data": 2, "fsdp": 4}])
def test_a_mesh_computes_the_same(sizes) -> None:
    model = definition()
    parameters = jax.jit(model.initialise)(jax.random.key(0))
    documents = [random_document(np.random.default_rng(seed), 50, 2) for seed in range(8)]
    batch = stack([pack([document], model, RowShape(32, 40, 32)) for document in documents])
    batch = batch._replace(target_weights=normalised_weights(jnp.asarray(batch.target_weights), LossConfig()))

    def run(mesh):
        where = placement(mesh, model.config)
        placed = jax.device_put(parameters, parameter_shardings(model.specs, mesh))

        def loss(parameters, batch):
            return batch_loss(model, where, parameters, batch, LossConfig())[0]

        return jax.jit(jax.value_and_grad(loss))(placed, device_batch(batch, mesh))

    loss, grads = run(one_device())
    mesh_loss, mesh_grads = run(make_mesh(MeshConfig(**{"fsdp": 1, **sizes})))
    assert mesh_loss == pytest.approx(float(loss), rel=1e-5)
    for path, gradient in grads.items():
        scale = max(1.0, float(abs(gradient).max()))
        np.testing.assert_allclose(mesh_grads[path], gradient, atol=2e-5 * scale, err_msg=path)
