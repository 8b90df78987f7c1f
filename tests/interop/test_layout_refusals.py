"""What a layout's config.json cannot say about a model is refused, neither written otherwise nor read otherwise."""

import json
from typing import Any

import pytest

from solo.config import ConfigError, ModelConfig, keys_deciding, parse_config
from solo.interop.agreement import check_agreement
from solo.interop.layout import LayoutError
from solo.interop.layouts import LAYOUTS
from tests.interop.models import GEMMA_MASKS, TINY, tiny
from tests.interop.runs import SECTIONS

SLIDING, FULL = GEMMA_MASKS
PARTS = [{"axis": "time", "width": 4}, {"axis": "row", "width": 2}, {"axis": "column", "width": 2}]
PLAIN_ROTATION = {"rope_scaling": None, "rope_sections": None}
UNWINDOWED = {"sliding_window": None}
CHANGES: dict[str, dict[str, Any]] = {
    "value_dim": {"model": {"value_dim": 4}},
    "attention_scale": {"model": {"attention_scale": 0.3}},
    "head_parts": {
        "model": {"head_parts": PARTS, "head_dim": 8, **PLAIN_ROTATION},
        "sequence": {"positions": "separate", **UNWINDOWED},
    },
    "theta of a part": {
        "model": {"head_parts": [{"axis": "time", "width": 8, "theta": 777.0}], "head_dim": 8, **PLAIN_ROTATION}
    },
    "norm_scale_dtype": {"model": {"norm_scale_dtype": "float32"}},
    "norm_placement": {"model": {"norm_placement": "sandwich"}},
    "value_norm": {"model": {"value_norm": "rms"}},
    "keys_are_values": {"model": {"keys_are_values": True}},
    "rope_pairs": {"model": {"rope_pairs": "head", "rope_fraction": 0.5, **PLAIN_ROTATION}},
    "embedding_scale": {"model": {"embedding_scale": "sqrt_width"}},
    "no embedding_scale": {"model": {"embedding_scale": "none"}},
    "logit_softcap": {"model": {"logit_softcap": 7.0}},
    "no logit_softcap": {"model": {"logit_softcap": None}},
    "layer_scalar": {"model": {"layer_scalar": True}},
    "a window of everything": {"sequence": {"layer_masks": [SLIDING | {"window_limits": "all"}, FULL]}},
    "another mask in full layers": {"sequence": {"layer_masks": [SLIDING, FULL | {"image": "causal"}]}},
    "a window in full layers": {"sequence": {"layer_masks": [SLIDING, FULL | {"sliding_window": 9}]}},
    "no window": {"sequence": {"layer_masks": [SLIDING | UNWINDOWED, FULL]}},
    "min_pixels": {"image": {"min_pixels": 1024, "max_pixels": 9216}},
    "rounding": {"image": {"rounding": "nearest"}},
}
HEADS = ("head_parts", "value_dim", "attention_scale")
NEO = ("neo", "neo_unify")
DECISIVE = [key for key in keys_deciding(ModelConfig, "model") if key not in ("patch_embed", "head_dim", "vocab_size")]
# What differs in form only: these keys have no effect on text, or are stated for each type of layers.
FORM = {"rope_sections", "rope_theta", "rope_fraction", "rope_pairs", "keys_are_values", "experts"}


def sections_of(name: str) -> tuple[str, dict[str, Any]]:
    """Returns a layout and the sections of a tiny model that it stores."""
    if name in NEO:
        return name, {"sequence": {}, **SECTIONS[name]}
    layout, config, _ = tiny(name)
    return layout, {key: json.loads(getattr(config, key).model_dump_json()) for key in ("model", "image", "sequence")}


@pytest.mark.parametrize("name", [*(name for name in TINY if "native" not in name), *NEO])
def test_a_change_is_refused_or_survives(name) -> None:
    code, sections = sections_of(name)
    layout, refused = LAYOUTS[code], 0
    base = parse_config({"name": "x", **sections})
    assert layout.refusal(base) is None
    for what, change in CHANGES.items():
        if layout.has_images and what == "rounding" and base.image.geometry != "area":
            continue
        try:
            config = parse_config({"name": "x", **{key: sections[key] | change.get(key, {}) for key in sections}})
        except ConfigError:
            continue
        if layout.refusal(config):
            refused += 1
            continue
        found = layout.config_from(json.loads(json.dumps(layout.config_json(config, 100))))
        again = parse_config(
            {"name": "x", **{key: found[key] for key in ("model", "sequence")}, "image": found["image"]}
        )
        for key in DECISIVE:
            if key not in FORM:
                assert getattr(again.model, key) == getattr(config.model, key), (what, key)
        assert again.model.positions == config.model.positions, what
        assert again.sequence.layer_masks == config.sequence.layer_masks, what
        if code == "gemma4_unified":
            assert again.image == config.image, what
    assert refused >= 8


@pytest.mark.parametrize(
    "change", ["embedding_scale", "logit_softcap", "norm_scale_dtype", "norm_placement", "value_norm", "layer_scalar"]
)
def test_a_text_model_does_not_become_another_function(change) -> None:
    """Its config.json says nothing about these keys, whose values it has implicitly."""
    layout, sections = sections_of("qwen3")
    config_json = LAYOUTS[layout].config_json(tiny("qwen3")[1], 100)
    ours = parse_config({"name": "x", **sections, "model": sections["model"] | CHANGES[change]["model"]})
    with pytest.raises(LayoutError, match=f"model.{change}: "):
        check_agreement(LAYOUTS[layout], LAYOUTS[layout].config_from(config_json), ours, "qwen")


def test_layers_of_one_type_do_not_become_several() -> None:
    config_json = LAYOUTS["qwen3"].config_json(tiny("qwen3")[1], 100)
    _, sections = sections_of("qwen3")
    types = {"layer_types": [{"name": "near"}, {"name": "far"}], "layer_pattern": ["near", "far"]}
    masks = {"layer_masks": [{"layer_type": "near"}, {"layer_type": "far"}]}
    ours = parse_config(
        {"name": "x", **sections, "model": sections["model"] | types, "sequence": sections["sequence"] | masks}
    )
    with pytest.raises(LayoutError, match=r"the types of the layers: \(\) there"):
        check_agreement(LAYOUTS["qwen3"], LAYOUTS["qwen3"].config_from(config_json), ours, "qwen")


@pytest.mark.parametrize(
    "change",
    [
        *(CHANGES[name] for name in CHANGES if name in ModelConfig.model_fields and name not in HEADS),
        {"model": {"ffn": "geglu"}},
        {"model": {"patch_embed": {"kind": "normed", "inner_width": 8, "grid_side": 4}}},
    ],
    ids=lambda change: next(iter(change["model"])),
)
def test_what_the_exported_code_does_not_compute_is_refused(change) -> None:
    _, config, _ = tiny("qwen3")
    plain = {"model": json.loads(config.model.model_dump_json())}
    assert LAYOUTS["native"].refusal(parse_config({"name": "x", **plain})) is None
    changed = parse_config({"name": "x", "model": plain["model"] | change["model"]})
    (key, *_), refusal = change["model"], LAYOUTS["native"].refusal(changed)
    assert refusal is not None
    assert refusal.startswith(f"model.{key}")
    assert refusal.endswith("its PyTorch code computes nothing else")
