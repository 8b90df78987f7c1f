"""Upcycling a Qwen3 into NEO: what the heads' new parts and the layers in front change, and what they leave."""

import numpy as np
import pytest

import solo
from solo.config import Config, parse_config
from solo.interop.importing import Imported, import_repository
from solo.interop.layout import LayoutError
from solo.interop.tensor_files import TensorReader
from solo.interop.upcycling import PreLayers

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

IDS = np.array([[1, 5, 99, 42, 17, 2, 2, 63, 88, 30]])
PARTS = [
    {"axis": "time", "width": 16},
    {"axis": "row", "width": 8, "theta": 1e4, "projection": "grid"},
    {"axis": "column", "width": 8, "theta": 1e4, "projection": "grid"},
]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """Returns the folder of a tiny Qwen3 with tied embeddings, as Qwen3-1.7B has, and its logits of IDS."""
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, rope_theta=1e6, initializer_range=0.3, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.Qwen3ForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("qwen") / "qwen3"
    model.save_pretrained(folder)
    with torch.no_grad():
        return folder, model(torch.from_numpy(IDS)).logits.numpy()


def neo(layers: int, **model) -> Config:
    sections = {
        "vocab_size": 100, "width": 32, "layers": layers, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn_width": 48,
        "norm_eps": 1e-6, "qk_norm": "rms", "rope_theta": 1e6, "head_parts": PARTS, "attention_implementation": "dense",
        "patch_embed": {"kind": "conv", "inner_size": 4, "inner_width": 8, "rotation_theta": 1e4},
    }  # fmt: skip
    image = {"patch_size": 8, "geometry": "area", "max_pixels": 4096, "mask": "bidirectional", "row_token": None}
    return parse_config(
        {"name": "neo", "model": sections | model, "image": image, "sequence": {"positions": "separate"}}
    )


def grown(qwen, folder, config: Config, pre_layers: PreLayers) -> tuple[Imported, dict[str, np.ndarray]]:
    """Upcycles, and returns our tensors by name."""
    done = import_repository(qwen[0], config, folder, pre_layers=pre_layers)
    with TensorReader(folder) as reader:
        return done, {name: reader.read(name) for name in reader}


@pytest.mark.parametrize("pre_layers", [PreLayers(), PreLayers(3, silent=True)])
def test_logits_of_text_are_those_of_qwen(qwen, tmp_path, pre_layers):
    """Rows and columns add nothing to the scores of text, and silent layers nothing to the residual stream."""
    grown(qwen, tmp_path / "neo", neo(2 + pre_layers.count), pre_layers)
    model = solo.load(tmp_path / "neo")
    np.testing.assert_allclose(model.logits(model.batch(input_ids=IDS)), qwen[1], atol=2e-5)
    assert qwen[1].std() > 0.5


def test_the_published_rule(qwen, tmp_path):
    """`from_pretrained` of NEO: quarters 1 and 3 of the queries, keys of zeros, norms of ones."""
    done, found = grown(qwen, tmp_path / "neo", neo(3), PreLayers(1))
    assert done.grown == 17
    assert done.parts == 2 * 6
    assert "rows and columns of heads: 12 tensors; keys are zero, so they add nothing yet" in done.summary()
    with TensorReader(qwen[0]) as reader:
        theirs = {name: reader.read(name) for name in reader}
    np.testing.assert_array_equal(found["head.weight"], theirs["model.embed_tokens.weight"])
    for layer in (1, 2):
        ours = f"model.layers.{layer}.qkv.shared."
        q = theirs[f"model.layers.{layer - 1}.self_attn.q_proj.weight"].reshape(4, 16, 32)
        rows = np.concatenate([q[:, 0:4], q[:, 8:12]], axis=1)
        np.testing.assert_array_equal(found[f"{ours}q.weight"], q.reshape(64, 32))
        np.testing.assert_array_equal(found[f"{ours}q_grid.weight"], np.concatenate([rows, rows], 1).reshape(64, 32))
        assert not found[f"{ours}k_grid.weight"].any()
    for name, value in found.items():
        if "norm_row" in name or "norm_column" in name:
            assert (value == 1).all(), name
    first = {name: value for name, value in found.items() if name.startswith("model.layers.0.")}
    for name, value in first.items():
        if "norm" in name:
            assert (value == 1).all(), name
        else:  # also the keys of rows and columns
            assert abs(value.std() - 0.02) < 0.002, name
    again = solo.load(tmp_path / "neo")
    assert np.abs(again.logits(again.batch(input_ids=IDS)) - qwen[1]).max() > 1e-3


def test_an_image_moves_the_keys_of_rows_and_columns_first(qwen, tmp_path):
    """They begin at zero and get a gradient at once: their norms' slope there is 1 / sqrt(norm_eps)."""
    grown(qwen, tmp_path / "neo", neo(2), PreLayers())
    model = solo.load(tmp_path / "neo")
    ids = np.array([[5, 98, 97, 97, 97, 97, 99, 7, 9, 30]])
    pixels = np.random.default_rng(0).normal(size=(16, 48)).astype(np.float32)
    labels = np.where(np.arange(10) > 6, ids, -100)
    batch = model.batch(input_ids=ids, labels=labels, pixel_values=pixels, image_grid_hw=[[4, 4]])
    _, grads = model.loss_and_grads(batch)
    of_parts, of_time = (grads[f"model.layers.0.qkv.shared.{key}.weight"] for key in ("k_grid", "k"))
    assert np.isfinite(of_parts).all()
    assert np.abs(of_parts).max() > 10 * np.abs(of_time).max()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"head_parts": [{"axis": "time", "width": 8}, {"axis": "row", "width": 8}]}, "become the part for time"),
        ({"head_parts": [{**PARTS[0], "theta": 1e5}, *PARTS[1:]]}, "become the part for time"),
        ({"head_parts": PARTS[:2]}, "must be as wide as head_dim"),
        ({"value_dim": 8}, "model.value_dim and model.attention_scale"),
        ({"attention_scale": 0.2}, "model.value_dim and model.attention_scale"),
    ],
)
def test_heads_that_a_text_model_cannot_become_are_refused(qwen, tmp_path, model, message):
    with pytest.raises(LayoutError, match=message):
        import_repository(qwen[0], neo(2, **model), tmp_path / "neo")
