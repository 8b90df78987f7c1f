"""Mistral, Llama, Qwen2 and Qwen3: one decoder with small differences and the same tensor names.

Written from the classes of transformers 5.23. Exported to these layouts, a monolith keeps its text path only: the text
experts of each modality-expert component, and no patch embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from solo.config import Config
from solo.interop.layout import Layout, LayoutError, Sections, demand, experts, get, sections
from solo.interop.layouts.rope import read_rope, write_rope
from solo.interop.tensor_rules import Rules, TensorRule
from solo.model.parameters import ModelDefinition

_DEFAULT_WINDOW = 4096
_SIZES = {
    "width": "hidden_size",
    "ffn_width": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
}


def read_sizes(config_json: Mapping[str, Any], norm_eps: str = "rms_norm_eps") -> dict[str, Any]:
    """Returns the keys of our model section that every decoder's config.json has under the same names."""
    found = {ours: get(config_json, theirs) for ours, theirs in _SIZES.items()}
    return found | {
        "vocab_size": get(config_json, "vocab_size"),
        "kv_heads": config_json.get("num_key_value_heads") or found["heads"],
        "head_dim": config_json.get("head_dim") or found["width"] // found["heads"],
        "norm_eps": float(get(config_json, norm_eps)),
        "tied_head": bool(config_json.get("tie_word_embeddings", False)),
    }


def write_sizes(config: Config, vocab_size: int) -> dict[str, Any]:
    """Returns the keys of config.json that every decoder has."""
    model = config.model
    return {
        "vocab_size": vocab_size,
        **{theirs: getattr(model, ours) for ours, theirs in _SIZES.items()},
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tied_head,
    }


@dataclass(frozen=True)
class LlamaLike(Layout):
    """A member of the family.

    Attributes:
        name: its model_type.
        architecture: its class in transformers.
        bias: see `ModelConfig`.
        qk_norm: see `ModelConfig`.
        windowed: whether `sliding_window` applies to every layer.
        max_positions: the value of max_position_embeddings to write.
        names: tensor -> parameter, outside the layers.
        layer_names: tensor -> component and last part of the path, in a layer; see `Rules.layer`.
        packed_names: tensor -> last parts of the paths of q, k and v that it packs.
    """

    names: ClassVar[Mapping[str, str]] = {
        "model.embed_tokens.weight": "text_embed",
        "model.norm.weight": "final_norm/scale",
        "lm_head.weight": "head",
    }
    layer_names: ClassVar[Mapping[str, tuple[str, str]]] = {
        "{mark}input_layernorm.weight": ("attention_norm", "scale"),
        **{f"self_attn.{{mark}}{each}_proj.weight": ("qkv", each) for each in "qkv"},
        **{f"self_attn.{{mark}}{each}_proj.bias": ("qkv", f"{each}_bias") for each in "qkv"},
        **{f"self_attn.{{mark}}{each}_norm.weight": ("qkv", f"{each}_norm/scale") for each in "qk"},
        "self_attn.{mark}o_proj.weight": ("out", "kernel"),
        "{mark}post_attention_layernorm.weight": ("ffn_norm", "scale"),
        **{f"{{mark}}mlp.{each}_proj.weight": ("ffn", each) for each in ("gate", "up", "down")},
    }
    packed_names: ClassVar[Mapping[str, tuple[str, str, str]]] = {}

    name: str
    architecture: str
    bias: Literal["none", "qkv"] = "none"
    qk_norm: Literal["none", "rms"] = "none"
    windowed: bool = False
    max_positions: int = 32_768
    has_images: bool = False
    images_form: str | None = None
    adds_placeholder: bool = False
    reads_names: bool = False
    special_tokens: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    def fixed(self) -> Mapping[str, Any]:
        found = {
            **experts(("shared", "modality")),
            "model.ffn": "swiglu",
            "model.bias": self.bias,
            "model.norm": "rms",
            "model.qk_norm": self.qk_norm,
            "model.rope_fraction": 1.0,
        }
        return found if self.windowed else {**found, "sequence.sliding_window": None}

    def recognises(self, config_json: Mapping[str, Any]) -> bool:
        """By model_type. A monolith that uses the same model_type has another class and a patch size."""
        architectures = config_json.get("architectures") or [self.architecture]
        is_monolith = "vision_patch_size" in config_json or self.architecture not in architectures
        return config_json.get("model_type") == self.name and not is_monolith

    def config_from(self, config_json: Mapping[str, Any]) -> Sections:
        demand(config_json, {"hidden_act": "silu", "mlp_bias": False, "use_sliding_window": False})
        if self.bias == "none":
            demand(config_json, {"attention_bias": False})
        found = sections(self.fixed())
        found["model"] |= read_sizes(config_json) | read_rope(config_json)
        if (share := found["model"]["rope_fraction"]) != 1:
            raise LayoutError(
                f"config.json has partial_rotary_factor: {share}, which {self.architecture} ignores and solo would"
                " apply; delete the key if all dimensions were rotated in training"
            )
        if self.windowed:
            # A Mistral without the key has transformers' default; null means no window.
            found["sequence"]["sliding_window"] = config_json.get("sliding_window", _DEFAULT_WINDOW)
        return found

    def config_json(self, config: Config, vocab_size: int) -> dict[str, Any]:
        model = config.model
        return {
            "architectures": [self.architecture],
            "model_type": self.name,
            **write_sizes(config, vocab_size),
            "num_key_value_heads": model.kv_heads,
            "head_dim": model.dim_per_head,
            "hidden_act": "silu",
            "rms_norm_eps": model.norm_eps,
            **({"sliding_window": config.sequence.sliding_window} if self.windowed else {}),
            **write_rope(model, self.max_positions),
        }

    def tensors(self, definition: ModelDefinition) -> list[TensorRule]:
        return self.text_tensors(Rules(definition))

    def text_tensors(self, rules: Rules, prefix: str = "", visual_mark: str | None = None) -> list[TensorRule]:
        """Returns the rules of the language model.

        Args:
            rules: the model's rules.
            prefix: precedes every name.
            visual_mark: `{mark}` in the names of visual experts. None leaves these out.
        """
        first, *last = rules.tensors({prefix + name: path for name, path in self.names.items()})
        found = [first]
        for layer in range(rules.config.layers):
            name = f"{prefix}model.layers.{layer}."
            found += rules.layer(self.layer_names, self.packed_names, name, layer)
            if visual_mark is not None:
                found += rules.layer(self.layer_names, self.packed_names, name, layer, "patches", visual_mark)
        return [*found, *last]

    def copies(self, definition: ModelDefinition) -> Mapping[str, str]:
        """Returns the tied head, which some repositories store nevertheless (Qwen3-0.6B)."""
        return {"lm_head.weight": "model.embed_tokens.weight"} if definition.config.tied_head else {}


MISTRAL = LlamaLike("mistral", "MistralForCausalLM", windowed=True, templates=("solo_chat",))
LLAMA = LlamaLike("llama", "LlamaForCausalLM", max_positions=131_072)
QWEN2 = LlamaLike("qwen2", "Qwen2ForCausalLM", bias="qkv", templates=("chatml",))
QWEN3 = LlamaLike("qwen3", "Qwen3ForCausalLM", qk_norm="rms", max_positions=40_960, templates=("chatml",))
