"""Compares the exported PyTorch model with the JAX model on the same weights."""

import functools

import numpy as np
import pytest

from tests.interop.twins import PLACEHOLDER, document, make_twins

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from solo.interop.remote import modeling_solo  # noqa: E402

ALL = {"ffn": "modality", "qkv": "modality", "out": "modality", "norms": "modality"}
SWITCHES = {
    "shared": {},
    "modality_ffn_grid_dynamic": {
        "image": {"row_token": None, "tile_size": 8},
        "model": {
            "experts": {"ffn": "modality"},
            "patch_embed": {"kind": "grid", "inner_size": 2, "inner_width": 6, "grid_side": 3, "class_slot": True},
            "rope_scaling": {"kind": "dynamic", "factor": 2.0, "trained_length": 8},
        },
    },
    "modality_all_conv_bias_qkv": {
        "image": {"mask": "bidirectional"},
        "model": {
            "experts": ALL,
            "patch_embed": {"kind": "conv", "inner_size": 2, "inner_width": 8, "rotation_theta": 100.0},
            "bias": "qkv",
            "qk_norm": "rms",
            "rope_scaling": {"kind": "llama3", "factor": 4.0, "trained_length": 64},
        },
    },
    "persimmon": {
        "model": {
            "ffn": "relu2",
            "bias": "all",
            "norm": "layer",
            "qk_norm": "layer",
            "rope_fraction": 0.5,
            "patch_embed": {"bias": True, "token_id": 3},
            "rope_scaling": {"kind": "linear", "factor": 2.0, "trained_length": 64},
        },
    },
    "prefix_beyond_the_window": {
        "image": {"mask": "prefix", "row_token_after_last": True},
        "model": {"experts": {"qkv": "modality", "norms": "modality"}},
        "sequence": {"sliding_window": 4},
    },
    "bidirectional_beyond_the_window": {"image": {"mask": "bidirectional"}, "sequence": {"sliding_window": 3}},
    "grid_positions": {
        "image": {"mask": "prefix"},
        "model": {"rope_sections": (0, 1, 1), "experts": {"out": "modality"}},
        "sequence": {"positions": "grid"},
    },
    "heads_in_parts": {
        "image": {"mask": "bidirectional"},
        "model": {
            "head_parts": [
                {"axis": "time", "width": 4},
                {"axis": "row", "width": 2, "theta": 50.0, "projection": "grid"},
                {"axis": "column", "width": 4, "theta": 50.0, "projection": "grid"},
            ],
            "value_dim": 3,
            "attention_scale": 0.4,
            "qk_norm": "rms",
            "bias": "qkv",
            "experts": {"qkv": "modality"},
        },
        "sequence": {"positions": "separate"},
    },
    "heads_with_a_norm_over_parts": {
        "model": {
            "head_dim": 8,
            "head_parts": [
                {"axis": "time", "width": 4},
                {"axis": "row", "width": 2, "theta": 50.0, "norm": "grid"},
                {"axis": "column", "width": 2, "theta": 50.0, "norm": "grid"},
            ],
            "qk_norm": "rms",
        },
        "sequence": {"positions": "separate"},
    },
    "markers": {
        "image": {"begin_token": None, "end_token": None, "row_token": None, "markers": True},
        "model": {"experts": ALL, "patch_embed": {"kind": "conv", "inner_size": 2, "inner_width": 6}, "bias": "qkv"},
    },
    "learned_tied_isolated": {
        "image": {"mask": "isolated"},
        "model": {"experts": {"ffn": "moe"}, "moe": {"count": 4, "top_k": 2}, "tied_head": True},
    },
}


@pytest.mark.parametrize("name", SWITCHES)
def test_logits_are_those_of_the_jax_model(name):
    twins = make_twins(modeling_solo, **SWITCHES[name])
    for parts in ((9,), ((2, 2), 5), (3, (2, 2), (1, 2), 4), (1, (1, 1), 3, (2, 1), 2)):
        example = document(twins.config, *parts)
        ours = twins.jax_logits(example)
        theirs = logits_of(twins, twins.inputs(example))[0].numpy()
        np.testing.assert_allclose(theirs[:, : ours.shape[1]], ours, atol=1e-4, rtol=0)
        assert np.ptp(ours) > 0.5, "logits that hardly differ would agree by themselves"


def logits_of(twins, inputs, **more):
    with torch.no_grad():
        return twins.torch_model(**inputs, **more).logits


def real(logits, inputs):
    """Returns the logits of a batch at all tokens but padding."""
    return logits[inputs["attention_mask"].bool()]


EXPERTS = {"image": {"mask": "prefix"}, "model": {"experts": ALL}}


@pytest.fixture(scope="module")
def experts():
    return make_twins(modeling_solo, **EXPERTS)


def alone_and_together(twins):
    few, many = document(twins.config, 2, (1, 2), 1, seed=1), document(twins.config, (2, 2), 3, (2, 1), 4, seed=2)
    return few, many, torch.cat([logits_of(twins, twins.inputs(one))[0] for one in (few, many)])


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_changes_nothing(experts, pad, attention):
    few, many, alone = alone_and_together(experts)
    inputs = experts.inputs(few, many, pad=pad)
    experts.torch_model.set_attn_implementation(attention)
    torch.testing.assert_close(real(logits_of(experts, inputs), inputs), alone, atol=1e-5, rtol=0)


def test_padding_does_not_count_towards_the_length():
    """Dynamic scaling applies to rows longer than 8 without padding."""
    twins = make_twins(modeling_solo, **SWITCHES["modality_ffn_grid_dynamic"])
    few, many, alone = alone_and_together(twins)
    inputs = twins.inputs(few, many)
    assert len(few.tokens) < 8 < len(many.tokens)
    torch.testing.assert_close(real(logits_of(twins, inputs), inputs), alone, atol=1e-5, rtol=0)


def test_another_attention_function_is_used(experts):
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    seen = []

    def attend(module, query, key, value, mask, scaling, **kwargs):
        seen.append((module.layer_idx, kwargs.get("note")))
        key, value = (x.repeat_interleave(module.num_key_value_groups, dim=1) for x in (key, value))
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
        return out.transpose(1, 2), None

    AttentionInterface.register("of_a_test", attend)
    AttentionMaskInterface.register("of_a_test", sdpa_mask)
    inputs = experts.inputs(document(experts.config, 2, (2, 2), 3))
    wanted = logits_of(experts, inputs)
    experts.torch_model.set_attn_implementation("of_a_test")
    found = logits_of(experts, inputs, note="kept")
    experts.torch_model.set_attn_implementation("sdpa")
    assert seen == [(0, "kept"), (1, "kept")]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_only_the_needed_expert_computes(experts):
    """Counts the tokens that each expert computed; blending would show all tokens to both."""
    seen = {}
    hooks = [
        module.register_forward_hook(lambda _, given, __, name=name: seen.__setitem__(name, len(given[0])))
        for name, module in experts.torch_model.model.layers[0].named_modules()
        if name.endswith((".patches", ".text"))
    ]
    logits_of(experts, experts.inputs(document(experts.config, 3, (2, 2), 2)))
    for hook in hooks:
        hook.remove()
    # 3 + 2 text, begin, row and end token
    assert seen == {
        f"{component}.{region}": count
        for component in ("attention_norm", "qkv", "out", "ffn_norm", "ffn")
        for region, count in (("patches", 4), ("text", 8))
    }


def split(inputs, at):
    """Splits the inputs of a batch of one into those before and those after a place."""
    visual = inputs["input_ids"][0] == PLACEHOLDER
    patches = int(visual[:at].sum())
    first = {"input_ids": inputs["input_ids"][:, :at], "attention_mask": inputs["attention_mask"][:, :at]}
    second = {"input_ids": inputs["input_ids"][:, at:], "attention_mask": inputs["attention_mask"]}
    for name in ("pixel_values", "patches_grid"):
        first[name], second[name] = inputs[name][:patches], inputs[name][patches:]
    return first, {name: value for name, value in second.items() if len(value)}


@pytest.mark.parametrize("at", [3, 10, 14, 18])
def test_an_image_on_top_of_a_cache_uses_the_experts_of_patches(experts, at):
    """Text (3), an image (7), text (4), an image (4), text (2), in two steps and in one."""
    inputs = experts.inputs(document(experts.config, 3, (2, 2), 4, (1, 2), 2))
    whole = logits_of(experts, inputs)
    first, second = split(inputs, at)
    with torch.no_grad():
        before = experts.torch_model(**first, use_cache=True)
    after = logits_of(experts, second, past_key_values=before.past_key_values)
    torch.testing.assert_close(torch.cat([before.logits, after], dim=1), whole, atol=1e-5, rtol=0)


def test_causal_images_may_be_split_anywhere():
    twins = make_twins(modeling_solo, model={"experts": ALL}, sequence={"sliding_window": 6})
    inputs = twins.inputs(document(twins.config, 3, (2, 2), 4, (1, 2), 2))
    whole = logits_of(twins, inputs)
    first, second = split(inputs, 6)
    with torch.no_grad():
        before = twins.torch_model(**first, use_cache=True)
    after = logits_of(twins, second, past_key_values=before.past_key_values)
    torch.testing.assert_close(torch.cat([before.logits, after], dim=1), whole, atol=1e-5, rtol=0)


def test_a_bidirectional_image_must_not_be_split(experts):
    inputs = experts.inputs(document(experts.config, 3, (2, 2), 4))
    first, _ = split(inputs, 6)
    with pytest.raises(ValueError, match="split within an image"):
        logits_of(experts, first)


def test_grid_positions_on_top_of_a_cache_must_be_given(by_rows):
    inputs = by_rows.inputs(document(by_rows.config, 3, (2, 2), 4))
    whole = logits_of(by_rows, inputs)
    positions = by_rows.torch_model.model.get_position_ids(**{n: v for n, v in inputs.items() if n != "pixel_values"})
    first, second = split(inputs, 10)
    with torch.no_grad():
        cache = by_rows.torch_model(**first, use_cache=True).past_key_values
    after = logits_of(by_rows, second, past_key_values=cache, position_ids=positions[..., 10:])
    torch.testing.assert_close(after, whole[:, 10:], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="give position_ids"):
        logits_of(by_rows, second, past_key_values=cache)


def test_patches_must_match_placeholders(experts):
    inputs = experts.inputs(document(experts.config, 3, (2, 2), 4))
    inputs["pixel_values"] = inputs["pixel_values"][:3]
    with pytest.raises(ValueError, match=r"4 placeholders .* 3 patches"):
        logits_of(experts, inputs)


def greedy(twins, inputs, count):
    """Decodes greedily without a cache."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    for _ in range(count):
        logits = logits_of(twins, inputs | {"input_ids": ids, "attention_mask": mask})[:, -1]
        logits[:, PLACEHOLDER] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    return ids


SETTINGS = {"do_sample": False, "max_new_tokens": 5, "suppress_tokens": [PLACEHOLDER], "pad_token_id": 0}


@pytest.fixture(scope="module")
def by_rows():
    """A model with grid positions."""
    return make_twins(modeling_solo, **SWITCHES["grid_positions"])


@pytest.fixture(scope="module")
def in_parts():
    """A model whose text has row and column 0."""
    return make_twins(modeling_solo, **SWITCHES["heads_in_parts"])


@pytest.fixture(params=["experts", "by_rows", "in_parts"])
def twins(request):
    return request.getfixturevalue(request.param)


def test_generate_is_greedy_decoding(twins):
    few, many, _ = alone_and_together(twins)
    inputs = twins.inputs(few, many)
    wanted = greedy(twins, inputs, 5)
    assert torch.equal(twins.torch_model.generate(**inputs, **SETTINGS), wanted)


def test_beams_keep_their_rows_images(twins):
    few, many, _ = alone_and_together(twins)
    beams = SETTINGS | {"num_beams": 2, "num_return_sequences": 2}
    inputs = twins.inputs(few, many)
    together = twins.torch_model.generate(**inputs, **beams)[:, -5:]
    alone = [twins.torch_model.generate(**twins.inputs(one), **beams)[:, -5:] for one in (few, many)]
    assert torch.equal(together, torch.cat(alone))
    ids, expanded = twins.torch_model._expand_inputs_for_generation(2, False, **inputs)
    twice = logits_of(twins, expanded | {"input_ids": ids})
    torch.testing.assert_close(twice, logits_of(twins, inputs).repeat_interleave(2, dim=0), atol=1e-5, rtol=0)


def test_chunked_prefill(twins):
    inputs = twins.inputs(document(twins.config, 4, (2, 2), 5))
    wanted = twins.torch_model.generate(**inputs, **SETTINGS)
    found = twins.torch_model.generate(**inputs, **SETTINGS, prefill_chunk_size=4 + 7)
    assert torch.equal(found, wanted)


MASKS = {
    "prefix": EXPERTS,
    "bidirectional_beyond_the_window": SWITCHES["bidirectional_beyond_the_window"],
    "causal_within_a_window": {"sequence": {"sliding_window": 4}},
    "isolated": {"image": {"mask": "isolated"}, "sequence": {"sliding_window": 4}},
    "heads_in_parts": SWITCHES["heads_in_parts"],
}


@pytest.mark.parametrize("name", MASKS)
def test_a_static_cache_changes_nothing(name):
    """Padded rows, longer than the window, and images that see themselves."""
    twins = make_twins(modeling_solo, **MASKS[name])
    few, many = document(twins.config, 2, (1, 2), 1, seed=1), document(twins.config, (2, 2), 3, (2, 1), 4, seed=2)
    inputs = twins.inputs(few, many)
    found = twins.torch_model.generate(**inputs, **SETTINGS, cache_implementation="static")
    assert torch.equal(found, greedy(twins, inputs, 5))


def test_a_decoding_step_is_one_compiled_graph(experts):
    """With a static cache: no graph break, and one graph for all steps."""
    from torch._dynamo.testing import CompileCounter

    inputs = experts.inputs(document(experts.config, 2, (1, 2), 1, seed=1), document(experts.config, (2, 2), 3, seed=2))
    wanted = experts.torch_model.generate(**inputs, **SETTINGS)
    counter, forward = CompileCounter(), experts.torch_model.forward
    compiled = torch.compile(forward, backend=counter, fullgraph=True)

    def step(input_ids=None, **kwargs):
        return (compiled if input_ids.shape[1] == 1 else forward)(input_ids=input_ids, **kwargs)

    experts.torch_model.forward = functools.wraps(forward)(step)
    try:
        found = experts.torch_model.generate(**inputs, **SETTINGS, cache_implementation="static")
    finally:
        del experts.torch_model.forward
    assert torch.equal(found, wanted)
    assert counter.frame_count == 1


def test_a_second_turn_with_an_image(twins):
    """Gives the whole conversation with all images again, on top of the cache of the first turn."""
    from transformers import DynamicCache

    cache = DynamicCache(config=twins.torch_model.config)
    turn = document(twins.config, 2, (2, 2), 3)
    said = twins.torch_model.generate(**twins.inputs(turn), **SETTINGS, past_key_values=cache)
    both = document(twins.config, 2, (2, 2), 3, 5, (1, 2), 2)
    inputs = twins.inputs(both)
    inputs["input_ids"][:, : said.shape[1]] = said
    first_patches = twins.inputs(turn)["pixel_values"]
    inputs["pixel_values"][: len(first_patches)] = first_patches
    wanted = greedy(twins, inputs, 5)
    assert torch.equal(twins.torch_model.generate(**inputs, **SETTINGS, past_key_values=cache), wanted)


def test_it_trains(experts):
    inputs = experts.inputs(document(experts.config, 2, (2, 2), 3))
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == PLACEHOLDER, -100)
    experts.torch_model(**inputs, labels=labels).loss.backward()
    for name, parameter in experts.torch_model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    experts.torch_model.zero_grad()
