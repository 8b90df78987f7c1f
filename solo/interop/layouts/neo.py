"""NEO (EvolvingLMMs-Lab/NEO at 78faae9) and NEO-unify (OpenSenseNova/SenseNova-U1): Qwen3 with heads in parts.

The two forms differ in how a head's parts are projected, and share `model_type`, so they are told apart by their
tensors: `q_proj_hw` belongs to NEO 1.0, `q_norm_hw` to NEO-unify. The weights that NEO-unify has for generating images
(`_mot_gen`, `fm_modules`) are left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from solo.config import Config
from solo.interop.layout import Layout, LayoutError, Sections, experts, get, sections
from solo.interop.layouts.llama import LlamaLike
from solo.interop.layouts.solo import IMAGENET_MEAN, IMAGENET_STD
from solo.interop.tensor_rules import Rules, TensorRule
from solo.model.parameters import ModelDefinition

MODEL_TYPE = "neo_chat"
_LANGUAGE, _VISION = "language_model.", "vision_model.embeddings."
_HEAD, _EMBEDDING = f"{_LANGUAGE}lm_head.weight", f"{_LANGUAGE}model.embed_tokens.weight"
_THETA = 10_000.0  # default of `rope_theta_hw` and of `rope_theta_vision`
_MIN_PIXELS, _MAX_PIXELS = 65_536, 4_194_304  # defaults of NEOVisionConfig
_NAMES_OF_PARTS = {"_h": "row", "_w": "column", "_hw": "grid"}


@dataclass(frozen=True)
class _Decoder(LlamaLike):
    """Qwen3 with the projections and norms of rows and columns."""

    layer_names: ClassVar[Mapping[str, tuple[str, str]]] = {
        **LlamaLike.layer_names,
        **{f"self_attn.{each}_proj_hw.weight": ("qkv", f"{each}_grid") for each in "qk"},
        **{
            f"self_attn.{each}_norm{suffix}.weight": ("qkv", f"{each}_norm_{part}/scale")
            for each in "qk"
            for suffix, part in _NAMES_OF_PARTS.items()
        },
    }


_DECODER = _Decoder("qwen3", "Qwen3ForCausalLM", qk_norm="rms", max_positions=40_960)


class Neo(Layout):
    """One of the two forms.

    Args:
        name: name of the layout.
        mark: the end of a tensor's name that only this form has.
        template: the chat template of its evaluation.
    """

    has_images = True
    images_form = "grid_hw"
    reads_names = True
    varies = ("model.head_parts", "model.value_dim", "model.attention_scale")

    def __init__(self, name: str, mark: str, template: str) -> None:
        self.name, self._mark, self._template = name, mark, template
        self.templates = (template, "solo_pretrain")

    def fixed(self) -> Mapping[str, Any]:
        own = {
            **experts("shared"),
            "model.patch_embed.kind": "conv",
            "model.patch_embed.token_id": None,
            "model.rope_sections": None,
            "model.rope_scaling": None,
            "image.geometry": "area",
            "image.rounding": "within",
            "image.markers": False,
            "image.mask": "bidirectional",
            "image.mean": (IMAGENET_MEAN,),
            "image.std": (IMAGENET_STD,),
            "image.resample": "bicubic",
            "sequence.positions": "separate",
        }
        return {**own, **_DECODER.fixed(), **own}

    def recognises(self, config_json: Mapping[str, Any]) -> bool:
        return False

    def recognises_tensors(self, names: Collection[str]) -> bool:
        return any(name.startswith(_LANGUAGE) and name.endswith(self._mark) for name in names)

    def leaves_out(self, name: str) -> bool:
        """Returns whether a tensor only serves to generate images."""
        return "_mot_gen" in name or name.startswith("fm_modules.")

    def completed(self, config_json: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        """Replaces lists of one element by the element, and ties a head that is not stored.

        The published code writes such lists for `llm_hidden_size` and `downsample_ratio`, one more at every save. It
        clones the embedding into a missing head.
        """
        found: dict[str, Any] = {key: _unwrapped(value, key) for key, value in config_json.items()}
        text = found.get("llm_config")
        if isinstance(text, dict) and _EMBEDDING in names and _HEAD not in names:
            text["tie_word_embeddings"] = True
        return found

    def config_from(self, config_json: Mapping[str, Any]) -> Sections:
        config_json = self.completed(config_json, ())
        text, vision = get(config_json, "llm_config"), get(config_json, "vision_config")
        if text.get("num_experts") or text.get("model_type") == "qwen3_moe":
            raise LayoutError("llm_config has a mixture of experts (num_experts), which solo's NEO does not have")
        found, inner = sections(self.fixed()), get(vision, "patch_size")
        found["model"] |= _DECODER.config_from(text)["model"] | {"experts": found["model"]["experts"]}
        found["model"]["head_parts"] = self._parts(found["model"]["head_dim"], text.get("rope_theta_hw") or _THETA)
        found["model"]["patch_embed"] |= {
            "inner_size": inner,
            "inner_width": get(vision, "hidden_size"),
            "rotation_theta": float(vision.get("rope_theta_vision") or _THETA),
        }
        ratio = vision.get("downsample_ratio") or get(config_json, "downsample_ratio")
        found["image"] |= {
            "patch_size": round(inner / ratio),
            "min_pixels": vision.get("min_pixels") or _MIN_PIXELS,
            "max_pixels": vision.get("max_pixels") or _MAX_PIXELS,
            "exif": "ignore",
            "background": self.name,
            "begin_token": "<img>",
            "end_token": "</img>",
            "row_token": None,
            "placeholder_token": "<IMG_CONTEXT>",
        }
        return found

    def config_json(self, config: Config, vocab_size: int) -> dict[str, Any]:
        """See `Layout`. `extra_num_layers`, which only matters when a NEO is grown, is not known and left out."""
        model, image, embed = config.model, config.image, config.model.patch_embed
        ratio = (embed.inner_size or 0) / image.patch_size
        theta = next((part.theta for part in model.head_parts or () if part.axis == "row"), None)
        return {
            "architectures": ["NEOChatModel"],
            "model_type": MODEL_TYPE,
            "template": "neo1_0",
            "downsample_ratio": ratio,
            "tie_word_embeddings": model.tied_head,
            "llm_config": _DECODER.config_json(config, vocab_size)
            | {"attention_bias": False, "rope_theta_hw": theta or model.rope_theta},
            "vision_config": {
                "architectures": ["NEOVisionModel"],
                "model_type": "neo_vision",
                "hidden_size": embed.inner_width,
                "llm_hidden_size": model.width,
                "patch_size": embed.inner_size,
                "downsample_ratio": ratio,
                "num_channels": 3,
                "rope_theta_vision": embed.rotation_theta,
                "min_pixels": image.min_pixels,
                "max_pixels": image.max_pixels,
            },
        }

    def refusal(self, config: Config) -> str | None:
        if found := super().refusal(config):
            return found
        model = config.model
        if model.patch_embed.rotation_theta is None:
            return f"model.patch_embed.rotation_theta is not set; the {self.name} layout rotates inner channels"
        if model.value_dim not in (None, model.dim_per_head):
            return f"model.value_dim is {model.value_dim}; the {self.name} layout has head_dim, {model.dim_per_head}"
        if model.attention_scale not in (None, model.dim_per_head**-0.5):
            return f"model.attention_scale is {model.attention_scale}; the {self.name} layout has head_dim^-0.5"
        thetas = [part.theta or model.rope_theta for part in model.head_parts or ()]
        wanted = self._parts(model.dim_per_head, thetas[-1] if thetas else _THETA)
        stated = [
            part.model_dump() | {"theta": theta} for part, theta in zip(model.head_parts or (), thetas, strict=True)
        ]
        if stated != [part | {"theta": part["theta"] or model.rope_theta} for part in wanted]:
            needed = ", ".join(f"{part['axis']} {part['width']}" for part in wanted)
            kind = "projection: grid" if self.name == "neo" else "norm: grid"
            return (
                f"model.head_parts is not that of the {self.name} layout: {needed}; row and column with {kind} and the"
                " same theta"
            )
        return None

    def _parts(self, head_dim: int, theta: float) -> list[dict[str, Any]]:
        """Returns `model.head_parts`."""
        plain = {"theta": None, "projection": "main", "norm": "own"}
        whole, own = (head_dim, {"projection": "grid"}) if self.name == "neo" else (head_dim // 2, {"norm": "grid"})
        grid = plain | {"width": whole // 2, "theta": float(theta)} | own
        return [plain | {"axis": "time", "width": whole}, *(grid | {"axis": axis} for axis in ("row", "column"))]

    def tensors(self, definition: ModelDefinition) -> list[TensorRule]:
        rules, config = Rules(definition), definition.config
        inner, channels = config.patch_embed.inner_size or 0, config.patch_embed.inner_width or 0
        count = definition.image.patch_size // inner
        merged = (config.width, channels, count, count)
        return [
            *_DECODER.text_tensors(rules, _LANGUAGE),
            rules.tensor(
                f"{_VISION}patch_embedding.weight", "patch_embed/inner/kernel", shape=(channels, 3, inner, inner)
            ),
            rules.tensor(f"{_VISION}patch_embedding.bias", "patch_embed/inner/bias"),
            # Ours has the channels of the inner patches last; a convolution has them before y and x.
            rules.rearranged(
                f"{_VISION}dense_embedding.weight", "patch_embed/merge/kernel", view=merged, order=(2, 3, 1, 0)
            ),
            rules.tensor(f"{_VISION}dense_embedding.bias", "patch_embed/merge/bias"),
        ]

    def copies(self, definition: ModelDefinition) -> Mapping[str, str]:
        """Returns the tied head, which may be stored nevertheless."""
        return {_HEAD: _EMBEDDING} if definition.config.tied_head else {}


def _unwrapped(value: Any, key: str) -> Any:
    """Returns a value without the lists of one element around it, at any depth, except lists of class names."""
    if key == "architectures":
        return value
    while isinstance(value, list) and len(value) == 1:
        (value,) = value
    return {name: _unwrapped(each, name) for name, each in value.items()} if isinstance(value, dict) else value


NEO = Neo("neo", "self_attn.q_proj_hw.weight", "neo_1_0")
NEO_UNIFY = Neo("neo_unify", "self_attn.q_norm_hw.weight", "neo_1_5")
