"""What a stage takes over from the one before."""

import jax
import jax.numpy as jnp
import numpy as np

from solo.config import OptimizerConfig
from solo.model.parameters import ParameterSpec
from solo.training.optimizer import carry_state, decays, make_optimizer

SPECS = {name: ParameterSpec((3, 4), ("embed", "ffn")) for name in ("a", "b")}


def test_moments_are_carried_for_what_both_stages_train_and_start_at_zero_for_the_rest() -> None:
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1.0), SPECS)
    before = {"a": jnp.ones((3, 4))}
    _, previous = optimizer.update({"a": jnp.full((3, 4), 2.0)}, optimizer.init(before), before)
    fresh = optimizer.init({"a": jnp.ones((3, 4)), "b": jnp.ones((3, 4))})
    carried = {
        jax.tree_util.keystr(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(carry_state(fresh, previous))
    }
    expected = {jax.tree_util.keystr(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(previous)}
    assert len(expected) == 3
    for path, leaf in carried.items():
        np.testing.assert_array_equal(leaf, expected.get(path, jnp.zeros((3, 4))), err_msg=path)
    assert any(leaf.any() for leaf in carried.values())


def test_weight_decay_spares_norms_biases_and_embeddings() -> None:
    assert decays("layers/ffn/text/up", ParameterSpec((2, 3, 4), ("layers", "embed", "ffn")))
    assert not decays("layers/ffn_norm/shared/scale", ParameterSpec((2, 3), ("layers", "norm")))
    assert not decays("patch_bias", ParameterSpec((3,), ("norm",)))
    assert not decays("text_embed", ParameterSpec((9, 3), ("vocab", "embed")))
