"""Mono-InternVL (OpenGVLab/Mono-InternVL): InternLM2 with visual experts, under InternVL's config.

Neither weights nor names of version 1.5, which adds visual experts of attention, are public. The names
`attention.wqkv_ve` and `attention.wo_ve` are ours, and so is `visual_attention_experts` (qkv or qkvo) in llm_config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solo.config import Config
from solo.interop.layout import Layout, LayoutError, Sections, demand, get, sections
from solo.interop.layouts.internlm2 import INTERNLM2
from solo.interop.layouts.solo import IMAGENET_MEAN, IMAGENET_STD
from solo.interop.tensor_rules import Rules, TensorRule
from solo.model.parameters import ModelDefinition

_ATTENTION_EXPERTS = {None: ("shared", "shared"), "qkv": ("modality", "shared"), "qkvo": ("modality", "modality")}
_ORDERS = {"v1": "columns", "v2": "rows"}
_MLP = {
    "mlp1.0.weight": "patch_embed/norm/scale",
    "mlp1.0.bias": "patch_embed/norm/bias",
    "mlp1.1.weight": "patch_embed/hidden/kernel",
    "mlp1.1.bias": "patch_embed/hidden/bias",
    "mlp1.3.weight": "patch_embed/out/kernel",
    "mlp1.3.bias": "patch_embed/out/bias",
}


class MonoInternVL(Layout):
    """Versions 1 and 1.5."""

    name = "mono_internvl"
    has_images = True
    images_form = "tiles"

    def fixed(self) -> Mapping[str, Any]:
        own = {
            "model.patch_embed.kind": "grid",
            "model.patch_embed.class_slot": True,
            "model.patch_embed.token_id": None,
            "model.experts.ffn": "modality",
            "model.experts.norms": "shared",
            "model.rope_sections": None,
            "image.geometry": "tiles",
            "image.mask": "causal",
            "image.mean": (IMAGENET_MEAN,),
            "image.std": (IMAGENET_STD,),
            "image.resample": "bicubic",
        }
        return {**own, **INTERNLM2.fixed(), **own}

    def recognises(self, config_json: Mapping[str, Any]) -> bool:
        """By the class of the language model: other InternVLs have a vision encoder."""
        text = config_json.get("llm_config") or {}
        named = "InternLM2VEForCausalLM" in (text.get("architectures") or []) or text.get("model_type") == "internlm2ve"
        return config_json.get("model_type") == "internvl_chat" and named

    def config_from(self, config_json: Mapping[str, Any]) -> Sections:
        demand(
            config_json, {"pad2square": False, "use_backbone_lora": 0, "use_llm_lora": 0, "dynamic_image_size": True}
        )
        if config_json.get("select_layer", -4) != -1:
            raise LayoutError("config.json has a select_layer other than -1, the only one without a vision encoder")
        text, vision = get(config_json, "llm_config"), get(config_json, "vision_config")
        attention = text.get("visual_attention_experts")
        if attention not in _ATTENTION_EXPERTS:
            raise LayoutError(f"llm_config.visual_attention_experts is {attention!r}; expected qkv or qkvo")
        qkv, out = _ATTENTION_EXPERTS[attention]
        found, inner = sections(self.fixed()), get(vision, "patch_size")
        experts = found["model"]["experts"] | {"qkv": qkv, "out": out}
        found["model"] |= INTERNLM2.config_from(text)["model"] | {"experts": experts}
        found["model"]["patch_embed"] |= {
            "inner_size": inner,
            "inner_width": get(vision, "hidden_size"),
            "grid_side": get(vision, "image_size") // inner,
        }
        found["image"] |= _image(config_json, inner, vision)
        if config_json.get("template") == "internlm2-chat":
            found["sequence"]["template"] = "internlm2_chat"
        return found

    def config_json(self, config: Config, vocab_size: int) -> dict[str, Any]:
        """See `Layout`. Keys that the patch embedding does not use have the values of a ViT of that width."""
        model, image, embed = config.model, config.image, config.model.patch_embed
        inner, width, side = embed.inner_size or 0, embed.inner_width or 0, embed.grid_side or 0
        experts = (model.experts.qkv, model.experts.out)
        name = next(name for name, sharing in _ATTENTION_EXPERTS.items() if sharing == experts)
        text = INTERNLM2.config_json(config, vocab_size) | {"architectures": ["InternLM2VEForCausalLM"]}
        return {
            "architectures": ["InternVLChatModel"],
            "model_type": "internvl_chat",
            "llm_config": text | ({"visual_attention_experts": name} if name else {}),
            "vision_config": {
                "architectures": ["InternVisionPatchModel"],
                "model_type": "intern_vit_patch",
                "hidden_size": width,
                "image_size": side * inner,
                "patch_size": inner,
                "num_channels": 3,
                "num_hidden_layers": 0,
                "num_attention_heads": max(1, width // 64),
                "intermediate_size": 4 * width,
                "use_flash_attn": False,
            },
            "force_image_size": image.tile_size,
            "downsample_ratio": inner / image.patch_size,
            "ps_version": next(version for version, order in _ORDERS.items() if order == image.patch_order),
            "select_layer": -1,
            "template": "internlm2-chat",
            "dynamic_image_size": True,
            "min_dynamic_patch": image.min_tiles,
            "max_dynamic_patch": image.max_tiles,
            "use_thumbnail": image.thumbnail,
            "pad2square": False,
            "use_backbone_lora": 0,
            "use_llm_lora": 0,
        }

    def refusal(self, config: Config) -> str | None:
        if found := super().refusal(config) or INTERNLM2.refusal(config):
            return found
        experts = config.model.experts
        if (experts.qkv, experts.out) not in _ATTENTION_EXPERTS.values():
            return (
                "model.experts.out is modality without model.experts.qkv; the mono_internvl layout has no such experts"
            )
        return None

    def tensors(self, definition: ModelDefinition) -> list[TensorRule]:
        rules, embed = Rules(definition), definition.config.patch_embed
        inner, width = embed.inner_size or 0, embed.inner_width or 0
        places, vision = (embed.grid_side or 0) ** 2 + 1, "vision_model.embeddings."
        return [
            rules.tensor(f"{vision}class_embedding", "patch_embed/class_token", shape=(1, 1, width)),
            rules.tensor(f"{vision}position_embedding", "patch_embed/positions", shape=(1, places, width)),
            rules.tensor(f"{vision}patch_embedding.weight", "patch_embed/inner/kernel", shape=(width, 3, inner, inner)),
            rules.tensor(f"{vision}patch_embedding.bias", "patch_embed/inner/bias"),
            *rules.tensors(_MLP),
            *INTERNLM2.text_tensors(rules, "language_model.", visual_mark="_ve"),
        ]


def _image(config_json: Mapping[str, Any], inner: int, vision: Mapping[str, Any]) -> dict[str, Any]:
    version = config_json.get("ps_version", "v1")
    if version not in _ORDERS:
        raise LayoutError(f"config.json has ps_version {version!r}; expected v1 or v2")
    return {
        "patch_size": round(inner / get(config_json, "downsample_ratio")),
        "tile_size": config_json.get("force_image_size") or vision["image_size"],
        "min_tiles": config_json.get("min_dynamic_patch", 1),
        "max_tiles": config_json.get("max_dynamic_patch", 6),
        "thumbnail": bool(config_json.get("use_thumbnail", True)),
        "exif": "ignore",
        "background": "published",
        "patch_order": _ORDERS[version],
        "begin_token": "<img>",
        "end_token": "</img>",
        "row_token": None,
        "placeholder_token": "<IMG_CONTEXT>",
    }


MONO_INTERNVL = MonoInternVL()
