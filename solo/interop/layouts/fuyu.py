"""Fuyu: a decoder and one product over the pixels of a patch, as (y, x, channel).

Written from `fuyu` and `persimmon` of transformers 5.23, which can also pair Fuyu's images with Llama, Mistral or
Qwen3: text_config.model_type says so. adept/fuyu-8b itself has one flat config.json, without text_config.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from solo.config import Config
from solo.interop.layout import Layout, LayoutError, Rules, Sections, TensorRule, first_refusal
from solo.interop.layouts.llama import LLAMA, MISTRAL, QWEN3, LlamaLike, demand, get
from solo.interop.layouts.rope import read_rope, write_rope
from solo.model.parameters import ModelDefinition

_DECODERS: Mapping[str, LlamaLike] = {layout.name: layout for layout in (MISTRAL, LLAMA, QWEN3)}
_TEXT = "language_model."
_HALF = (0.5, 0.5, 0.5)


class Fuyu(Layout):
    """With Persimmon's decoder, or one of the Llama family."""

    name = "fuyu"
    has_images = True
    templates = ("fuyu",)

    def recognises(self, config_json: Mapping[str, Any]) -> bool:
        """By its model_type."""
        return config_json.get("model_type") == "fuyu"

    def config_from(self, config_json: Mapping[str, Any]) -> Sections:
        """See `Layout`."""
        nested = config_json.get("text_config") or {}
        kind = nested.get("model_type", "persimmon")
        demand(config_json, {"num_channels": 3})
        if kind == "persimmon":
            # Re-saved configs keep these keys on top and a text_config with nothing in it.
            found = _persimmon({**config_json, **nested})
        elif kind in _DECODERS:
            found = _DECODERS[kind].config_from(nested)
        else:
            raise LayoutError(f"text_config is a {kind!r}; known are persimmon, {', '.join(_DECODERS)}")
        found["model"]["patch_embed"] = {"kind": "linear", "bias": True}
        found["image"] = {
            "geometry": "padded",
            "patch_size": config_json.get("patch_size", 30),
            "exif": "ignore",
            "begin_token": None,
            "end_token": None,
            "row_token": "|NEWLINE|",
            "row_token_after_last": True,
            "placeholder_token": "|SPEAKER|",
            "mask": "causal",
            "mean": _HALF,
            "std": _HALF,
        }
        return found

    def config_json(self, config: Config, vocab_size: int) -> dict[str, Any]:
        """See `Layout`. Who knows the tokenizer sets `image_token_id`."""
        decoder = _decoder(config)
        text = _persimmon_json(config, vocab_size) if decoder is None else decoder.config_json(config, vocab_size)
        return {
            "architectures": ["FuyuForCausalLM"],
            "model_type": "fuyu",
            "patch_size": config.image.patch_size,
            "num_channels": 3,
            "vocab_size": vocab_size,
            "hidden_size": config.model.width,
            "initializer_range": config.model.init_std,
            "tie_word_embeddings": False,
            "text_config": text,
        }

    def refusal(self, config: Config) -> str | None:
        """See `Layout`."""
        allowed = {
            "model.patch_embed.kind": "linear",
            "model.patch_embed.bias": True,
            "model.patch_embed.token_id": None,
            "model.experts.ffn": "shared",
            "model.experts.qkv": "shared",
            "model.experts.out": "shared",
            "model.experts.norms": "shared",
            "model.tied_head": False,
            "model.rope_sections": None,
            "image.geometry": "padded",
            "image.mask": "causal",
            "image.row_token_after_last": True,
            "image.mean": (_HALF,),
            "image.std": (_HALF,),
        }
        if found := first_refusal(config, self.name, allowed):
            return found
        if (decoder := _decoder(config)) is not None:
            return decoder.refusal(config)
        model = config.model
        if model.kv_heads != model.heads or model.dim_per_head * model.heads != model.width:
            return "model.kv_heads and model.head_dim are not those of plain heads, which a fuyu with norm: layer has"
        persimmon = {"model.bias": "all", "model.norm": "layer", "model.qk_norm": ("none", "layer")}
        return first_refusal(config, self.name, {**persimmon, "model.ffn": "relu2", "sequence.sliding_window": None})

    def tensors(self, definition: ModelDefinition) -> list[TensorRule]:
        """See `Layout`."""
        rules, side = Rules(definition), definition.image.patch_size
        width = definition.config.width
        decoder = MISTRAL if definition.config.qk_norm == "none" else QWEN3
        text = _persimmon_tensors(rules) if definition.config.norm == "layer" else decoder.text_tensors(rules, _TEXT)
        view, shape = (width, side, side, 3), (width, side * side * 3)
        return [
            rules.rearranged(
                "vision_embed_tokens.weight", "patch_embed/kernel", view=view, order=(3, 1, 2, 0), shape=shape
            ),
            rules.same("vision_embed_tokens.bias", "patch_embed/bias"),
            *text,
        ]

    def canonical(self, name: str) -> str:
        """transformers has had the language model under four names."""
        name = re.sub(r"^model\.(language_model|vision_embed_tokens)\b", r"\1", name)
        name = re.sub(rf"^{_TEXT}(?!model\.|lm_head\.)", f"{_TEXT}model.", name)
        return re.sub(r"^(model\.|lm_head\.)", rf"{_TEXT}\1", name)


def _decoder(config: Config) -> LlamaLike | None:
    """The decoder to write a model as; None for Persimmon."""
    if config.model.norm == "layer":
        return None
    if config.model.qk_norm == "rms":
        return QWEN3
    return LLAMA if config.sequence.sliding_window is None else MISTRAL


def _persimmon(text: Mapping[str, Any]) -> Sections:
    demand(text, {"hidden_act": "relu2"})
    heads, width = get(text, "num_attention_heads"), get(text, "hidden_size")
    model = {
        "vocab_size": get(text, "vocab_size"),
        "width": width,
        "layers": get(text, "num_hidden_layers"),
        "heads": heads,
        "kv_heads": heads,
        "head_dim": width // heads,
        "ffn_width": get(text, "intermediate_size"),
        "experts": {"ffn": "shared", "qkv": "shared", "out": "shared", "norms": "shared"},
        "ffn": "relu2",
        "bias": "all",
        "norm": "layer",
        "norm_eps": float(get(text, "layer_norm_eps")),
        "qk_norm": "layer" if text.get("qk_layernorm", True) else "none",
        "tied_head": bool(text.get("tie_word_embeddings", False)),
        **read_rope(text, theta=25_000.0, fraction=0.5),
    }
    return {"model": model, "image": {}, "sequence": {"sliding_window": None}}


def _persimmon_json(config: Config, vocab_size: int) -> dict[str, Any]:
    model = config.model
    return {
        "model_type": "persimmon",
        "vocab_size": vocab_size,
        "hidden_size": model.width,
        "intermediate_size": model.ffn_width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "hidden_act": "relu2",
        "layer_norm_eps": model.norm_eps,
        "qk_layernorm": model.qk_norm == "layer",
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "initializer_range": model.init_std,
        "tie_word_embeddings": False,
        "partial_rotary_factor": model.rope_fraction,
        **write_rope(model, 16_384),
    }


def _persimmon_tensors(rules: Rules) -> list[TensorRule]:
    name = f"{_TEXT}model."
    found = [rules.same(f"{name}embed_tokens.weight", "text_embed")]
    for layer in range(rules.config.layers):
        found += _persimmon_layer(rules, f"{name}layers.{layer}", layer)
    found += [
        rules.same(f"{name}final_layernorm.weight", "final_norm/scale"),
        rules.same(f"{name}final_layernorm.bias", "final_norm/bias"),
    ]
    return [*found, rules.linear(f"{_TEXT}lm_head.weight", "head")]


def _persimmon_layer(rules: Rules, name: str, layer: int) -> list[TensorRule]:
    attention, ours = f"{name}.self_attn", "layers/qkv/shared"
    norms = {
        f"{name}.input_layernorm": "layers/attention_norm/shared",
        f"{name}.post_attention_layernorm": "layers/ffn_norm/shared",
    }
    if rules.config.qk_norm == "layer":
        norms |= {f"{attention}.{part}_layernorm": f"{ours}/{part}_norm" for part in "qk"}
    found = []
    for theirs, path in norms.items():
        found += [
            rules.same(f"{theirs}.weight", f"{path}/scale", layer),
            rules.same(f"{theirs}.bias", f"{path}/bias", layer),
        ]
    packed, q, k, v = f"{attention}.query_key_value", f"{ours}/q", f"{ours}/k", f"{ours}/v"
    ffn = {f"{name}.mlp.dense_h_to_4h": "up", f"{name}.mlp.dense_4h_to_h": "down"}
    return [
        *found,
        rules.packed(f"{packed}.weight", (q, k, v), layer),
        rules.packed(f"{packed}.bias", (f"{q}_bias", f"{k}_bias", f"{v}_bias"), layer),
        rules.linear(f"{attention}.dense.weight", "layers/out/shared/kernel", layer, inputs=2),
        rules.same(f"{attention}.dense.bias", "layers/out/shared/bias", layer),
        *(rules.linear(f"{theirs}.weight", f"layers/ffn/shared/{part}", layer) for theirs, part in ffn.items()),
        *(rules.same(f"{theirs}.bias", f"layers/ffn/shared/{part}_bias", layer) for theirs, part in ffn.items()),
    ]


FUYU = Fuyu()
