"""Models whose layers are of several types: every way to compute them, their FLOPs, their plan, and their masks.

`tests/interop/test_gemma4_unified.py` compares such a model with the code of transformers.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solo.config import LossConfig, MeshConfig, ModelConfig, StageConfig, parse_config
from solo.data.planning.row_shape import RowShape
from solo.data.rows.assembly import assemble_row, stack
from solo.model.count import count_parameters
from solo.model.flops import batch_stats, step_flops, type_shares
from solo.model.parameters import ModelDefinition
from solo.model.placement import Placement
from solo.planning.flops import planned_flops
from solo.planning.memory import hand_count
from solo.planning.rows import stated_rows
from solo.sharding.mesh import device_batch, make_mesh, parameter_shardings
from solo.sharding.placement import training_placement
from solo.training.losses import batch_loss, normalised_weights
from tests.reference import random_document

VOCAB, WINDOW = 50, 5
# Two runs of sliding layers in the first five layers, and a part of the pattern at the end.
MODEL = {
    "width": 32,
    "layers": 5,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 8,
    "ffn_width": 48,
    "ffn": "geglu",
    "vocab_size": VOCAB,
    "init_std": 0.2,
    "attention_block": 16,
    "attention_implementation": "dense",
    "qk_norm": "rms",
    "norm_placement": "sandwich",
    "value_norm": "rms",
    "logit_softcap": 5.0,
    "layer_scalar": True,
    "layer_types": [
        {"name": "sliding"},
        {"name": "full", "head_dim": 16, "kv_heads": 1, "rope_fraction": 0.5, "keys_are_values": True},
    ],
    "layer_pattern": ["full", "sliding", "sliding"],
}
MASKS = [
    {"layer_type": "sliding", "image": "bidirectional", "sliding_window": WINDOW, "window_limits": "all"},
    {"layer_type": "full"},
]


def make(**model):
    sections = {"image": {"patch_size": 2, "max_side": 64}, "sequence": {"layer_masks": MASKS}}
    config = parse_config({"name": "typed", "model": {**MODEL, **model}, **sections})
    return config, ModelDefinition(config.model, config.image, VOCAB)


@pytest.fixture(scope="module")
def batch():
    config, _ = make()
    rng = np.random.default_rng(3)
    documents = [random_document(rng, VOCAB, patch_size=2, parts=parts) for parts in (6, 3, 5)]
    shape = RowShape(64, 80, 64)
    row = assemble_row([(document, 0) for document in documents], shape, config.image, 0, config.sequence)
    return stack([row])


def loss_and_grads(definition: ModelDefinition, parameters, batch):
    def loss(parameters):
        weighted = batch._replace(target_weights=normalised_weights(jnp.asarray(batch.target_weights), LossConfig()))
        return batch_loss(definition, Placement(), parameters, weighted, LossConfig(chunk_size=24))[0]

    return jax.jit(jax.value_and_grad(loss))(parameters)


@pytest.fixture(scope="module")
def expected(batch):
    _, definition = make()
    parameters = jax.jit(definition.initialise)(jax.random.key(1))
    return parameters, *loss_and_grads(definition, parameters, batch)


@pytest.mark.parametrize(
    "ways",
    [
        {"attention_implementation": "blocks", "remat": "projections"},
        {"attention_implementation": "pallas"},
        {"scan_layers": False, "remat": "full"},
    ],
)
def test_every_way_to_compute_gives_the_same(ways, batch, expected) -> None:
    parameters, wanted_loss, wanted = expected
    loss, gradients = loss_and_grads(make(**ways)[1], parameters, batch)
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-6)
    for path, value in wanted.items():
        scale = max(float(jnp.abs(value).max()), 1e-3)
        np.testing.assert_allclose(gradients[path] / scale, value / scale, atol=2e-5, err_msg=path)
        assert value.any() == (not path.endswith("scalar")), path


@pytest.mark.slow
def test_eight_devices_give_the_gradients_of_one() -> None:
    config, definition = make(layers=3)
    rng, shape = np.random.default_rng(0), RowShape(64, 64, 64)
    documents = [[(random_document(rng, VOCAB, patch_size=2, parts=parts), 0) for parts in (5, 4)] for _ in range(4)]
    rows = stack([assemble_row(row, shape, config.image, 0, config.sequence) for row in documents])
    rows = rows._replace(target_weights=np.asarray(normalised_weights(jnp.asarray(rows.target_weights), LossConfig())))
    parameters = jax.jit(definition.initialise)(jax.random.key(1))

    def on(mesh):
        where = training_placement(mesh, definition.config)
        loss = jax.value_and_grad(lambda weights, rows: batch_loss(definition, where, weights, rows, LossConfig())[0])
        placed = jax.device_put(parameters, parameter_shardings(definition.specs, mesh))
        return jax.device_get(jax.jit(loss)(placed, device_batch(rows, mesh)))

    wanted_loss, wanted = on(make_mesh(MeshConfig(), jax.devices()[:1]))
    loss, gradients = on(make_mesh(MeshConfig(data=2, fsdp=2, context=2)))
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-6)
    for path, value in wanted.items():
        scale = max(float(np.abs(value).max()), 1e-3)
        np.testing.assert_allclose(gradients[path] / scale, value / scale, atol=2e-5, err_msg=path)


def test_layers_are_applied_in_the_order_of_the_pattern(batch, expected) -> None:
    config, definition = make()
    assert config.model.type_of_each_layer == ("full", "sliding", "sliding", "full", "sliding")
    model = definition.bind(expected[0])
    probed = model.hidden(batch, probe=lambda x: x.join()).probed
    one_by_one = model.residual_stream(batch)[1:]
    assert len(one_by_one) == len(probed) == 5
    for number, x in enumerate(one_by_one):
        np.testing.assert_allclose(probed[number], x.join(), atol=2e-5)
    weights = model.attention_weights(batch, jnp.array([70, 71]), jnp.int32(1))  # of a sliding layer
    live = batch.attend[:, [70, 71], 0]
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(
        (weights > 0).sum(-1)[..., 0], (live[..., 1] - live[..., 0] + live[..., 3] - live[..., 2])
    )


def test_flops_and_parameters_are_those_of_each_type(batch) -> None:
    config, definition = make()
    spans = batch.attend[..., 1] - batch.attend[..., 0] + batch.attend[..., 3] - batch.attend[..., 2]
    sliding, full = (int(spans[:, :, kind].sum()) for kind in range(2))
    assert sliding < full
    found = step_flops(definition, batch_stats(batch, type_shares(config.model)))["attention"]
    by_hand = 3 * 2 * 2 * 4 * (3 * 8 * sliding + 2 * 16 * full)
    assert found == pytest.approx(by_hand, rel=1e-3)  # pairs are rounded to whole ones
    counts = {each.name: each.total for each in count_parameters(definition)}
    queries_and_out = 32 * 4 * (3 * 8 + 2 * 16) * 2
    keys_and_values = 32 * (3 * 2 * (2 * 8) + 2 * 16)
    assert counts["attention"] == queries_and_out + keys_and_values + 2 * (3 * 8 + 2 * 16)
    assert counts["norms"] == 32 * (4 * 5 + 1) + 5


def test_a_plan_counts_each_type_of_layer() -> None:
    stage = StageConfig.model_validate_json(
        '{"name": "s", "mixture": {"a": 1.0}, "steps": 1, "batch_rows": 2, "patch_slots": 64, "text_slots": 64,'
        ' "target_slots": 64, "optimizer": {"learning_rate": 1e-3}}'
    )
    config, definition = make(remat="attention")
    work = planned_flops(config, stage, definition, stated_rows(stage))
    assert 0 < sum(work.useful.values()) < sum(work.computed.values())
    wide = make(remat="attention", layer_pattern=["full", "full", "sliding"])
    memory, more = (
        hand_count(each[0], stage, each[1], stated_rows(stage).shape, 1) for each in ((config, definition), wide)
    )
    assert memory.saved < more.saved


def test_masks_of_a_type() -> None:
    """Against the rule itself: an image sees all of itself, but nothing before the window."""
    config, _ = make()
    rng = np.random.default_rng(0)
    document = random_document(rng, VOCAB, patch_size=2, parts=4)
    shape = RowShape(32, 64, 32)
    attend = assemble_row([(document, 0)], shape, config.image, 0, config.sequence).attend
    is_patch = document.tokens == -1
    place = np.arange(len(is_patch))
    slots = np.where(is_patch, np.cumsum(is_patch) - 1, 32 + np.cumsum(~is_patch) - 1)
    region = np.where(is_patch, np.cumsum(is_patch) - 1, np.cumsum(~is_patch) - 1)
    for kind in range(2):
        a0, a1, a2, a3 = (attend[slots, kind, at][:, None] for at in range(4))
        seen = np.where(is_patch, (region >= a0) & (region < a1), (region >= a2) & (region < a3))
        image = (document.image[:, None] == document.image) & (document.image >= 0)
        wanted = place <= place[:, None]
        if kind == 0:
            wanted = (wanted | image) & (place > place[:, None] - WINDOW)
        np.testing.assert_array_equal(seen, wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_pattern": ["full", "wide"]}, "names wide, which is not one of layer_types: sliding, full"),
        ({"layer_pattern": ["full"]}, "has sliding, which no layer of layer_pattern is"),
        ({"layer_types": [{"name": "full"}, {"name": "full"}]}, "has a name twice"),
        (
            {"layer_types": [{"name": "sliding", "kv_heads": 3}, {"name": "full"}]},
            "sliding: .*not a multiple of kv_heads 3",
        ),
        ({"keys_are_values": True, "bias": "qkv"}, "keys_are_values goes with bias: none"),
        ({"rope_pairs": "head", "rope_sections": [1, 1, 2]}, "rope_pairs: head goes with none"),
        ({"parametrisation": {"kind": "mup", "base_width": 32, "base_head_dim": 8}}, "base_head_dim is one number"),
    ],
)
def test_types_that_do_not_fit_are_refused(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.model_validate_json(json.dumps({**MODEL, **change}))


def test_every_type_needs_a_mask() -> None:
    with pytest.raises(ValueError, match=r"layer_masks is for the layer types \[\], and model.layer_types has"):
        parse_config({"name": "typed", "model": MODEL})
