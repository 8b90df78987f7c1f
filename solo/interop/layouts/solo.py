"""SOLO (Yangyi-Chen/SOLO): Mistral with one more tensor, under Mistral's model_type.

The published config.json does not say which token's embedding is added to every patch; we write it there. SAIL
(ByteDance-Seed/SAIL at 720c3fb, modeling_sail.py) differs in the name of one tensor, in its class, its image mask and
its positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from solo.config import Config
from solo.interop.layout import Sections, experts, first_refusal, get
from solo.interop.layouts.llama import LlamaLike
from solo.interop.tensor_rules import Rules, TensorRule
from solo.model.parameters import ModelDefinition

# The key is ours. The default is SOLO-7B's.
_TOKEN_ID, _PUBLISHED_ID = "vision_patch_token_id", 32001
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Solo(LlamaLike):
    """SOLO, or SAIL.

    Attributes:
        projection: module that embeds patches.
        classes: class names in config.json. The first is the one to write.
        sail: whether the layout is that of SAIL.
    """

    projection: str = "embed_vision_patch"
    classes: tuple[str, ...] = ("SoloForCausalLM",)
    sail: bool = False

    def fixed(self) -> Mapping[str, Any]:
        """See `Layout`. SAIL's `model.rope_sections` follow from the head dimension."""
        own = {
            **experts("shared"),
            "model.patch_embed.kind": "linear",
            "model.patch_embed.bias": False,
            **({} if self.sail else {"model.rope_sections": None}),
            "image.geometry": "native",
            "image.mask": "prefix" if self.sail else "causal",
            "image.mean": (IMAGENET_MEAN,),
            "image.std": (IMAGENET_STD,),
        }
        return {**own, **super().fixed(), **own}

    def recognises(self, config_json: Mapping[str, Any]) -> bool:
        """By the class, or for SOLO by the patch size that a Mistral does not have."""
        found = config_json.get("architectures") or []
        named = any(each in self.classes for each in found)
        unnamed = not self.sail and "vision_patch_size" in config_json and not set(found) & set(SAIL.classes)
        return config_json.get("model_type") in ("mistral", "solo") and (named or unnamed)

    def config_from(self, config_json: Mapping[str, Any]) -> Sections:
        found = super().config_from(config_json)
        token_id = config_json.get(_TOKEN_ID, _PUBLISHED_ID if found["model"]["vocab_size"] > _PUBLISHED_ID else None)
        if token_id is not None:
            found["model"]["patch_embed"]["token_id"] = token_id
        side = get(config_json, "vision_patch_size")
        found["image"] |= {
            "patch_size": side,
            "exif": "ignore",
            "background": "published",
            "begin_token": "<vision>",
            "end_token": "</vision>" if self.sail else "<vision>",  # SOLO as released
            "row_token": None if self.sail else "<vrow_sep>",
            "placeholder_token": "<vpatch>",
            **({"max_side": 2**17, "max_pixels": 4096 * side * side} if self.sail else {"stored_as_float16": True}),
        }
        found["sequence"]["template"] = "solo_chat"
        if self.sail:
            found["model"]["rope_sections"] = list(_sail_sections(found["model"]["head_dim"]))
            # A sliding window counts slots, which grid positions do not give; the published code has none over images.
            found["sequence"] = {"positions": "grid", "template": "solo_chat"}
        elif (window := found["sequence"]["sliding_window"]) is not None:
            # SOLO was trained with FlashAttention's window, which does not count the slot itself.
            found["sequence"]["sliding_window"] = window + 1
        return found

    def config_json(self, config: Config, vocab_size: int) -> dict[str, Any]:
        window = config.sequence.sliding_window
        return super().config_json(config, vocab_size) | {
            "architectures": [self.classes[0]],
            "model_type": "mistral",
            "vision_patch_size": config.image.patch_size,
            "sliding_window": None if window is None else window - 1,
            _TOKEN_ID: config.model.patch_embed.token_id,
        }

    def refusal(self, config: Config) -> str | None:
        model = config.model
        if model.patch_embed.token_id is None:
            return f"model.patch_embed.token_id is not set; the {self.name} layout adds a token's embedding to patches"
        allowed = {"model.rope_sections": (_sail_sections(model.dim_per_head),)} if self.sail else {}
        return first_refusal(config, self.name, allowed) or super().refusal(config)

    def tensors(self, definition: ModelDefinition) -> list[TensorRule]:
        rules = Rules(definition)
        first, *rest = self.text_tensors(rules)
        return [first, rules.tensor(f"model.{self.projection}.weight", "patch_embed/kernel"), *rest]


def _sail_sections(head_dim: int) -> tuple[int, int, int]:
    """Returns the rotary sections for time, row and column."""
    return 0, head_dim // 4, head_dim // 4


# Appended from 32000 on (`scripts/model/create_solo.py`). The authors' inference code suppresses all of them.
_TOKENS = ("<vision>", "<vpatch>", "<vrow_sep>", "<vframe_sep>", "</vision>", "<loc_{1..1024}>", "<|vis_cls|>")
SOLO = Solo(
    "solo",
    "SoloForCausalLM",
    windowed=True,
    has_images=True,
    images_form="vision_patches",
    adds_placeholder=True,
    special_tokens=_TOKENS,
)
SAIL = Solo(
    "sail",
    "SailForCausalLM",
    windowed=True,
    max_positions=131_072,
    has_images=True,
    adds_placeholder=True,
    special_tokens=_TOKENS,
    projection="vis_embed",
    classes=("SailForCausalLM", "MMistralForCausalLM"),
    sail=True,
)
