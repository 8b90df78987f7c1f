"""Counts of parameters against sizes worked out by hand."""

import pytest

from solo.config import ModelConfig
from solo.model.count import active_parameters, count_parameters
from solo.model.parameters import ModelDefinition
from tests.tiny import MODEL, tiny_config

WIDTH, FFN, LAYERS, PIXELS, VOCAB = 32, 48, 2, 8 * 8 * 3, 310
ATTENTION = 2 * WIDTH * WIDTH + 2 * WIDTH * WIDTH // 2
NORMS = (2 * LAYERS + 1) * WIDTH


def definition(**changes) -> ModelDefinition:
    return ModelDefinition(ModelConfig.model_validate({**MODEL, **changes}), tiny_config().image, VOCAB)


def test_a_slot_passes_through_the_weights_of_its_own_region() -> None:
    active = active_parameters(definition())
    layers = LAYERS * (ATTENTION + 3 * WIDTH * FFN) + NORMS
    assert active.patches == layers + PIXELS * WIDTH
    assert active.text == layers + 2 * VOCAB * WIDTH


@pytest.mark.parametrize(("count", "top_k"), [(8, 1), (8, 2), (2, 2)])
def test_a_slot_passes_through_the_experts_that_a_router_chooses(count, top_k) -> None:
    of = definition(experts={"ffn": "moe"}, moe={"count": count, "top_k": top_k})
    experts = 3 * WIDTH * (FFN // top_k)
    layers = LAYERS * (ATTENTION + WIDTH * count + top_k * experts) + NORMS
    assert active_parameters(of).patches == layers + PIXELS * WIDTH
    by_name = {each.name: each for each in count_parameters(of)}
    assert by_name["ffn, moe"].total == LAYERS * (WIDTH * count + count * experts)
    assert by_name["ffn, moe"].of_text == by_name["ffn, moe"].of_patches


@pytest.mark.parametrize(
    "changes",
    [
        {"experts": {"ffn": "moe"}, "tied_head": True},
        {"experts": {"ffn": "modality", "qkv": "modality", "out": "modality", "norms": "modality"}, "bias": "all"},
        {"patch_embed": {"kind": "conv", "inner_size": 4, "inner_width": 8}, "qk_norm": "rms", "norm": "layer"},
    ],
)
def test_the_components_are_the_whole_model_without_the_padding_of_the_vocabulary(changes) -> None:
    of = definition(**changes)
    padding = (384 - VOCAB) * WIDTH * (1 if of.config.tied_head else 2)
    assert sum(each.total for each in count_parameters(of)) == of.num_parameters() - padding


def test_components_of_each_region_are_named() -> None:
    found = {each.name: (each.of_text > 0, each.of_patches > 0) for each in count_parameters(definition())}
    assert found == {
        "patch_embed": (False, True),
        "text_embed": (True, False),
        "norms": (True, True),
        "attention": (True, True),
        "attention, patches": (False, True),
        "attention, text": (True, False),
        "ffn, patches": (False, True),
        "ffn, text": (True, False),
        "head": (True, False),
    }
