"""Gemma 4's model without an image encoder (`Gemma4UnifiedForConditionalGeneration` of transformers 5.24).

Names of tensors are those of its files, which transformers translates to other names in memory. The audio embedder is
left out, so an import cannot hear.

The masks are those of transformers 5.24, whose forward pass and `generate` take `mm_token_type_ids`: an image attends
to all of itself in every layer, also beyond the window. In google-deepmind/gemma and vLLM it does so in sliding layers
only, and within the window, which transformers adopted for its class `gemma4` (issue 46711, pull request 46850) but not
for this one. `official_masks` in place of `sequence.layer_masks` computes that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from solo.config import Config, LayerMaskConfig
from solo.interop.layout import Layout, LayoutError, Sections, demand, experts, get, sections
from solo.interop.layouts.llama import read_sizes, write_sizes
from solo.interop.tensor_rules import ParameterSlice, Rules, TensorRule
from solo.model.parameters import ModelDefinition

SLIDING, FULL = "sliding_attention", "full_attention"
_TEXT = "model.language_model."
_ROPE = {
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    FULL: {"rope_type": "proportional", "rope_theta": 1_000_000.0, "partial_rotary_factor": 0.25},
}
_LAYER_NAMES = {
    "input_layernorm.weight": ("attention_norm", "scale"),
    "self_attn.q_proj.weight": ("qkv", "q"),
    "self_attn.k_proj.weight": ("qkv", "k"),
    "self_attn.v_proj.weight": ("qkv", "v"),
    "self_attn.q_norm.weight": ("qkv", "q_norm/scale"),
    "self_attn.k_norm.weight": ("qkv", "k_norm/scale"),
    "self_attn.o_proj.weight": ("out", "kernel"),
    "post_attention_layernorm.weight": ("attention_post_norm", "scale"),
    "pre_feedforward_layernorm.weight": ("ffn_norm", "scale"),
    "mlp.gate_proj.weight": ("ffn", "gate"),
    "mlp.up_proj.weight": ("ffn", "up"),
    "mlp.down_proj.weight": ("ffn", "down"),
    "post_feedforward_layernorm.weight": ("ffn_post_norm", "scale"),
}
_EMBEDDER = "model.vision_embedder."
_PATCH_NAMES = {
    f"{_EMBEDDER}patch_dense.bias": "patch_embed/hidden/bias",
    f"{_EMBEDDER}patch_ln2.weight": "patch_embed/norm_hidden/scale",
    f"{_EMBEDDER}patch_ln2.bias": "patch_embed/norm_hidden/bias",
    f"{_EMBEDDER}pos_norm.weight": "patch_embed/norm_out/scale",
    f"{_EMBEDDER}pos_norm.bias": "patch_embed/norm_out/bias",
    "model.embed_vision.embedding_projection.weight": "patch_embed/out/kernel",
}
_SOFT_TOKENS = 280
_TOKENS = {
    "boi_token_id": 255_999,
    "eoi_token_id": 258_882,
    "image_token_id": 258_880,
    "video_token_id": 258_884,
    "boa_token_id": 256_000,
    "eoa_token_index": 258_883,
    "audio_token_id": 258_881,
}


class Gemma4Unified(Layout):
    """Gemma 4 12B."""

    name = "gemma4_unified"
    has_images = True
    names_placeholder = True
    images_form = "position_ids"
    templates = ("gemma4",)
    left_out_tensors = "only read sound"
    varies = ("model.keys_are_values", "model.rope_pairs", "model.logit_softcap", "model.layer_types")

    def fixed(self) -> Mapping[str, Any]:
        return {
            **experts("shared"),
            "model.patch_embed.kind": "normed",
            "model.patch_embed.token_id": None,
            "model.ffn": "geglu",
            "model.bias": "none",
            "model.norm": "rms",
            "model.norm_scale_dtype": "float32",
            "model.norm_placement": "sandwich",
            "model.qk_norm": "rms",
            "model.value_norm": "rms",
            "model.attention_scale": 1.0,
            "model.rope_sections": None,
            "model.rope_scaling": None,
            "model.head_parts": None,
            "model.value_dim": None,
            "model.embedding_scale": "sqrt_width",
            "model.layer_scalar": True,
            "image.geometry": "area",
            "image.rounding": "down",
            "image.resample": "bicubic",
            "image.markers": False,
            "image.row_token": None,
            "image.mask": "causal",
            "image.patch_order": "rows",
            "image.mean": ((0.0, 0.0, 0.0),),
            "image.std": ((1.0, 1.0, 1.0),),
            "sequence.positions": "text",
        }

    def recognises(self, config_json: Mapping[str, Any]) -> bool:
        return config_json.get("model_type") == self.name

    def with_processor(self, config_json: Mapping[str, Any], processor: Mapping[str, Any]) -> Mapping[str, Any]:
        """Takes the size of images from the processor, which transformers reads. config.json may still have another."""
        tokens, vision = processor.get("max_soft_tokens"), config_json.get("vision_config")
        if tokens is None or vision is None:
            return config_json
        if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
            raise LayoutError(f"the image processor has max_soft_tokens: {tokens}; expected a positive integer")
        return {**config_json, "vision_config": {**vision, "num_soft_tokens": tokens}}

    def config_from(self, config_json: Mapping[str, Any]) -> Sections:
        text, vision = dict(get(config_json, "text_config")), config_json.get("vision_config")
        if vision is None:
            raise LayoutError("config.json has no vision_config; solo reads this model with its patch embedding only")
        demand(
            text,
            {
                "hidden_activation": "gelu_pytorch_tanh",
                "attention_bias": False,
                "num_kv_shared_layers": 0,
                "use_double_wide_mlp": False,
                "hidden_size_per_layer_input": 0,
                "enable_moe_block": False,
            },
        )
        demand(vision, {"rms_norm_eps": get(text, "rms_norm_eps"), "output_proj_dims": vision.get("mm_embed_dim")})
        found = sections(self.fixed())
        found["model"] |= read_sizes({**text, "tie_word_embeddings": config_json.get("tie_word_embeddings", True)})
        types = _layer_types(text)
        found["model"] |= {
            "logit_softcap": text.get("final_logit_softcapping"),
            "layer_pattern": _pattern(types),
            "layer_types": [_layer_type(text, name, types) for name in dict.fromkeys(types)],
        }
        found["sequence"]["layer_masks"] = [_layer_mask(text, name) for name in dict.fromkeys(types)]
        found["model"]["patch_embed"] |= {
            "inner_width": vision.get("mm_embed_dim") or 3840,
            "grid_side": vision.get("mm_posemb_size") or 1120,
        }
        side = (vision.get("patch_size") or 16) * (vision.get("pooling_kernel_size") or 3)
        pixels = (vision.get("num_soft_tokens") or _SOFT_TOKENS) * side**2
        found["image"] |= {
            "patch_size": side,
            "min_pixels": pixels,
            "max_pixels": pixels,
            "exif": "ignore",
            "background": "published",
            "begin_token": "<|image>",
            "end_token": "<image|>",
            "row_token": None,
            "placeholder_token": "<|image|>",
        }
        return found

    def config_json(self, config: Config, vocab_size: int) -> dict[str, Any]:
        model, image = config.model, config.image
        typed = {name: model.of_type(name) for name in model.layers_by_type}
        local, wide = typed[SLIDING], typed[FULL]
        masks = {mask.layer_type: mask for mask in config.sequence.layer_masks}
        pooling = 3 if image.patch_size % 3 == 0 else 1
        tied = {"tie_word_embeddings": model.tied_head}
        return {
            "architectures": ["Gemma4UnifiedForConditionalGeneration"],
            "model_type": self.name,
            **tied,
            **_TOKENS,
            "initializer_range": model.init_std,
            "audio_config": None,
            "text_config": {
                "model_type": "gemma4_unified_text",
                **write_sizes(config, vocab_size),
                "num_key_value_heads": local.kv_heads,
                "head_dim": local.dim_per_head,
                "global_head_dim": wide.dim_per_head,
                "num_global_key_value_heads": wide.kv_heads,
                "attention_k_eq_v": wide.keys_are_values,
                "hidden_activation": "gelu_pytorch_tanh",
                "rms_norm_eps": model.norm_eps,
                "layer_types": list(model.type_of_each_layer),
                "sliding_window": masks[SLIDING].sliding_window,
                "use_bidirectional_attention": "vision" if masks[SLIDING].image == "bidirectional" else None,
                "final_logit_softcapping": model.logit_softcap,
                "rope_parameters": {
                    SLIDING: {"rope_type": "default", "rope_theta": local.rope_theta},
                    FULL: {
                        "rope_type": "proportional",
                        "rope_theta": wide.rope_theta,
                        "partial_rotary_factor": wide.rope_fraction,
                    },
                },
                **tied,
            },
            "vision_config": {
                "model_type": "gemma4_unified_vision",
                "patch_size": image.patch_size // pooling,
                "pooling_kernel_size": pooling,
                "mm_embed_dim": model.patch_embed.inner_width,
                "output_proj_dims": model.patch_embed.inner_width,
                "mm_posemb_size": model.patch_embed.grid_side,
                "num_soft_tokens": (image.max_pixels or 0) // image.patch_size**2,
                "rms_norm_eps": model.norm_eps,
            },
        }

    def refusal(self, config: Config) -> str | None:
        if refusal := super().refusal(config):
            return refusal
        model = config.model
        if set(model.layers_by_type) != {SLIDING, FULL} or model.type_of_each_layer[-1] != FULL:
            return (
                f"model.layer_types are {list(model.layers_by_type)}, the last {model.type_of_each_layer[-1:]}; the"
                f" {self.name} layout has {SLIDING} and {FULL}, and the last layer is {FULL}"
            )
        local, wide = model.of_type(SLIDING), model.of_type(FULL)
        wanted = {"keys_are_values": False, "rope_pairs": "rotated", "rope_fraction": 1.0}
        for key, value in wanted.items():
            if getattr(local, key) != value:
                return (
                    f"model.layer_types, {SLIDING}, {key} is {getattr(local, key)}; the {self.name} layout has {value}"
                )
        if wide.rope_pairs != "head":
            return f"model.layer_types, {FULL}, rope_pairs is {wide.rope_pairs}; the {self.name} layout has head"
        if config.image.min_pixels != config.image.max_pixels:
            return f"image.min_pixels is {config.image.min_pixels}; the {self.name} layout has image.max_pixels"
        if found := _mask_refusal(config.sequence.layer_masks, self.name):
            return found
        if not wide.keys_are_values and wide.kv_heads != local.kv_heads:
            return f"model.layer_types, {FULL}: the {self.name} layout has other kv_heads only with keys_are_values"
        return None

    def tensors(self, definition: ModelDefinition) -> list[TensorRule]:
        rules, config = Rules(definition), definition.config
        side, width = definition.image.patch_size, config.patch_embed.inner_width or 0
        found = rules.tensors({f"{_TEXT}embed_tokens.weight": "text_embed", f"{_TEXT}norm.weight": "final_norm/scale"})
        for layer in range(config.layers):
            name = f"{_TEXT}layers.{layer}."
            found += rules.layer(_LAYER_NAMES, {}, name, layer)
            stack, number = rules.stack_of(layer)
            found += rules.tensors({f"{name}layer_scalar": f"{stack}scalar"}, number)
        # Pixels of a patch are ordered (y, x, channel) there and (channel, y, x) here.
        pixels = side * side * 3
        kernel = rules.rearranged(
            f"{_EMBEDDER}patch_dense.weight",
            "patch_embed/hidden/kernel",
            view=(width, side, side, 3),
            order=(3, 1, 2, 0),
            shape=(width, pixels),
        )
        norm = (
            rules.rearranged(
                f"{_EMBEDDER}patch_ln1.{theirs}",
                f"patch_embed/norm_in/{ours}",
                view=(side, side, 3),
                order=(2, 0, 1),
                shape=(pixels,),
            )
            for theirs, ours in (("weight", "scale"), ("bias", "bias"))
        )
        return [
            *found,
            kernel,
            *norm,
            _positions(rules),
            *rules.tensors(_PATCH_NAMES),
            *rules.tensors({"lm_head.weight": "head"}),
        ]

    def copies(self, definition: ModelDefinition) -> Mapping[str, str]:
        """Returns the tied head, which some training code stores nevertheless."""
        return {"lm_head.weight": f"{_TEXT}embed_tokens.weight"} if definition.config.tied_head else {}

    def canonical(self, name: str) -> str:
        """Translates the names that transformers gives the embedder in memory."""
        name = name.replace("model.embed_vision.multimodal_embedder.", "model.embed_vision.")
        return re.sub(r"^model\.embed_vision\.(patch_|pos_)", rf"{_EMBEDDER}\1", name)

    def leaves_out(self, name: str) -> bool:
        """Leaves out the audio embedder."""
        return name.startswith("model.embed_audio.")


def _positions(rules: Rules) -> TensorRule:
    """Returns the rule of the table [places, 2, width], of columns and then rows."""
    slices = ParameterSlice("patch_embed/columns"), ParameterSlice("patch_embed/rows")
    places, width = rules.shape(slices[0])

    def split(theirs: np.ndarray) -> list[np.ndarray]:
        return [theirs[:, 0], theirs[:, 1]]

    def join(values: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack(values, axis=1)

    return TensorRule(f"{_EMBEDDER}pos_embedding", (places, 2, width), slices, split, join)


def _layer_types(text: Mapping[str, Any]) -> list[str]:
    """Returns the type of every layer. As in transformers, five of six slide by default, and the last never does."""
    count = get(text, "num_hidden_layers")
    types = list(text.get("layer_types") or [FULL if number % 6 == 5 else SLIDING for number in range(count)])
    if len(types) != count or set(types) - {SLIDING, FULL}:
        raise LayoutError(f"layer_types has {len(types)} entries for {count} layers, of {sorted(set(types))}")
    return [*types[:-1], FULL]


def _pattern(types: Sequence[str]) -> list[str]:
    """Returns the shortest pattern that the types repeat."""
    count = len(types)
    repeats = (size for size in range(1, count + 1) if all(types[at] == types[at % size] for at in range(count)))
    return list(types[: next(repeats)])


def _layer_type(text: Mapping[str, Any], name: str, types: Sequence[str]) -> dict[str, Any]:
    """Returns the entry of `model.layer_types`. Older files have global_* keys, newer ones an entry per layer."""
    stated = text.get("rope_parameters") or {}
    if unknown := sorted(set(stated) - set(_ROPE)):
        raise LayoutError(f"rope_parameters has {', '.join(unknown)}; expected one entry each for {SLIDING} and {FULL}")
    rope = {**_ROPE[name], **(stated.get(name) or {})}
    demand(rope, {"rope_type": _ROPE[name]["rope_type"], "factor": 1.0})
    is_full, equal = name == FULL, bool(text.get("attention_k_eq_v", False))
    own = text.get("per_layer_config")
    values = [(own or {}).get(str(number), {}) for number, kind in enumerate(types) if kind == name]
    if any(value != values[0] for value in values):
        raise LayoutError(f"per_layer_config differs among the layers of {name}; solo has one setting for each type")
    heads, dim = get(text, "num_key_value_heads"), get(text, "head_dim")
    if own is not None:
        heads, dim = values[0].get("num_key_value_heads", heads), values[0].get("head_dim", dim)
    elif is_full:
        dim = text.get("global_head_dim") or 512
        heads = (text.get("num_global_key_value_heads") if equal else None) or heads
    return {
        "name": name,
        "kv_heads": heads,
        "head_dim": dim,
        "rope_theta": float(rope["rope_theta"]),
        "rope_fraction": float(rope.get("partial_rotary_factor", 1.0)),
        "rope_pairs": "head" if is_full else "rotated",
        "keys_are_values": is_full and equal,
    }


def official_masks(window: int) -> tuple[LayerMaskConfig, ...]:
    """Returns `sequence.layer_masks` of google-deepmind/gemma for a sliding window."""
    sliding = LayerMaskConfig(layer_type=SLIDING, image="bidirectional", sliding_window=window, window_limits="all")
    return sliding, LayerMaskConfig(layer_type=FULL)


def _mask_refusal(masks: Sequence[LayerMaskConfig], layout: str) -> str | None:
    """Returns the first mask that transformers' class does not compute, or None."""
    modes = {mask.image for mask in masks}
    for mask in masks:
        name = f"sequence.layer_masks, {mask.layer_type}"
        if mask.window_limits != "text":
            return f"{name}: window_limits is {mask.window_limits}; the {layout} layout has text"
        if (mask.sliding_window is None) != (mask.layer_type == FULL):
            wanted = "None" if mask.layer_type == FULL else "a number"
            return f"{name}: sliding_window is {mask.sliding_window}; the {layout} layout has {wanted}"
        if len(modes) > 1:
            return f"{name}: image is {mask.image}; the {layout} layout has the same in all layers"
    return None


def _layer_mask(text: Mapping[str, Any], name: str) -> dict[str, Any]:
    mode = text.get("use_bidirectional_attention", "vision")
    window = text.get("sliding_window", 1024)
    if window is None:
        raise LayoutError(f"config.json has sliding_window: null; the {SLIDING} layers have a window")
    if mode == "all":
        raise LayoutError("config.json has use_bidirectional_attention: all; solo's text is causal")
    return {
        "layer_type": name,
        "image": "bidirectional" if mode == "vision" else "causal",
        "sliding_window": None if name == FULL else window,
        "window_limits": "text",
    }


GEMMA4_UNIFIED = Gemma4Unified()
