"""Fuyu: a decoder and one linear layer over the pixels of a patch, ordered (y, x, channel).

Written from `fuyu` and `persimmon` of transformers 5.23, which can also combine Fuyu's images with Llama, Mistral or
Qwen3 (text_config.model_type). adept/fuyu-8b itself has one flat config.json, without text_config.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from solo.config import Config
from solo.interop.layout import (
    Layout,
    LayoutError,
    Rules,
    Sections,
    TensorRule,
    demand,
    experts,
    first_refusal,
    sections,
)
from solo.interop.layouts.llama import LLAMA, MISTRAL, QWEN3, LlamaLike, read_sizes, write_sizes
from solo.interop.layouts.rope import read_rope, write_rope
from solo.model.parameters import ModelDefinition

_DECODERS: Mapping[str, LlamaLike] = {layout.name: layout for layout in (MISTRAL, LLAMA, QWEN3)}
_PERSIMMON = {
    "model.bias": "all",
    "model.norm": "layer",
    "model.qk_norm": ("none", "layer"),
    "model.ffn": "relu2",
    "sequence.sliding_window": None,
}
_PERSIMMON_TENSORS = {
    "model.embed_tokens.weight": "text_embed",
    "model.final_layernorm.weight": "final_norm/scale",
    "model.final_layernorm.bias": "final_norm/bias",
    "lm_head.weight": "head",
}
_PERSIMMON_LAYER = {
    "input_layernorm.weight": ("attention_norm", "scale"),
    "input_layernorm.bias": ("attention_norm", "bias"),
    **{f"self_attn.{each}_layernorm.weight": ("qkv", f"{each}_norm/scale") for each in "qk"},
    **{f"self_attn.{each}_layernorm.bias": ("qkv", f"{each}_norm/bias") for each in "qk"},
    "self_attn.dense.weight": ("out", "kernel"),
    "self_attn.dense.bias": ("out", "bias"),
    "post_attention_layernorm.weight": ("ffn_norm", "scale"),
    "post_attention_layernorm.bias": ("ffn_norm", "bias"),
    "mlp.dense_h_to_4h.weight": ("ffn", "up"),
    "mlp.dense_h_to_4h.bias": ("ffn", "up_bias"),
    "mlp.dense_4h_to_h.weight": ("ffn", "down"),
    "mlp.dense_4h_to_h.bias": ("ffn", "down_bias"),
}
_TEXT = "language_model."
_HALF = (0.5, 0.5, 0.5)


class Fuyu(Layout):
    """Fuyu with Persimmon's decoder, or one of the Llama family."""

    name = "fuyu"
    has_images = True
    templates = ("fuyu",)

    def fixed(self) -> Mapping[str, Any]:
        return {
            "model.patch_embed.kind": "linear",
            "model.patch_embed.bias": True,
            "model.patch_embed.token_id": None,
            **experts("shared"),
            "model.tied_head": False,
            "model.rope_sections": None,
            "image.geometry": "padded",
            "image.mask": "causal",
            "image.row_token_after_last": True,
            "image.mean": (_HALF,),
            "image.std": (_HALF,),
        }

    def recognises(self, config_json: Mapping[str, Any]) -> bool:
        return config_json.get("model_type") == "fuyu"

    def config_from(self, config_json: Mapping[str, Any]) -> Sections:
        nested = config_json.get("text_config") or {}
        kind = nested.get("model_type", "persimmon")
        demand(config_json, {"num_channels": 3})
        if kind == "persimmon":
            # Configs saved by newer versions keep these keys on top and have an empty text_config.
            decoder = _persimmon({**config_json, **nested})
        elif kind in _DECODERS:
            decoder = _DECODERS[kind].config_from(nested)
        else:
            raise LayoutError(f"text_config is a {kind!r}; known are persimmon, {', '.join(_DECODERS)}")
        found = sections(self.fixed())
        found["model"] |= decoder["model"]
        found["sequence"] = decoder["sequence"]
        found["image"] |= {
            "patch_size": config_json.get("patch_size", 30),
            "exif": "ignore",
            "begin_token": None,
            "end_token": None,
            "row_token": "|NEWLINE|",
            "placeholder_token": "|SPEAKER|",
        }
        return found

    def config_json(self, config: Config, vocab_size: int) -> dict[str, Any]:
        """See `Layout`. `image_token_id` is left to the caller, who knows the tokenizer."""
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
        if found := super().refusal(config):
            return found
        if (decoder := _decoder(config)) is not None:
            return decoder.refusal(config)
        model = config.model
        if model.kv_heads != model.heads or model.dim_per_head * model.heads != model.width:
            return "a fuyu with model.norm layer has model.kv_heads = model.heads and model.head_dim = width / heads"
        return first_refusal(config, self.name, _PERSIMMON)

    def tensors(self, definition: ModelDefinition) -> list[TensorRule]:
        rules, side, width = Rules(definition), definition.image.patch_size, definition.config.width
        is_persimmon = definition.config.norm == "layer"
        kernel = rules.rearranged(
            "vision_embed_tokens.weight",
            "patch_embed/kernel",
            view=(width, side, side, 3),
            order=(3, 1, 2, 0),
            shape=(width, side * side * 3),
        )
        bias = rules.tensor("vision_embed_tokens.bias", "patch_embed/bias")
        return [kernel, bias, *(_persimmon_tensors(rules) if is_persimmon else LLAMA.text_tensors(rules, _TEXT))]

    def canonical(self, name: str) -> str:
        """Translates the four names that transformers has given the language model."""
        name = re.sub(r"^model\.(language_model|vision_embed_tokens)\b", r"\1", name)
        name = re.sub(rf"^{_TEXT}(?!model\.|lm_head\.)", f"{_TEXT}model.", name)
        return re.sub(r"^(model\.|lm_head\.)", rf"{_TEXT}\1", name)


def _decoder(config: Config) -> LlamaLike | None:
    """Returns the decoder to export a model with; None is Persimmon."""
    if config.model.norm == "layer":
        return None
    if config.model.qk_norm == "rms":
        return QWEN3
    return LLAMA if config.sequence.sliding_window is None else MISTRAL


def _persimmon(text: Mapping[str, Any]) -> Sections:
    demand(text, {"hidden_act": "relu2"})
    found = sections({**experts("shared"), **_PERSIMMON})
    found["model"] |= read_sizes(text, "layer_norm_eps") | read_rope(text, theta=25_000.0, fraction=0.5)
    found["model"]["qk_norm"] = "layer" if text.get("qk_layernorm", True) else "none"
    return found


def _persimmon_json(config: Config, vocab_size: int) -> dict[str, Any]:
    return {
        "model_type": "persimmon",
        **write_sizes(config, vocab_size),
        "hidden_act": "relu2",
        "layer_norm_eps": config.model.norm_eps,
        "qk_layernorm": config.model.qk_norm == "layer",
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        **write_rope(config.model, 16_384),
        "partial_rotary_factor": config.model.rope_fraction,
    }


def _persimmon_tensors(rules: Rules) -> list[TensorRule]:
    first, *last = rules.tensors({_TEXT + name: path for name, path in _PERSIMMON_TENSORS.items()})
    found = [first]
    q, k, v = (f"layers/qkv/shared/{each}" for each in "qkv")
    for layer in range(rules.config.layers):
        name = f"{_TEXT}model.layers.{layer}."
        packed = f"{name}self_attn.query_key_value"
        found.append(rules.packed(f"{packed}.weight", (q, k, v), layer))
        found.append(rules.packed(f"{packed}.bias", (f"{q}_bias", f"{k}_bias", f"{v}_bias"), layer))
        found += rules.layer(_PERSIMMON_LAYER, name, layer)
    return [*found, *last]


FUYU = Fuyu()
