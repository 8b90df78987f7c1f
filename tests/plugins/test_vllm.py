"""The plug-in for vLLM with stubs for vLLM: weights and arithmetic against the exported code, and the ids of images.

`python -m tests.harnesses FOLDER vllm` runs it in vLLM.
"""

import importlib
import math
import sys
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from solo.interop.export import export
from tests.interop.runs import SECTIONS, saved_run
from tests.tiny import image, user

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CHAT = [
    user({"type": "text", "text": "of"}, image(20, 30, 0), {"type": "text", "text": "what"}, image(8, 8, 1)),
    {"role": "assistant", "content": [{"type": "text", "text": "a circle"}]},
    user({"type": "text", "text": "which"}, image(64, 33, 2)),
]


class Anything:
    """A class of vLLM that the tested code only derives from, or names."""

    def __init__(self, *given, **named):
        self.given, self.named = given, named

    def __class_getitem__(cls, item):
        return cls


class Attention(torch.nn.Module):
    """Causal attention of the tokens of one request, without a cache."""

    made: ClassVar[list] = []

    def __init__(self, heads, head_dim, scale, *, num_kv_heads, cache_config, per_layer_sliding_window, prefix):
        super().__init__()
        self.heads, self.head_dim, self.scale, self.kv_heads = heads, head_dim, scale, num_kv_heads
        self.made.append((prefix, per_layer_sliding_window))

    def forward(self, q, k, v):
        q, k, v = (x.unflatten(1, (-1, self.head_dim)).transpose(0, 1)[None] for x in (q, k, v))
        k, v = (x.repeat_interleave(self.heads // self.kv_heads, dim=1) for x in (k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        return out[0].transpose(0, 1).flatten(1)


@pytest.fixture(scope="module")
def plugin():
    """The plug-in's model module."""
    names = {
        "vllm": (),
        "vllm.config": ("VllmConfig",),
        "vllm.model_executor.layers.attention": (),
        "vllm.model_executor.models.interfaces": ("SupportsMultiModal",),
        "vllm.multimodal": (),
        "vllm.multimodal.inputs": ("MultiModalFieldConfig",),
        "vllm.multimodal.parse": ("ImageProcessorItems",),
        "vllm.multimodal.processing": (
            "BaseDummyInputsBuilder",
            "BaseMultiModalProcessor",
            "BaseProcessingInfo",
            "PromptReplacement",
            "PromptUpdateDetails",
        ),
    }
    modules = {name: ModuleType(name) for name in names}
    for name, classes in names.items():
        for one in classes:
            setattr(modules[name], one, type(one, (Anything,), {}))
    modules["vllm.model_executor.layers.attention"].Attention = Attention
    registry = SimpleNamespace(register_processor=lambda *given, **named: lambda cls: cls)
    modules["vllm.multimodal"].MULTIMODAL_REGISTRY = registry
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        yield importlib.import_module("solo_vllm.model")
    for name in [name for name in sys.modules if name.startswith("solo_vllm")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def repository(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("vllm")
    export(saved_run(folder / "run", tiny_tokenizer, **SECTIONS["native"]), folder / "repository", verified=False)
    return folder / "repository"


@pytest.fixture(scope="module")
def published(repository):
    return transformers.AutoModelForCausalLM.from_pretrained(repository, trust_remote_code=True).eval()


@pytest.fixture(scope="module")
def processor(repository):
    return transformers.AutoProcessor.from_pretrained(repository, trust_remote_code=True)


def settings(repository, published, **changes):
    model_config = {
        "hf_config": published.config,
        "model": str(repository),
        "revision": None,
        "code_revision": None,
        "max_model_len": 512,
        "enforce_eager": True,
        "try_get_generation_config": published.generation_config.to_diff_dict,
    }
    sizes = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1}
    given = {name: changes.pop(name, value) for name, value in (model_config | sizes).items()}
    parallel = SimpleNamespace(**{name: given.pop(name) for name in sizes})
    return SimpleNamespace(
        model_config=SimpleNamespace(**given), parallel_config=parallel, cache_config=None, quant_config=None, **changes
    )


@pytest.fixture(scope="module")
def served(plugin, repository, published):
    Attention.made.clear()
    model = plugin.SoloMonolithForCausalLM(vllm_config=settings(repository, published))
    from safetensors.torch import load_file

    tensors = load_file(repository / "model.safetensors")
    assert model.load_weights(tensors.items()) == set(dict(model.named_parameters()))
    return model


def test_logits_are_those_of_the_exported_code(served, published, processor):
    inputs = processor.apply_chat_template(
        CHAT, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids, is_patch = inputs["input_ids"][0], inputs["input_ids"][0] == published.config.image_token_id
    with torch.no_grad():
        wanted = published(**inputs).logits[0]
        counts = torch.tensor(counts_of(processor))
        assert counts.sum() == is_patch.sum()
        images = served.embed_multimodal(inputs["pixel_values"], inputs["patches_grid"], counts[:, None])
        assert [len(each) for each in images] == counts.tolist()
        embedded = served.embed_input_ids(ids, images, is_multimodal=is_patch)
        hidden = served(ids, torch.arange(len(ids)), inputs_embeds=embedded)
        found = served.compute_logits(hidden)
    never = [published.config.image_token_id, *published.generation_config.suppress_tokens]
    assert torch.isneginf(found[:, never]).all()
    allowed = np.setdiff1d(np.arange(found.shape[1]), never)
    torch.testing.assert_close(found[:, allowed], wanted[:, allowed], atol=1e-5, rtol=0)
    assert Attention.made == [("attention.0", None), ("attention.1", None)]


def counts_of(processor):
    sizes = [
        (part["image"].height, part["image"].width) for turn in CHAT for part in turn["content"] if "image" in part
    ]
    return processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]


def test_text_alone(served, published):
    ids = torch.arange(8, 20)
    with torch.no_grad():
        found = served.compute_logits(served(ids, torch.arange(12)))
        wanted = published(input_ids=ids[None]).logits[0]
    assert (found.argmax(-1) == wanted.masked_fill(torch.isneginf(found), -math.inf).argmax(-1)).all()


@pytest.mark.parametrize("size", [(20, 30), (8, 8), (8, 40), (64, 33)])
def test_the_ids_of_an_image_are_the_processor_s(plugin, published, processor, size):
    grid = processor.image_processor.grid(*size)
    ids = importlib.import_module("solo_vllm.processing").image_ids(published.config, processor, grid)
    assert ids == processor.tokenizer(processor.image_text(grid), add_special_tokens=False)["input_ids"]
    assert ids.count(published.config.image_token_id) == grid.rows * grid.columns


def test_what_cannot_be_served(plugin, repository, published):
    def refusal(**changes):
        sections = {name: dict(getattr(published.config, name)) for name in ("model", "image", "sequence")}
        for name in sections:
            sections[name] |= changes.pop(name, {})
        return plugin.refusal(SimpleNamespace(**sections), settings(repository, published, **changes))

    dynamic = {"rope_scaling": {"kind": "dynamic", "factor": 2.0, "trained_length": 64}}
    assert refusal() is None
    assert refusal(model=dynamic, max_model_len=64) is None
    for changes, word in [
        ({"image": {"mask": "prefix"}}, "image.mask is 'prefix'"),
        ({"model": {"rope_sections": [0, 2, 2]}}, "rope_sections"),
        ({"model": dynamic}, "at most 64"),
        ({"image": {"share_tiles": True}}, "share_tiles"),
        ({"image": {"share_pixels": True}}, "share_pixels"),
        ({"tensor_parallel_size": 2}, "parallel sizes of 1"),
        ({"enforce_eager": False}, "--enforce-eager"),
    ]:
        assert word in refusal(**changes)


def test_every_tensor_has_its_place(plugin):
    module = torch.nn.Linear(2, 3)
    right = {"weight": torch.ones(3, 2), "bias": torch.ones(3)}
    assert plugin.load(module, right.items()) == {"weight", "bias"}
    assert module.weight.sum() == 6
    for tensors, message in [
        ({"weight": right["weight"]}, "lacks bias"),
        (right | {"other": right["bias"]}, "other is .* none in the model"),
        (right | {"bias": torch.ones(4)}, r"bias is \(4,\) .* \(3,\) in the model"),
    ]:
        with pytest.raises(ValueError, match=message):
            plugin.load(module, tensors.items())
