"""The two-region model on packed rows against the reference model on each document (tests/reference.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solo.batch import Batch
from solo.config import ExpertsConfig, ImageConfig, LossConfig, ModelConfig, PatchEmbedConfig, SequenceConfig
from solo.data.planning.row_shape import RowShape
from solo.data.rows.assembly import assemble_row, stack
from solo.model.parameters import ModelDefinition
from solo.model.placement import Placement
from solo.training.losses import batch_loss, normalised_weights
from tests.reference import NEO, NEO_UNIFY, forward, loss_sum, random_document

VOCAB = 50
SHARED = ExpertsConfig()
VISUAL_FFN = ExpertsConfig(ffn="modality")
ALL_EXPERTS = ExpertsConfig(ffn="modality", qkv="modality", out="modality", norms="modality")


def make(experts: ExpertsConfig, mode: str, **switches) -> ModelDefinition:
    image = ImageConfig(patch_size=2, max_side=64, mask=mode)
    settings = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_width": 48, "attention_block": 16}
    config = ModelConfig.model_validate({"experts": experts, "init_std": 0.2, **settings, **switches}, strict=False)
    return ModelDefinition(config, image, VOCAB)


def pack(documents, definition: ModelDefinition, shape: RowShape) -> Batch:
    sequence = SequenceConfig(positions=definition.config.positions)
    return assemble_row([(document, 0) for document in documents], shape, definition.image, 0, sequence)


def loss_and_grads(definition: ModelDefinition, parameters, batch: Batch):
    def loss(parameters):
        weighted = batch._replace(target_weights=normalised_weights(jnp.asarray(batch.target_weights), LossConfig()))
        return batch_loss(definition, Placement(), parameters, weighted, LossConfig(chunk_size=24))[0]

    return jax.jit(jax.value_and_grad(loss))(parameters)


def assert_close(found: dict, expected: dict) -> None:
    """Compare each gradient to 1e-5 of its own size, and a vanishing one to 1e-7 of the largest gradient."""
    largest = max(float(np.abs(value).max()) for value in expected.values())
    for path in expected:
        scale = max(float(np.abs(expected[path]).max()), 1e-2 * largest)
        np.testing.assert_allclose(found[path] / scale, expected[path] / scale, rtol=0, atol=1e-5, err_msg=path)


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(3)
    return [random_document(rng, VOCAB, patch_size=2, parts=parts) for parts in (6, 3, 5)]


CASES = [
    (SHARED, "causal", {}),
    (VISUAL_FFN, "causal", {}),
    (VISUAL_FFN, "bidirectional", {"tied_head": True}),
    (ALL_EXPERTS, "isolated", {"kv_heads": 4}),
    (ALL_EXPERTS, "bidirectional", {"remat": "dots"}),
    (VISUAL_FFN, "causal", {"remat": "attention", "scan_layers": False, "attention_implementation": "dense"}),
    (SHARED, "bidirectional", NEO),
    (ALL_EXPERTS, "bidirectional", {**NEO_UNIFY, "attention_implementation": "pallas"}),
]


@pytest.mark.parametrize(("experts", "mode", "switches"), CASES)
def test_packed_rows_equal_the_reference_model_on_each_document(documents, experts, mode, switches) -> None:
    definition = make(experts, mode, **switches)
    parameters = jax.jit(definition.initialise)(jax.random.key(1))
    row = pack(documents, definition, RowShape(64, 80, 64))
    loss, grads = loss_and_grads(definition, parameters, stack([row]))

    def plain(parameters):
        sums = [loss_sum(parameters, definition.config, definition.image, document, VOCAB) for document in documents]
        return sum(total for total, _ in sums) / sum(count for _, count in sums)

    expected_loss, expected_grads = jax.jit(jax.value_and_grad(plain))(parameters)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    assert_close(grads, expected_grads)


def test_outputs_are_in_the_slots_of_their_elements(documents) -> None:
    definition = make(ALL_EXPERTS, "bidirectional")
    parameters = jax.jit(definition.initialise)(jax.random.key(2))
    row = stack([pack(documents, definition, RowShape(64, 80, 64))])
    model = definition.bind(parameters)
    hidden = jax.jit(model.hidden)(row).hidden
    logits = np.asarray(model.logits(hidden.join())[0])
    patch, text = 0, 64
    for document in documents:
        expected = jax.jit(lambda p, d=document: forward(p, definition.config, definition.image, d))(parameters)
        for number, token in enumerate(document.tokens):
            slot = patch if token < 0 else text
            patch, text = patch + (token < 0), text + (token >= 0)
            np.testing.assert_allclose(logits[slot, :VOCAB], expected[number, :VOCAB], atol=1e-4, rtol=1e-4)


def test_packed_equals_unpacked(documents) -> None:
    """One row of three documents against three rows of one document: loss and every gradient."""
    definition = make(VISUAL_FFN, "causal")
    parameters = jax.jit(definition.initialise)(jax.random.key(4))
    packed = stack([pack(documents, definition, RowShape(64, 80, 64))])
    alone = stack([pack([document], definition, RowShape(48, 64, 64)) for document in documents])
    loss, grads = loss_and_grads(definition, parameters, packed)
    expected_loss, expected_grads = loss_and_grads(definition, parameters, alone)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    assert_close(grads, expected_grads)


def test_text_does_not_use_the_visual_expert(documents) -> None:
    """With other weights in the visual expert, text stays the same to the last bit, and every patch changes."""
    definition = make(VISUAL_FFN, "causal")
    parameters = jax.jit(definition.initialise)(jax.random.key(5))
    text_only = [
        document
        for document in [random_document(np.random.default_rng(s), VOCAB, 2, 1) for s in range(9)]
        if (document.tokens >= 0).all()
    ]
    batch = stack([pack(text_only, definition, RowShape(8, 64, 64))])
    changed = {path: value + 1.0 if "ffn/patches" in path else value for path, value in parameters.items()}
    hidden = jax.jit(lambda parameters: definition.bind(parameters).hidden(batch).hidden)
    before, after = hidden(parameters), hidden(changed)
    np.testing.assert_array_equal(before.text, after.text)
    assert (before.patches != after.patches).any(axis=-1).all()


def test_bfloat16_is_close_to_float32(documents) -> None:
    definition = make(VISUAL_FFN, "causal")
    half = make(VISUAL_FFN, "causal", compute_dtype="bfloat16")
    parameters = jax.jit(definition.initialise)(jax.random.key(6))
    row = stack([pack(documents, definition, RowShape(64, 80, 64))])
    loss, _ = loss_and_grads(definition, parameters, row)
    half_loss, grads = loss_and_grads(half, parameters, row)
    np.testing.assert_allclose(loss, half_loss, rtol=2e-2)
    assert all(gradient.dtype == jnp.float32 for gradient in grads.values())


def test_the_patch_bias_and_the_patch_token_are_added_to_every_patch(documents) -> None:
    definition = make(SHARED, "causal", patch_embed=PatchEmbedConfig(bias=True, token_id=3))
    parameters = jax.jit(definition.initialise)(jax.random.key(7))
    row = stack([pack(documents, definition, RowShape(64, 80, 64))])
    shift = jnp.zeros_like(parameters["text_embed"]).at[3].set(2.0)
    moved = {
        **parameters,
        "patch_embed/bias": parameters["patch_embed/bias"] + 1,
        "text_embed": parameters["text_embed"] + shift,
    }
    after = definition.bind(moved).embed(row.patches, row.patch_grid, row.text)
    before = definition.bind(parameters).embed(row.patches, row.patch_grid, row.text)
    np.testing.assert_allclose(after.patches - before.patches, 3.0, atol=1e-5)
    assert (row.text != 3).any()
    np.testing.assert_array_equal(after.text[row.text != 3], before.text[row.text != 3])
