"""EVEv2 (baaivision/EVE at cc63ec7, folder EVEv2): Qwen2 with visual experts in all components, named `moe_`.

The published config.json lacks the patch sizes, which are 16 and 2. We write them as `patch_stride` and
`dense_stride`, and read them if present. The released model was trained on images of at most 1600 x 1600
pixels of area.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solo.config import Config
from solo.interop.layout import Layout, LayoutError, Sections, demand, experts, get, sections
from solo.interop.layouts.llama import QWEN2
from solo.interop.tensor_rules import Rules, TensorRule
from solo.model.parameters import ModelDefinition

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_MAX_SIZE = 1600
_MODULES = ("layernorm", "self_attn", "mlp")
_EMBED = "model.vision_tower.patch_embedding"


class EVEv2(Layout):
    """EVE-7B-HD-v2.0."""

    name = "evev2"
    has_images = True
    images_form = "images"
    templates = ("chatml",)

    def fixed(self) -> Mapping[str, Any]:
        own = {
            "model.patch_embed.kind": "conv",
            "model.patch_embed.token_id": None,
            "model.patch_embed.rotation_theta": None,
            **experts("modality"),
            "model.tied_head": False,
            "model.rope_sections": None,
            "image.geometry": "area",
            "image.markers": True,
            "image.mask": "causal",
            "image.mean": (CLIP_MEAN,),
            "image.std": (CLIP_STD,),
            "image.resample": "bicubic",
        }
        return {**own, **QWEN2.fixed(), **own}

    def recognises(self, config_json: Mapping[str, Any]) -> bool:
        return config_json.get("model_type") == "eve-qwen2"

    def config_from(self, config_json: Mapping[str, Any]) -> Sections:
        demand(config_json, {"add_moe": True})
        if missing := [name for name in _MODULES if name not in (config_json.get("moe_part") or "-".join(_MODULES))]:
            raise LayoutError(f"config.json has no visual experts of {', '.join(missing)} in moe_part; ours has all")
        found = sections(self.fixed())
        found["model"] |= QWEN2.config_from(config_json)["model"] | {"experts": found["model"]["experts"]}
        inner = config_json.get("patch_stride") or 16
        found["model"]["patch_embed"] |= {"inner_size": inner, "inner_width": get(config_json, "mm_hidden_size")}
        found["image"] |= {
            "patch_size": inner * (config_json.get("dense_stride") or 2),
            "min_pixels": _MAX_SIZE**2,
            "max_pixels": _MAX_SIZE**2,
            "rounding": "up",
            "exif": "ignore",
            "background": "published",
            "begin_token": None,
            "end_token": None,
            "row_token": None,
        }
        return found

    def config_json(self, config: Config, vocab_size: int) -> dict[str, Any]:
        embed = config.model.patch_embed
        inner = embed.inner_size or 0
        return QWEN2.config_json(config, vocab_size) | {
            "architectures": ["EVEQwen2ForCausalLM"],
            "model_type": "eve-qwen2",
            "mm_hidden_size": embed.inner_width,
            "mm_vision_tower": f"openai/eve-anyratio-res{_MAX_SIZE}-patch16",
            "patch_stride": inner,
            "dense_stride": config.image.patch_size // inner,
            "add_moe": True,
            "moe_part": "-".join(_MODULES),
        }

    def tensors(self, definition: ModelDefinition) -> list[TensorRule]:
        rules, config = Rules(definition), definition.config
        inner, channels = config.patch_embed.inner_size or 0, config.patch_embed.inner_width or 0
        count = definition.image.patch_size // inner
        merged = (config.width, channels, count, count)
        return [
            *QWEN2.text_tensors(rules, visual_mark="moe_"),
            rules.tensor(f"{_EMBED}.0.weight", "patch_embed/inner/kernel", shape=(channels, 3, inner, inner)),
            # Ours has the channels of the inner patches last; a convolution has them before y and x.
            rules.rearranged(f"{_EMBED}.2.weight", "patch_embed/merge/kernel", view=merged, order=(2, 3, 1, 0)),
            *rules.tensors(
                {
                    f"{_EMBED}.0.bias": "patch_embed/inner/bias",
                    f"{_EMBED}.2.bias": "patch_embed/merge/bias",
                    "model.vision_tower.class_embedding": "patch_embed/begin_marker",
                    "model.vision_tower.split_embedding": "patch_embed/row_marker",
                }
            ),
        ]

    def canonical(self, name: str) -> str:
        """Translates the names of the markers before 744f587."""
        return name.replace(".start_embedding", ".class_embedding").replace(".end_embedding", ".split_embedding")


EVEV2 = EVEv2()
