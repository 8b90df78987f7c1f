"""Compares Mono-InternVL with tensors that the published code computed for a tiny model (tests/goldens).

Every number here that is not the published code's comes from transformers' Llama or from a restatement of the
description in numpy.
"""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import solo
from solo.inference.hf_batch import HFBatch
from solo.inference.monolith import Monolith

FOLDER = Path(__file__).parents[1] / "goldens" / "mono_internvl_tiny"
EXPECTED = load_file(FOLDER / "expected.safetensors")
INPUTS = ("input_ids", "labels", "attention_mask", "position_ids", "pixel_values", "image_flags")
PLACEHOLDER = 127


@pytest.fixture(scope="module")
def model() -> Monolith:
    return solo.load(FOLDER)


@pytest.fixture(scope="module")
def batch(model) -> HFBatch:
    return model.batch(**{name: EXPECTED[name] for name in INPUTS})


def hidden_states(model: Monolith, batch: HFBatch, layers: int, final_norm: bool) -> np.ndarray:
    """Returns the hidden states [B, N, D] after `layers` layers, in the order of input_ids."""
    module = model.definition.bind(model.parameters)
    plain = batch.batch
    if layers == 0:
        x = module.embed(plain.patches, plain.patch_grid, plain.text)
    else:
        config = model.config.model.model_copy(update={"layers": layers})
        cut = {
            path: value[:layers] if path.startswith("layers/") else value for path, value in model.parameters.items()
        }
        definition = type(model.definition)(config, model.config.image, model.definition.vocab_size)
        module = definition.bind(cut)
        if not final_norm:
            module.final_norm = _identity
        x = module.hidden(plain).hidden
    return batch.in_input_order(np.asarray(x.join()))


def _identity(x):
    return x


def test_vision_features(model) -> None:
    """Four tokens per tile, row by row, including dummy tiles."""
    tiles = EXPECTED["pixel_values"]
    ids = np.full((len(tiles), 4), PLACEHOLDER)
    alone = model.batch(input_ids=ids, pixel_values=tiles)
    features = hidden_states(model, alone, 0, final_norm=False)
    np.testing.assert_allclose(features, EXPECTED["vision_features"], atol=1e-5)


@pytest.mark.parametrize(("layers", "final_norm"), [(0, False), (1, False), (2, True)])
def test_hidden_states(model, batch, layers, final_norm) -> None:
    """Includes the padding after a row."""
    found = hidden_states(model, batch, layers, final_norm)
    np.testing.assert_allclose(found, EXPECTED[f"hidden_states.{layers}"], atol=1e-5)


def test_logits(model, batch) -> None:
    np.testing.assert_allclose(model.logits(batch), EXPECTED["logits"], atol=1e-5)


def test_loss_and_every_gradient(model, batch) -> None:
    loss, grads = model.loss_and_grads(batch)
    assert loss == pytest.approx(float(EXPECTED["loss"][0]), abs=1e-5)
    wanted = {name.removeprefix("grad."): value for name, value in EXPECTED.items() if name.startswith("grad.")}
    assert grads.keys() == wanted.keys()
    for name, expected in wanted.items():
        largest = float(np.abs(expected).max())
        np.testing.assert_allclose(grads[name], expected, atol=max(1e-4 * largest, 1e-9), err_msg=name)


def test_gradients_that_must_be_zero(model, batch) -> None:
    """The class token and its position are exactly zero, and the row of torch's padding_idx nearly."""
    grads = model.loss_and_grads(batch)[1]
    assert not grads["vision_model.embeddings.class_embedding"].any()
    assert not grads["vision_model.embeddings.position_embedding"][0, 0].any()
    assert grads["vision_model.embeddings.position_embedding"][0, 1:].any()
    ids = EXPECTED["input_ids"].copy()
    ids[0, 0] = 2
    with_padding_row = {**{name: EXPECTED[name] for name in INPUTS}, "input_ids": ids}
    rows = model.loss_and_grads(model.batch(**with_padding_row))[1]["language_model.model.tok_embeddings.weight"]
    assert not rows[2].any()
    assert rows[57].any()


def test_a_dummy_tile_is_left_out_and_a_missing_one_is_an_error(model) -> None:
    tensors = {name: EXPECTED[name] for name in INPUTS}
    noise = tensors["pixel_values"].copy()
    noise[2] = 1e6  # image_flags is 0
    logits = model.logits(model.batch(**{**tensors, "pixel_values": noise}))
    np.testing.assert_array_equal(logits, model.logits(model.batch(**tensors)))
    with pytest.raises(ValueError, match=r"8 placeholders .* 3 tiles of 4 visual tokens are 12"):
        model.batch(**{**tensors, "image_flags": np.ones((3, 1))})


def shuffled(x_NWHC: np.ndarray, version: str) -> np.ndarray:
    """InternVL's pixel shuffle by a factor of a half."""
    n, w, h, c = x_NWHC.shape
    x = x_NWHC.reshape(n, w, h // 2, c * 2).transpose(0, 2, 1, 3).reshape(n, h // 2, w // 2, c * 4)
    return x if version == "v1" else x.transpose(0, 2, 1, 3)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_both_orders_of_the_pixel_shuffle(version, tmp_path) -> None:
    folder = with_config(tmp_path, ps_version=version)
    model = solo.load(folder)
    weights = load_file(folder / "model.safetensors")
    tiles = EXPECTED["pixel_values"]
    side = 14
    cut = tiles.reshape(len(tiles), 3, 4, side, 4, side).transpose(0, 2, 4, 1, 3, 5).reshape(len(tiles), 4, 4, -1)
    prefix = "vision_model.embeddings."
    x = cut @ weights[f"{prefix}patch_embedding.weight"].reshape(32, -1).T + weights[f"{prefix}patch_embedding.bias"]
    x = x + weights[f"{prefix}position_embedding"][0, 1:].reshape(4, 4, 32)
    tokens = shuffled(x, version).reshape(len(tiles), 4, -1)
    mean, variance = tokens.mean(-1, keepdims=True), tokens.var(-1, keepdims=True)
    tokens = (tokens - mean) / np.sqrt(variance + 1e-5) * weights["mlp1.0.weight"] + weights["mlp1.0.bias"]
    tokens = tokens @ weights["mlp1.1.weight"].T + weights["mlp1.1.bias"]
    from scipy.special import erf

    tokens = tokens * (1 + erf(tokens / np.sqrt(2))) / 2
    tokens = tokens @ weights["mlp1.3.weight"].T + weights["mlp1.3.bias"]
    batch = model.batch(input_ids=np.full((len(tiles), 4), PLACEHOLDER), pixel_values=tiles)
    np.testing.assert_allclose(hidden_states(model, batch, 0, final_norm=False), tokens, atol=1e-5)
    different = np.abs(tokens - EXPECTED["vision_features"]).max() > 1e-2
    assert different == (version == "v1")


def with_config(tmp_path: Path, **changes) -> Path:
    """Makes the tiny repository with another config.json."""
    folder = tmp_path / "repository"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("expected*"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def llama(weights: dict[str, np.ndarray]):
    """Returns transformers' Llama with the text weights, which differ in names and in the packing of wqkv."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6},
        attn_implementation="eager",
    )
    found = {
        "model.embed_tokens.weight": weights["language_model.model.tok_embeddings.weight"],
        "model.norm.weight": weights["language_model.model.norm.weight"],
        "lm_head.weight": weights["language_model.output.weight"],
    }
    for layer in range(2):
        ours, theirs = f"language_model.model.layers.{layer}.", f"model.layers.{layer}."
        # rows by key/value head: two queries, a key, a value
        grouped = weights[f"{ours}attention.wqkv.weight"].reshape(2, 4, 16, 64)
        found[f"{theirs}self_attn.q_proj.weight"] = grouped[:, :2].reshape(64, 64)
        found[f"{theirs}self_attn.k_proj.weight"] = grouped[:, 2].reshape(32, 64)
        found[f"{theirs}self_attn.v_proj.weight"] = grouped[:, 3].reshape(32, 64)
        found[f"{theirs}self_attn.o_proj.weight"] = weights[f"{ours}attention.wo.weight"]
        for name, part in (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")):
            found[f"{theirs}mlp.{name}.weight"] = weights[f"{ours}feed_forward.{part}.weight"]
        found[f"{theirs}input_layernorm.weight"] = weights[f"{ours}attention_norm.weight"]
        found[f"{theirs}post_attention_layernorm.weight"] = weights[f"{ours}ffn_norm.weight"]
    model = transformers.LlamaForCausalLM(config).eval()
    model.load_state_dict({name: torch.tensor(value) for name, value in found.items()})
    return model


@pytest.mark.parametrize("length", [20, 64, 65, 150])
def test_text_within_and_beyond_the_trained_length(model, length) -> None:
    """Beyond the trained length of 64 the rotary base grows (dynamic NTK)."""
    torch = pytest.importorskip("torch")
    ids = np.random.default_rng(length).integers(3, 127, (2, length))
    with torch.no_grad():
        expected = llama(load_file(FOLDER / "model.safetensors"))(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(model.logits(model.batch(input_ids=ids)), expected, atol=2e-5)
    assert np.abs(expected).max() > 0.5


def test_beyond_the_trained_length_the_padded_length_counts(model) -> None:
    """The published code scales every row by its padded length."""
    ids = np.random.default_rng(0).integers(3, 127, (2, 100))
    mask = np.ones_like(ids)
    mask[1, 70:] = 0
    padded = model.logits(model.batch(input_ids=ids, attention_mask=mask))
    whole = model.logits(model.batch(input_ids=ids))
    np.testing.assert_allclose(padded[1, :70], whole[1, :70], atol=1e-5)
    alone = model.logits(model.batch(input_ids=ids[1:, :70]))
    assert np.abs(alone[0] - padded[1, :70]).max() > 1e-4


def test_padding_before_a_row_changes_nothing(model) -> None:
    ids = np.random.default_rng(1).integers(3, 127, (1, 12))
    padded = np.concatenate([np.zeros((1, 5), int), ids], axis=1)
    mask = (np.arange(17) >= 5)[None]
    logits = model.logits(model.batch(input_ids=padded, attention_mask=mask))
    np.testing.assert_allclose(logits[:, 5:], model.logits(model.batch(input_ids=ids)), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": np.array([[1, 0, 1, 1]])}, "one run of ones"),
        ({"labels": np.zeros((1, 3))}, r"labels has shape \(1, 3\)"),
        ({"inputs": np.zeros((1, 4))}, "does not know inputs"),
        ({"input_ids": np.zeros(4)}, "input_ids of shape"),
        ({"pixel_values": np.zeros((1, 3, 28, 28), np.float32)}, "tiles are 56 square"),
    ],
)
def test_tensors_that_do_not_fit(model, change, message) -> None:
    with pytest.raises(ValueError, match=message):
        model.batch(**{"input_ids": np.full((1, 4), 5), **change})


def test_without_a_tokenizer_only_tensors_are_accepted(model) -> None:
    with pytest.raises(ValueError, match="these weights have no tokenizer"):
        model.generate([[{"role": "user", "content": "hello"}]])


def test_normalised_floats_are_used_unchanged(batch) -> None:
    assert batch.batch.patches.dtype == np.float32
    assert jnp.asarray(batch.batch.patches).min() < 0
