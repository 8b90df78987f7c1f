"""Rules of every layout use each parameter once and are lossless; its config.json describes the model."""

import json
from functools import partial
from math import prod
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from solo.config import load_config, parse_config
from solo.interop.agreement import check_agreement
from solo.interop.layout import LayoutError
from solo.interop.layouts import LAYOUTS, layout_named, recognise
from solo.interop.tensor_rules import ParameterSlice
from solo.model.parameters import ModelDefinition
from tests.interop.models import MODALITY, PUBLISHED, TEXT, TINY, tiny

CONFIGS = Path(__file__).parents[2] / "configs" / "models"


def every_slice(definition, images=True):
    for path, spec in definition.specs.items():
        if path.startswith("layers/"):
            yield from (ParameterSlice(path, layer) for layer in range(spec.shape[0]))
        elif images or not path.startswith("patch_embed"):
            yield ParameterSlice(path)


def names(name):
    """Returns the names of a tiny model's tensors."""
    layout, _, definition = tiny(name)
    return [rule.name for rule in LAYOUTS[layout].tensors(definition)]


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_is_in_one_tensor(name):
    layout, _, definition = tiny(name)
    rules = LAYOUTS[layout].tensors(definition)
    slices = [slice_ for rule in rules for slice_ in rule.slices]
    assert len(slices) == len(set(slices))
    assert set(slices) == set(every_slice(definition, LAYOUTS[layout].has_images))
    assert len({rule.name for rule in rules}) == len(rules)
    assert all(LAYOUTS[layout].canonical(rule.name) == rule.name for rule in rules)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", TINY)
def test_split_and_join_are_inverse_bit_for_bit(name, dtype):
    layout, _, definition = tiny(name)
    rng = np.random.default_rng(0)
    for rule in LAYOUTS[layout].tensors(definition):
        theirs = rng.normal(size=rule.shape).astype(dtype)
        ours = rule.split(theirs)
        for slice_, values in zip(rule.slices, ours, strict=True):
            shape = list(definition.specs[slice_.path].shape)
            published = [100 if size == 128 else size for size in shape]  # without padding of the vocabulary
            assert list(values.shape) == published[slice_.layer is not None :]
            assert values.dtype == dtype
        again = rule.join(ours)
        assert (again.shape, again.dtype) == (rule.shape, dtype)
        assert (again == theirs).all()


def test_vocabulary_padding_is_not_published():
    layout, _, definition = tiny("solo")
    for rule in LAYOUTS[layout].tensors(definition):
        if rule.name in ("model.embed_tokens.weight", "lm_head.weight"):
            padded = np.arange(128 * 32).reshape(definition.specs[rule.slices[0].path].shape)
            assert rule.join([padded]).shape == (100, 32)
            (again,) = rule.split(rule.join([padded]))
            assert (again == padded[: again.shape[0], : again.shape[1]]).all()
            with pytest.raises(ValueError, match="is expected"):
                rule.join([padded[:, :31] if rule.name.startswith("model") else padded[:31]])


@pytest.mark.parametrize("name", TINY)
def test_config_json_describes_the_model(name):
    layout, config, _ = tiny(name)
    assert LAYOUTS[layout].refusal(config) is None
    written = json.loads(json.dumps(LAYOUTS[layout].config_json(config, 100)))
    assert recognise(written, "config.json", partial(names, name)) is LAYOUTS[layout]
    found = LAYOUTS[layout].config_from(written)
    assert found["model"]["vocab_size"] == 100
    for section, keys in found.items():
        mine = json.loads(getattr(config, section).model_dump_json())
        if section == "model":
            mine |= {"head_dim": config.model.dim_per_head} if "native" not in name else {}
            mine["patch_embed"] = {key: mine["patch_embed"][key] for key in keys.get("patch_embed", {})}
            if mine["rope_scaling"]:
                mine["rope_scaling"] = {key: mine["rope_scaling"][key] for key in keys["rope_scaling"]}
        for key, value in json.loads(json.dumps(keys)).items():
            assert mine[key] == value, (section, key)


@pytest.mark.parametrize("layout", PUBLISHED)
def test_published_sizes(layout):
    config_json, tensors, parameters = PUBLISHED[layout]
    assert recognise(config_json, "config.json") is LAYOUTS[layout]
    sections = LAYOUTS[layout].config_from(config_json)
    config = parse_config({"name": layout, **json.loads(json.dumps(sections))})
    assert LAYOUTS[layout].refusal(config) is None
    definition = ModelDefinition(config.model, config.image, config.model.vocab_size)
    rules = LAYOUTS[layout].tensors(definition)
    assert len(rules) == tensors
    assert sum(prod(rule.shape) for rule in rules) == parameters


@pytest.mark.parametrize(
    ("layout", "file", "free"),
    [
        # max_tiles is not published
        ("solo", "solo_7b", ()),
        ("sail", "sail_7b", ("sliding_window",)),
        ("mono_internvl", "mono_internvl_2b", ("max_tiles", "frozen_embedding_id")),
        ("evev2", "evev2_7b", ()),
        ("fuyu", "fuyu_8b", ()),
        ("gemma4_unified", "gemma4_unified_12b", ()),
    ],
)
def test_a_published_config_json_and_our_file_of_that_model_agree(layout, file, free):
    config = load_config(CONFIGS / f"{file}.yaml")
    check_agreement(LAYOUTS[layout], LAYOUTS[layout].config_from(PUBLISHED[layout][0]), config, "x")
    for section in ("image", "sequence"):
        mine = json.loads(getattr(config, section).model_dump_json())
        for key, value in json.loads(json.dumps(LAYOUTS[layout].config_from(PUBLISHED[layout][0])[section])).items():
            assert key in free or mine[key] == value, (section, key)
    assert LAYOUTS[layout].refusal(config) is None


def test_the_token_added_to_patches_is_written_and_read():
    for name in ("solo", "sail"):
        layout, config, _ = tiny(name)
        written = LAYOUTS[layout].config_json(config, 100)
        assert LAYOUTS[layout].config_from(written)["model"]["patch_embed"]["token_id"] == 7
        del written["vision_patch_token_id"]
        assert "token_id" not in LAYOUTS[layout].config_from(written)["model"]["patch_embed"]


def test_names_and_shapes_of_the_published_tensors():
    """Samples tensors of the published models and of the classes named in the layouts' modules."""
    shapes = {}
    for layout, (config_json, *_) in PUBLISHED.items():
        config = parse_config({"name": layout, **json.loads(json.dumps(LAYOUTS[layout].config_from(config_json)))})
        definition = ModelDefinition(config.model, config.image, config.model.vocab_size)
        shapes |= {(layout, rule.name): rule.shape for rule in LAYOUTS[layout].tensors(definition)}
    last = "language_model.model.layers.23"
    for key, shape in {
        ("solo", "model.embed_vision_patch.weight"): (4096, 3072),
        ("solo", "model.layers.31.self_attn.k_proj.weight"): (1024, 4096),
        ("solo", "lm_head.weight"): (33029, 4096),
        ("sail", "model.vis_embed.weight"): (4096, 3072),
        ("mono_internvl", "vision_model.embeddings.class_embedding"): (1, 1, 1024),
        ("mono_internvl", "vision_model.embeddings.position_embedding"): (1, 1025, 1024),
        ("mono_internvl", "vision_model.embeddings.patch_embedding.weight"): (1024, 3, 14, 14),
        ("mono_internvl", "mlp1.1.weight"): (2048, 4096),
        ("mono_internvl", f"{last}.attention.wqkv.weight"): (4096, 2048),
        ("mono_internvl", f"{last}.feed_forward_ve.w2.weight"): (2048, 8192),
        ("mono_internvl", "language_model.output.weight"): (92553, 2048),
        ("evev2", "model.layers.27.self_attn.moe_k_proj.bias"): (512,),
        ("evev2", "model.layers.27.moe_mlp.down_proj.weight"): (3584, 18944),
        ("evev2", "model.layers.27.moe_post_attention_layernorm.weight"): (3584,),
        ("evev2", "model.vision_tower.patch_embedding.2.weight"): (3584, 1024, 2, 2),
        ("fuyu", "language_model.model.layers.35.self_attn.query_key_value.bias"): (12288,),
        ("fuyu", "vision_embed_tokens.weight"): (4096, 2700),
        ("fuyu", "language_model.model.final_layernorm.bias"): (4096,),
    }.items():
        assert shapes[key] == shape


@pytest.mark.parametrize("layout", ["solo", "sail", "mono_internvl", "evev2", "fuyu"])
def test_text_layouts_store_the_text_path_of_a_monolith(layout):
    """A text layout stores the text experts and no patch embedding."""
    name = next(name for name in TINY if tiny(name)[0] == layout)
    _, config, definition = tiny(name)
    for target in ("mistral", "qwen2", "qwen3", "internlm2"):
        if LAYOUTS[target].refusal(config) is None:
            paths = {slice_.path for rule in LAYOUTS[target].tensors(definition) for slice_ in rule.slices}
            assert not any("patch" in path for path in paths)
            assert {path.split("/")[1] for path in definition.specs if "patches" in path} <= {
                path.split("/")[1] for path in paths if "/text/" in path
            }
            break
    else:
        assert layout == "fuyu"  # Persimmon has no text layout of its own


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("mistral", {"model": {"bias": "qkv"}}, "model.bias is qkv; the mistral layout has none"),
        ("mistral", {"model": {"experts": {"ffn": "moe"}}}, "model.experts.ffn is moe"),
        ("llama", {"sequence": {"sliding_window": 10}}, "sequence.sliding_window is 10; the llama layout has None"),
        ("qwen2", {}, "model.bias is none; the qwen2 layout has qkv"),
        ("qwen3", {}, "model.qk_norm is none; the qwen3 layout has rms"),
        ("internlm2", {"model": {"head_dim": 16}}, "model.head_dim is 16"),
        ("internlm2", {"model": {"tied_head": True}}, "model.tied_head is True"),
        ("solo", {}, "model.patch_embed.token_id is not set"),
        ("solo", {"model": {"patch_embed": {"token_id": 1}, "experts": MODALITY}}, "model.experts.ffn is modality"),
        (
            "solo",
            {"model": {"patch_embed": {"token_id": 1}}, "image": {"mask": "prefix"}},
            "image.mask is pr",
        ),
        ("sail", {"model": {"patch_embed": {"token_id": 1}}}, "model.rope_sections is None"),
        ("mono_internvl", {}, "model.patch_embed.kind is linear; the mono_internvl layout has grid"),
        ("evev2", {}, "model.patch_embed.kind is linear; the evev2 layout has conv"),
        ("fuyu", {}, "model.patch_embed.bias is False; the fuyu layout has True"),
    ],
)
def test_a_refusal_names_the_key(layout, change, message):
    config = parse_config({"name": "x", **change, "model": {**TEXT, **change.get("model", {})}})
    assert message in LAYOUTS[layout].refusal(config)


def test_attention_experts_without_a_name():
    _, config, _ = tiny("mono_internvl")
    experts = config.model.experts.model_copy(update={"out": "modality"})
    config = config.model_copy(update={"model": config.model.model_copy(update={"experts": experts})})
    assert "model.experts.out is modality without" in LAYOUTS["mono_internvl"].refusal(config)


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("mistral", {"hidden_act": "gelu"}, "hidden_act: gelu; our model of this family has silu"),
        ("mistral", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "scaled by 'yarn'; we have linear, dynamic"),
        ("mistral", {"rope_parameters": {"rope_type": "longrope"}}, "scaled by 'longrope'"),
        ("mistral", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "original_max_position_embeddings, low_"),
        ("mistral", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "differ by layer type"),
        ("mistral", {"rms_norm_eps": None}, "config.json lacks rms_norm_eps"),
        ("llama", {"attention_bias": True}, "attention_bias: True"),
        ("llama", {"mlp_bias": True}, "mlp_bias: True"),
        ("qwen2 with a tied head", {"use_sliding_window": True}, "use_sliding_window: True"),
        ("internlm2", {"bias": True}, "bias: True"),
        ("mono_internvl", {"select_layer": -4}, "select_layer other than -1"),
        ("mono_internvl", {"ps_version": "v3"}, "ps_version 'v3'"),
        ("mono_internvl", {"pad2square": True}, "pad2square: True"),
        ("evev2", {"moe_part": "mlp"}, "no visual experts of layernorm, self_attn"),
        ("fuyu", {"text_config": {"model_type": "gemma"}}, "text_config is a 'gemma'"),
        ("fuyu", {"text_config": {"model_type": "persimmon", "hidden_act": "gelu"}}, "hidden_act: gelu"),
        ("native", {"image": None}, "lacks the sections image"),
    ],
)
def test_an_unsupported_config_json_names_the_key(layout, change, message):
    name, config, _ = tiny(layout)
    with pytest.raises(LayoutError, match=message):
        LAYOUTS[name].config_from({**LAYOUTS[name].config_json(config, 100), **change})


def test_rotary_scaling_in_the_old_and_the_new_form():
    _, config, _ = tiny("llama")
    written = LAYOUTS["llama"].config_json(config, 100)
    scaling = written.pop("rope_scaling")
    new = {**written, "rope_parameters": {**scaling, "rope_theta": written.pop("rope_theta")}}
    new.pop("rope_theta")
    old_sections = LAYOUTS["llama"].config_from(LAYOUTS["llama"].config_json(config, 100))
    assert LAYOUTS["llama"].config_from(new) == old_sections
    assert old_sections["model"]["rope_scaling"]["kind"] == "llama3"


def test_a_flat_fuyu_is_read_with_its_own_values():
    """Configs saved by newer versions have an almost empty text_config, whose defaults are not Fuyu's."""
    config_json = PUBLISHED["fuyu"][0]
    flat = LAYOUTS["fuyu"].config_from(config_json)
    assert flat == LAYOUTS["fuyu"].config_from({**config_json, "text_config": {"model_type": "persimmon"}})
    assert (flat["model"]["rope_theta"], flat["model"]["rope_fraction"]) == (25_000.0, 0.5)


def test_alternative_tensor_names():
    fuyu = LAYOUTS["fuyu"].canonical
    for name in ("model.layers.0.x", "model.language_model.layers.0.x", "language_model.layers.0.x"):
        assert fuyu(name) == "language_model.model.layers.0.x"
    assert fuyu("lm_head.weight") == "language_model.lm_head.weight"
    assert fuyu("model.vision_embed_tokens.bias") == "vision_embed_tokens.bias"
    assert LAYOUTS["evev2"].canonical("model.vision_tower.start_embedding") == "model.vision_tower.class_embedding"


def test_layouts_are_recognised():
    mistral = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    assert recognise(mistral, "x").name == "mistral"
    assert recognise({**mistral, "vision_patch_size": 32}, "x").name == "solo"
    assert recognise({"model_type": "mistral", "architectures": ["SoloForCausalLM"]}, "x").name == "solo"
    sail = {"model_type": "mistral", "architectures": ["MMistralForCausalLM"], "vision_patch_size": 32}
    assert recognise(sail, "x").name == "sail"
    with pytest.raises(LayoutError, match=r"here/config.json is of model_type 'internvl_chat' \(InternVLChatModel\)"):
        recognise({"model_type": "internvl_chat", "architectures": ["InternVLChatModel"]}, "here/config.json")
    with pytest.raises(LayoutError, match="unknown layout 'mistrall'; did you mean 'mistral'"):
        layout_named("mistrall")


def test_a_mistral_without_a_window_has_the_default_of_transformers():
    layout, config, _ = tiny("mistral")
    stated = LAYOUTS[layout].config_json(config, 100)
    del stated["sliding_window"]
    windows = [
        LAYOUTS[layout].config_from(each)["sequence"]["sliding_window"]
        for each in (stated, stated | {"sliding_window": None})
    ]
    assert windows == [4096, None]


@pytest.mark.parametrize("name", TINY)
def test_a_value_of_another_kind_is_refused(name):
    """Every key of every layout with a value of every JSON type gives a model or a LayoutError, no other exception."""
    layout, config, _ = tiny(name)
    stated = json.loads(json.dumps(LAYOUTS[layout].config_json(config, 100)))
    places = [stated, *(value for value in stated.values() if isinstance(value, dict))]
    if layout == "native":  # its sections are validated as parts of a config
        places = places[:1]
    refused = 0
    for place in places:
        for key in [
            *place,
            "rope_scaling",
            "rope_parameters",
            "architectures",
            "head_dim",
            "text_config",
            "llm_config",
        ]:
            before = dict(place)
            for value in (None, "abc", "32", -1, 0, 1.5, float("nan"), True, [1], {"a": 1}, {"factor": "x"}):
                place[key] = value
                try:
                    recognise(stated, "config.json", partial(names, name)).config_from(stated)
                except LayoutError:
                    refused += 1
            place.clear()
            place.update(before)
    assert refused > 20


def test_the_message_names_the_key_and_its_value():
    layout, config, _ = tiny("llama")
    stated = LAYOUTS[layout].config_json(config, 100) | {"num_attention_heads": 0, "rope_scaling": {"factor": "8"}}
    with pytest.raises(LayoutError) as error:
        recognise(stated, "config.json")
    assert str(error.value).splitlines() == [
        "config.json has invalid values:",
        "  num_attention_heads: Input should be greater than 0, found 0",
        "  rope_scaling.factor: Input should be a valid number, found '8'",
    ]
