"""Carried optimizer state, weight decay, trained parameters."""

import jax
import jax.numpy as jnp
import optax
import pytest

from solo.config import ModelConfig, OptimizerConfig, StageConfig
from solo.model.declare import ParameterSpec
from solo.model.parameters import ModelDefinition
from solo.training.groups import trainable_paths
from solo.training.optimizer import carry_state, decays, make_optimizer
from tests.tiny import MODEL, tiny_config

SPECS = {name: ParameterSpec((3, 4), ("embed", "ffn"), "ffn", "hidden") for name in ("a", "b")}


def is_adam(node) -> bool:
    return isinstance(node, optax.ScaleByAdamState)


def updates(optimizer, state, gradients: list[float], *paths: str):
    """The directions of every step, and the state after the last. Each gradient is the same for all parameters."""
    found = []
    for gradient in gradients:
        grads = {path: jnp.full((3, 4), gradient) for path in paths}
        directions, state = optimizer.update(grads, state, jax.tree.map(jnp.zeros_like, grads))
        found.append({path: float(value[0, 0]) for path, value in directions.items()})
    return found, state


@pytest.mark.parametrize("carried_before", [False, True])
def test_a_carried_parameter_goes_on_exactly_and_a_new_one_takes_a_first_step(carried_before: bool) -> None:
    config = OptimizerConfig(learning_rate=1.0, beta2=0.999, weight_decay=0.0, clip_norm=None)
    model = ModelConfig(**MODEL)
    carries = make_optimizer(config, SPECS, model, carries=True)
    previous = carries if carried_before else make_optimizer(config, SPECS, model)
    before, after = [0.5, -1.0, 2.0] * 20, [1.0, -0.25]
    # "a" alone, without any stages, and "b" alone from its own first step.
    expected_a, _ = updates(carries, carries.init({"a": jnp.zeros((3, 4))}), [*before, *after], "a")
    expected_b, _ = updates(carries, carries.init({"b": jnp.zeros((3, 4))}), after, "b")
    _, state = updates(previous, previous.init({"a": jnp.zeros((3, 4))}), before, "a")
    fresh = carries.init({path: jnp.zeros((3, 4)) for path in ("a", "b")})
    found, last = updates(carries, carry_state(fresh, state), after, "a", "b")
    assert [step["a"] for step in found] == [step["a"] for step in expected_a[len(before) :]]
    assert [step["b"] for step in found] == [step["b"] for step in expected_b]
    # Adam's first step is the gradient's sign; under the count of "a" it would be 2.94 times that.
    assert found[0]["b"] == pytest.approx(1.0, rel=1e-3)
    (adam,) = (node for node in jax.tree.leaves(last, is_leaf=is_adam) if is_adam(node))
    assert {path: int(count) for path, count in adam.count.items()} == {"a": 62, "b": 2}


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        ("layers/ffn/text/up", ["matrices", "matrices_and_embeddings", "all"]),
        ("layers/qkv/text/k", ["matrices", "matrices_and_embeddings", "all"]),
        ("patch_embed/out/kernel", ["matrices", "matrices_and_embeddings", "all"]),
        ("head", ["matrices", "matrices_and_embeddings", "all"]),
        ("text_embed", ["matrices_and_embeddings", "all"]),
        ("patch_embed/positions", ["matrices_and_embeddings", "all"]),
        ("patch_embed/class_token", ["all"]),
        ("layers/ffn_norm/shared/scale", ["all"]),
        ("layers/qkv/text/q_bias", ["all"]),
        ("patch_embed/inner/bias", ["all"]),
        ("layers/scalar", []),
    ],
)
def test_weight_decay_spares_norms_biases_and_embeddings(path, kinds) -> None:
    embed = {"kind": "grid", "inner_size": 4, "inner_width": 8, "grid_side": 2, "class_slot": True}
    config = ModelConfig.model_validate({**MODEL, "bias": "qkv", "patch_embed": embed, "layer_scalar": True})
    spec = ModelDefinition(config, tiny_config().image, 100).specs[path]
    assert [kind for kind in ("matrices", "matrices_and_embeddings", "all") if decays(spec, kind)] == kinds


def test_a_component_is_trained_by_its_name() -> None:
    paths = ["patch_embed/kernel", "patch_embed/bias", "patch_embedding", "layers/ffn/patches/up"]
    stage = StageConfig(
        name="s",
        mixture={"a": 1.0},
        steps=1,
        batch_rows=1,
        optimizer=OptimizerConfig(learning_rate=1.0),
        train=("patch_embed",),
    )
    assert trainable_paths(paths, stage) == ["patch_embed/bias", "patch_embed/kernel"]
