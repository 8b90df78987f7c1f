"""Compares our rules with what transformers and PyTorch save and compute."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from solo.batch import Batch  # noqa: E402
from solo.config import MeshConfig  # noqa: E402
from solo.interop.config_json import read_config_json  # noqa: E402
from solo.interop.layouts import LAYOUTS, recognise  # noqa: E402
from solo.interop.layouts.fuyu import FUYU  # noqa: E402
from solo.interop.layouts.internlm2 import INTERNLM2  # noqa: E402
from solo.interop.tensor_files import TensorReader  # noqa: E402
from solo.interop.weights import load_parameters  # noqa: E402
from solo.sharding.mesh import make_mesh  # noqa: E402
from tests.interop.models import tiny  # noqa: E402

NATIVE_TO_TRANSFORMERS = (
    "mistral",
    "llama",
    "qwen2 with a tied head",
    "qwen3",
    "fuyu",
    "fuyu with mistral",
    "fuyu with qwen3",
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns folders of random models that transformers made from our config.json and saved, by name."""
    folders = {}
    for name in NATIVE_TO_TRANSFORMERS:
        layout, config, _ = tiny(name)
        folder = tmp_path_factory.mktemp("saved") / name.replace(" ", "_")
        kinds = dict(LAYOUTS[layout].config_json(config, 100))
        made = transformers.AutoConfig.for_model(kinds.pop("model_type"), **kinds)
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(made).save_pretrained(folder)
        folders[name] = folder
    return folders


@pytest.mark.parametrize("name", NATIVE_TO_TRANSFORMERS)
def test_tensors_that_transformers_saves(saved, name):
    layout, _, definition = tiny(name)
    with TensorReader(saved[name]) as reader:
        stored = {LAYOUTS[layout].canonical(info.name): info.shape for info in reader.values()}
    assert {rule.name: rule.shape for rule in LAYOUTS[layout].tensors(definition)} == stored


@pytest.mark.parametrize("name", NATIVE_TO_TRANSFORMERS)
def test_config_json_that_transformers_saves(saved, name):
    """Ours has the older keys of rotary positions; transformers 5 writes the new ones."""
    layout, config, _ = tiny(name)
    written = read_config_json(saved[name])
    assert "rope_parameters" in written.get("text_config", written)
    assert recognise(written, "config.json") is LAYOUTS[layout]
    assert LAYOUTS[layout].config_from(written) == LAYOUTS[layout].config_from(LAYOUTS[layout].config_json(config, 100))


def rule_of(layout, name, ending):
    (found,) = [rule for rule in layout.tensors(tiny(name)[2]) if rule.name.endswith(ending)]
    return found


def test_persimmons_packed_heads(saved):
    model = transformers.AutoModelForCausalLM.from_pretrained(saved["fuyu"])
    attention = model.model.language_model.layers[0].self_attn
    with torch.no_grad():
        attention.query_key_value.bias.normal_()
        x = torch.randn(1, 3, 32)
        expected = attention._split_heads(attention.query_key_value(x))
    kernels = rule_of(FUYU, "fuyu", "layers.0.self_attn.query_key_value.weight").split(
        attention.query_key_value.weight.detach().numpy()
    )
    biases = rule_of(FUYU, "fuyu", "layers.0.self_attn.query_key_value.bias").split(
        attention.query_key_value.bias.detach().numpy()
    )
    for kernel, bias, values in zip(kernels, biases, expected, strict=True):
        np.testing.assert_allclose(
            np.einsum("btd,dhc->bthc", x.numpy(), kernel) + bias, values.numpy(), rtol=1e-5, atol=1e-6
        )


def test_internlm2s_packed_heads():
    """Rows of a group are [q0, q1, k, v], and query head = group * 2 + place."""
    rule = rule_of(INTERNLM2, "internlm2", "layers.1.attention.wqkv.weight")
    head = np.repeat(np.arange(8), 8)[:, None] * np.ones((1, 32))  # each head's rows hold its place in the tensor
    q, k, v = rule.split(head)
    assert [list(part[0, :, 0]) for part in (q, k, v)] == [[0, 1, 4, 5], [2, 6], [3, 7]]


def test_the_output_projection_of_heads():
    layout, _, definition = tiny("mistral")
    rules = {rule.name: rule for rule in LAYOUTS[layout].tensors(definition)}
    weight, heads = torch.randn(32, 32), torch.randn(2, 4, 8)
    (kernel,) = rules["model.layers.0.self_attn.o_proj.weight"].split(weight.numpy())
    expected = torch.nn.functional.linear(heads.reshape(2, 32), weight)
    np.testing.assert_allclose(np.einsum("bhc,hcd->bd", heads, kernel), expected, rtol=1e-5, atol=1e-5)


def patch(side):
    """Returns a random image of one patch [3, p, p]."""
    return torch.randn(3, side, side, generator=torch.Generator().manual_seed(side))


def inner_patches(pixels, inner):
    """Cuts a patch [C, p, p] into inner patches row by row [n*n, C*i*i], as solo.model does."""
    channels, side, _ = pixels.shape
    count = side // inner
    cut = pixels.reshape(channels, count, inner, count, inner).transpose(1, 3, 0, 2, 4)
    return cut.reshape(count * count, -1)


@pytest.mark.parametrize("layout", ["mono_internvl", "evev2"])
def test_the_first_convolution_is_a_product_of_inner_patches(layout):
    ending = {"mono_internvl": "patch_embedding.weight", "evev2": "patch_embedding.0.weight"}[layout]
    rule, pixels = rule_of(LAYOUTS[layout], layout, ending), patch(8)
    weight = torch.randn(rule.shape)
    (kernel,) = rule.split(weight.numpy())
    expected = torch.nn.functional.conv2d(pixels[None], weight, stride=4)[0].flatten(1).T
    np.testing.assert_allclose(inner_patches(pixels.numpy(), 4) @ kernel, expected, rtol=1e-4, atol=1e-4)


def test_the_second_convolution_is_a_product_of_concatenated_channels():
    rule = rule_of(LAYOUTS["evev2"], "evev2", "patch_embedding.2.weight")
    weight, channels = torch.randn(rule.shape), torch.randn(6, 2, 2)
    (kernel,) = rule.split(weight.numpy())
    expected = torch.nn.functional.conv2d(channels[None], weight, stride=2)[0, :, 0, 0]
    ours = channels.numpy().transpose(1, 2, 0).reshape(-1)  # (row, column, channel)
    np.testing.assert_allclose(ours @ kernel, expected, rtol=1e-4, atol=1e-4)


def test_fuyus_pixels_have_their_channels_last():
    rule, pixels = rule_of(FUYU, "fuyu", "vision_embed_tokens.weight"), patch(6)
    weight = torch.randn(rule.shape)
    (kernel,) = rule.split(weight.numpy())
    expected = torch.nn.functional.linear(pixels.permute(1, 2, 0).reshape(-1), weight)
    np.testing.assert_allclose(pixels.numpy().reshape(-1) @ kernel, expected, rtol=1e-4, atol=1e-4)


def our_batch(ids, image_token_id, patches, grid):
    """Makes one row from token ids in reading order, with patches in place of `image_token_id`."""
    visual = ids == image_token_id
    count = int(visual.sum())
    slots = np.where(visual, np.cumsum(visual) - 1, count + np.cumsum(~visual) - 1)
    attend = np.zeros((1, len(ids), 4), np.int32)
    positions = np.zeros((1, len(ids)), np.int32)
    for place, slot in enumerate(slots):
        attend[0, slot] = (0, visual[: place + 1].sum(), 0, (~visual[: place + 1]).sum())
        positions[0, slot] = place
    none = np.zeros((1, 1), np.int32)
    text = ids[~visual][None].astype(np.int32)
    batch = Batch(patches[None], grid[None], text, positions, attend, none, none, none.astype(np.float32), none)
    return batch, slots


@pytest.mark.parametrize("name", ["llama", "qwen2 with a tied head", "qwen3", "fuyu", "fuyu with mistral"])
def test_logits_are_those_of_transformers(saved, name):
    """Text, for Fuyu after an image of 2 x 3 patches, in float32; positions exceed llama3's trained length."""
    model = transformers.AutoModelForCausalLM.from_pretrained(saved[name], attn_implementation="eager")
    layout, config, definition = tiny(name)
    generator = np.random.default_rng(0)
    ids, given = generator.integers(3, 90, 80), {}
    side = config.image.patch_size
    patches, grid = np.zeros((0, 3 * side * side), np.float32), np.zeros((0, 2), np.int32)
    if layout == "fuyu":
        ids[:8] = [99, 99, 99, 5, 99, 99, 99, 5]
        grid = np.array([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)], np.int32)
        pixels = generator.normal(size=(6, side, side, 3)).astype(np.float32)
        model.config.image_token_id = 99
        given["pixel_values"] = torch.from_numpy(pixels.reshape(6, -1))
        patches = pixels.transpose(0, 3, 1, 2).reshape(6, -1)
    if layout == "fuyu" and config.sequence.sliding_window:
        ids = ids[:16]  # within the window
    batch, slots = our_batch(ids, 99, patches, grid)
    parameters = load_parameters(
        saved[name], definition, make_mesh(MeshConfig(), jax.devices()[:1]), without_images=True
    )

    def logits(parameters, batch):
        model = definition.bind(parameters)
        return model.logits(model.hidden(batch).hidden.join())

    found = np.asarray(jax.jit(logits)(parameters, batch))[0, slots, :100]
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(ids)[None], **given).logits[0].numpy()
    assert expected.std() > 0.05
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_model_that_transformers_saved_twice(saved, tmp_path):
    """Sharded, and then whole with other values: the index of the first save stays behind."""
    model = transformers.AutoModelForCausalLM.from_pretrained(saved["qwen3"])
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    with TensorReader(tmp_path) as reader:
        np.testing.assert_array_equal(reader.read("model.norm.weight"), np.ones(32))
    with torch.no_grad():
        model.model.norm.weight += 2
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    with TensorReader(tmp_path) as reader:
        np.testing.assert_array_equal(reader.read("model.norm.weight"), np.full(32, 3))
