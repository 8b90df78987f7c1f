"""Fuyu: a decoder and one linear layer over the pixels of a patch, ordered (y, x, channel).

Written from `fuyu` and `persimmon` of transformers 5.23, which can also combine Fuyu's images with Llama, Mistral or
Qwen3 (text_config.model_type). adept/fuyu-8b itself has one flat config.json, without text_config.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from solo.config import Config, ModelConfig
from solo.interop.layout import Layout, LayoutError, Sections, demand, experts, sections
from solo.interop.layouts.llama import LLAMA, MISTRAL, QWEN3, LlamaLike, read_sizes, write_sizes
from solo.interop.layouts.rope import read_rope, write_rope
from solo.interop.tensor_rules import Rules, TensorRule
from solo.model.parameters import ModelDefinition

_TEXT = "language_model."
_HALF = (0.5, 0.5, 0.5)


class Persimmon(LlamaLike):
    """Fuyu's own decoder."""

    names: ClassVar = {
        "model.embed_tokens.weight": "text_embed",
        "model.final_layernorm.weight": "final_norm/scale",
        "model.final_layernorm.bias": "final_norm/bias",
        "lm_head.weight": "head",
    }
    layer_names: ClassVar = {
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
    packed_names: ClassVar = {
        "self_attn.query_key_value.weight": ("q", "k", "v"),
        "self_attn.query_key_value.bias": ("q_bias", "k_bias", "v_bias"),
    }

    def fixed(self) -> Mapping[str, Any]:
        return {
            **experts("shared"),
            "model.bias": "all",
            "model.norm": "layer",
            "model.qk_norm": ("none", "layer"),
            "model.ffn": "relu2",
            "sequence.sliding_window": None,
        }

    def config_from(self, config_json: Mapping[str, Any]) -> Sections:
        demand(config_json, {"hidden_act": "relu2"})
        found = sections(self.fixed())
        found["model"] |= read_sizes(config_json, "layer_norm_eps")
        found["model"] |= read_rope(config_json, theta=25_000.0, fraction=0.5)
        found["model"]["qk_norm"] = "layer" if config_json.get("qk_layernorm", True) else "none"
        return found

    def config_json(self, config: Config, vocab_size: int) -> dict[str, Any]:
        return {
            "model_type": "persimmon",
            **write_sizes(config, vocab_size),
            "hidden_act": "relu2",
            "layer_norm_eps": config.model.norm_eps,
            "qk_layernorm": config.model.qk_norm == "layer",
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            **write_rope(config.model, self.max_positions),
            "partial_rotary_factor": config.model.rope_fraction,
        }

    def refusal(self, config: Config) -> str | None:
        model = config.model
        if model.kv_heads != model.heads or model.dim_per_head * model.heads != model.width:
            return "a fuyu with model.norm layer has model.kv_heads = model.heads and model.head_dim = width / heads"
        return super().refusal(config)


_PERSIMMON = Persimmon("persimmon", "PersimmonForCausalLM", max_positions=16_384)
_DECODERS: Mapping[str, LlamaLike] = {layout.name: layout for layout in (_PERSIMMON, MISTRAL, LLAMA, QWEN3)}


class Fuyu(Layout):
    """Fuyu with Persimmon's decoder, or one of the Llama family."""

    name = "fuyu"
    has_images = True
    names_placeholder = True
    images_form = "channels_last"
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
        if kind not in _DECODERS:
            raise LayoutError(f"text_config is a {kind!r}; known are {', '.join(_DECODERS)}")
        # Configs of a Persimmon saved by newer versions keep these keys on top and have an empty text_config.
        decoder = _DECODERS[kind].config_from({**config_json, **nested} if kind == "persimmon" else nested)
        found = sections(self.fixed())
        found["model"] |= decoder["model"]
        found["sequence"] = decoder["sequence"]
        found["image"] |= {
            "patch_size": config_json.get("patch_size", 30),
            "exif": "ignore",
            "background": "published",
            "begin_token": None,
            "end_token": None,
            "row_token": "|NEWLINE|",
            "placeholder_token": "|SPEAKER|",
        }
        return found

    def config_json(self, config: Config, vocab_size: int) -> dict[str, Any]:
        """See `Layout`. `image_token_id` is left to the caller, who knows the tokenizer."""
        decoder = _decoder(config.model, config.sequence.sliding_window)
        return {
            "architectures": ["FuyuForCausalLM"],
            "model_type": "fuyu",
            "patch_size": config.image.patch_size,
            "num_channels": 3,
            "vocab_size": vocab_size,
            "hidden_size": config.model.width,
            "initializer_range": config.model.init_std,
            "tie_word_embeddings": False,
            "text_config": decoder.config_json(config, vocab_size),
        }

    def refusal(self, config: Config) -> str | None:
        decoder = _decoder(config.model, config.sequence.sliding_window)
        return super().refusal(config) or decoder.refusal(config)

    def tensors(self, definition: ModelDefinition) -> list[TensorRule]:
        rules, side, width = Rules(definition), definition.image.patch_size, definition.config.width
        kernel = rules.rearranged(
            "vision_embed_tokens.weight",
            "patch_embed/kernel",
            view=(width, side, side, 3),
            order=(3, 1, 2, 0),
            shape=(width, side * side * 3),
        )
        bias = rules.tensor("vision_embed_tokens.bias", "patch_embed/bias")
        return [kernel, bias, *_decoder(definition.config).text_tensors(rules, _TEXT)]

    def canonical(self, name: str) -> str:
        """Translates the four names that transformers has given the language model."""
        name = re.sub(r"^model\.(language_model|vision_embed_tokens)\b", r"\1", name)
        name = re.sub(rf"^{_TEXT}(?!model\.|lm_head\.)", f"{_TEXT}model.", name)
        return re.sub(r"^(model\.|lm_head\.)", rf"{_TEXT}\1", name)


def _decoder(model: ModelConfig, sliding_window: int | None = None) -> LlamaLike:
    """Returns the decoder to export a model with."""
    if model.norm == "layer":
        return _PERSIMMON
    if model.qk_norm == "rms":
        return QWEN3
    return LLAMA if sliding_window is None else MISTRAL


FUYU = Fuyu()
