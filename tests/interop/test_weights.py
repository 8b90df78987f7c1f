"""Repositories load as parameters on a mesh, or not at all if something is wrong."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest

import solo
from solo.config import MeshConfig
from solo.interop.config_json import read_config_json
from solo.interop.layout import LayoutError
from solo.interop.layouts import LAYOUTS
from solo.interop.source import open_source
from solo.interop.tensor_files import TensorFileError, TensorReader
from solo.interop.weights import load_parameters, matched, tensor_of
from solo.sharding.mesh import make_mesh, parameter_shardings
from tests.interop.models import tiny
from tests.interop.repositories import save

# Packed tensors and convolutions, biases, every switch at once, MoE; test_layouts covers the rest.
CHOSEN = ("mono_internvl 1.5", "fuyu", "native", "native with a mixture of experts")


@pytest.mark.parametrize("name", CHOSEN)
def test_loading_and_saving_is_the_identity(tmp_path, name):
    layout, _, definition = tiny(name)
    tensors = save(tmp_path, name, ml_dtypes.bfloat16)
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2, data=2))
    parameters = load_parameters(tmp_path, definition, mesh)
    shardings = parameter_shardings(definition.specs, mesh)
    assert parameters.keys() == definition.specs.keys()
    for path, value in parameters.items():
        assert (value.shape, value.dtype) == (definition.specs[path].shape, np.float32)
        assert value.sharding.is_equivalent_to(shardings[path], value.ndim)
    for rule in LAYOUTS[layout].tensors(definition):
        again = tensor_of(rule, parameters, ml_dtypes.bfloat16)
        assert again.dtype == ml_dtypes.bfloat16
        assert again.tobytes() == tensors[rule.name].tobytes(), rule.name


def test_vocabulary_padding_is_zero(tmp_path):
    _, _, definition = tiny("solo")
    save(tmp_path, "solo")
    parameters = load_parameters(tmp_path, definition, make_mesh(MeshConfig(), jax.devices()[:1]))
    assert not np.asarray(parameters["text_embed"][100:]).any()
    assert not np.asarray(parameters["head"][:, 100:]).any()
    assert np.asarray(parameters["text_embed"][99]).all()


def test_all_faults_are_listed_at_once(tmp_path):
    def change(tensors):
        del tensors["model.norm.weight"]
        tensors["model.stray.weight"] = np.zeros(3, np.float32)
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1]
        tensors["model.embed_vision_patch.weight"] = np.zeros((32, 192), np.int32)

    save(tmp_path, "solo", change=change)
    with pytest.raises(LayoutError) as error:
        load_parameters(tmp_path, tiny("solo")[2], make_mesh(MeshConfig()))
    for line in (
        "missing: model.norm.weight (32,)",
        "left over: model.stray.weight (3,)",
        "wrong shape: lm_head.weight is (99, 32); this model has (100, 32)",
        "wrong dtype: model.embed_vision_patch.weight is int32",
    ):
        assert line in str(error.value)
    assert len(str(error.value).splitlines()) == 5


def test_a_tensor_under_two_names(tmp_path):
    def change(tensors):
        tensors["model.vision_embed_tokens.bias"] = tensors["vision_embed_tokens.bias"]

    save(tmp_path, "fuyu", change=change)
    with pytest.raises(LayoutError, match=r"stored twice: vision_embed_tokens.bias and model.vision_embed_tokens.bias"):
        load_parameters(tmp_path, tiny("fuyu")[2], make_mesh(MeshConfig()))


def test_a_text_model_does_not_hold_a_monolith(tmp_path):
    save(tmp_path, "mistral")
    with pytest.raises(LayoutError, match=r"a mistral repository does not hold all of this model(.|\n)*patch_embed"):
        load_parameters(tmp_path, tiny("mistral")[2], make_mesh(MeshConfig()))


def test_a_tied_head_may_be_stored_if_it_is_equal(tmp_path):
    layout, _, definition = tiny("qwen2 with a tied head")

    def stored_twice(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    def changed(tensors):
        stored_twice(tensors)
        tensors["lm_head.weight"][-1, -1] += 1

    save(tmp_path / "same", "qwen2 with a tied head", change=stored_twice)
    save(tmp_path / "other", "qwen2 with a tied head", change=changed)
    with TensorReader(tmp_path / "same") as reader:
        assert "lm_head.weight" not in matched(reader, LAYOUTS[layout], definition, "it")
    with (
        TensorReader(tmp_path / "other") as reader,
        pytest.raises(LayoutError, match=r"ties lm_head.weight to model.embed_tokens.weight, but they differ"),
    ):
        matched(reader, LAYOUTS[layout], definition, "it")


def test_buffers_of_older_versions_are_ignored(tmp_path):
    def change(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)

    save(tmp_path, "solo", change=change)
    assert load_parameters(tmp_path, tiny("solo")[2], make_mesh(MeshConfig()))


def test_a_folder_without_a_config(tmp_path):
    for text, message in ((None, "cannot read"), ("{", "is not JSON"), ("[]", "not a JSON object")):
        if text is not None:
            (tmp_path / "config.json").write_text(text)
        with pytest.raises(LayoutError, match=message):
            read_config_json(tmp_path)


def test_a_tied_head_may_be_stored_instead_of_the_embedding(tmp_path):
    """safetensors stores one of two tensors that share memory, and which one depends on the tool."""
    layout, _, definition = tiny("qwen2 with a tied head")

    def renamed(tensors):
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    tensors = save(tmp_path, "qwen2 with a tied head", change=renamed)
    parameters = load_parameters(tmp_path, definition, make_mesh(MeshConfig()), without_images=True)
    np.testing.assert_array_equal(parameters["text_embed"][:100], tensors["lm_head.weight"])
    assert LAYOUTS[layout].copies(definition)


def test_every_kind_of_fault_is_listed(tmp_path):
    """A model quantised to int8 has a scale beside every matrix, more than fit into the message."""

    def quantised(tensors):
        for name in [name for name in tensors if "proj" in name]:
            tensors[name] = tensors[name].astype(np.int8)
            for number in range(3):
                tensors[f"{name}.scale{number}"] = np.ones(1, np.float32)
        del tensors["model.norm.weight"]

    save(tmp_path, "mistral", change=quantised)
    with pytest.raises(LayoutError) as error:
        load_parameters(tmp_path, tiny("mistral")[2], make_mesh(MeshConfig()))
    lines = str(error.value).splitlines()
    assert "q_proj.weight is int8; solo reads floating-point weights: dequantise" in lines[1]
    assert "  missing: model.norm.weight (32,)" in lines
    assert lines[-2].startswith("  left over: ")
    assert lines[-1] == f"  and {3 * 14 - 20} more"


def edited(folder, **keys):
    config = json.loads((folder / "config.json").read_text()) | keys
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_resized_vocabulary_is_named(tmp_path):
    """Rows that config.json does not have, as frameworks leave them that write only the weights."""
    folder = tmp_path / "llama"
    save(folder, "llama", rows=110)
    with pytest.raises(LayoutError, match=r"vocabulary was resized: its tensors have 110 rows, and vocab_size .* 100"):
        solo.load(edited(folder, vocab_size=100))


def test_a_native_repository_that_transformers_resized(tmp_path):
    """`resize_token_embeddings` changes the upper vocab_size alone."""
    folder = tmp_path / "model"
    save(folder, "native", rows=110)
    sections = json.loads((folder / "config.json").read_text())["model"]
    assert solo.load(edited(folder, model=sections | {"vocab_size": 100})).definition.vocab_size == 110


def test_a_base_model_has_no_head(tmp_path):
    """AutoModel saves names without `model.`, and a class of its own."""

    def change(tensors):
        del tensors["lm_head.weight"]
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    folder = tmp_path / "llama"
    save(folder, "llama", change=change)
    with pytest.raises(LayoutError, match=r"is a base model \(saved by AutoModel\), which has no head"):
        solo.load(folder)
    with pytest.raises(LayoutError, match=r"is of a LlamaModel, which has no head .* solo reads LlamaForCausalLM"):
        solo.load(edited(folder, architectures=["LlamaModel"]))


@pytest.mark.parametrize(
    ("dtype", "value"), [(np.float32, np.nan), (np.float16, np.inf), (ml_dtypes.bfloat16, -np.inf)]
)
def test_values_that_are_not_finite_are_named(tmp_path, dtype, value):
    def change(tensors):
        tensors["model.layers.0.mlp.up_proj.weight"][3, 2:4] = value
        tensors["model.embed_tokens.weight"][:] = np.finfo(np.float16).max  # finite in all three

    save(tmp_path / "llama", "llama", dtype, change)
    with pytest.raises(TensorFileError, match=r"layers\.0\.mlp\.up_proj\.weight has 2 of [\d,]+ values that are NaN"):
        solo.load(tmp_path / "llama")


def test_settings_that_would_be_read_otherwise_are_refused(tmp_path):
    folder = tmp_path / "llama"
    save(folder, "llama")
    with pytest.raises(LayoutError, match=r"quantization_config \(fp8\): the weights are quantised"):
        solo.load(edited(folder, quantization_config={"quant_method": "fp8"}))
    for keys in ({"partial_rotary_factor": 0.5}, {"rope_parameters": {"partial_rotary_factor": 0.5}}):
        with pytest.raises(LayoutError, match=r"partial_rotary_factor: 0\.5, which LlamaForCausalLM ignores"):
            solo.load(edited(folder, quantization_config=None, **keys))


def test_folders_of_adapters_and_pointers(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "meta/llama"}')
    for use in (solo.load, open_source, read_config_json):
        with pytest.raises(ValueError, match=r"has an adapter of PEFT .* for the model meta/llama.*merge it"):
            use(adapter)
    folder = tmp_path / "llama"
    save(folder, "llama")
    for name in ("tokenizer.json", "tokenizer.model", "config.json"):
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n")
        with pytest.raises(ValueError, match=rf"{name} is a pointer to a file in Git LFS; `git lfs pull`"):
            solo.load(folder)
        (folder / name).unlink()
