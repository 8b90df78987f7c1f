"""Mistral, Llama, Qwen2 and Qwen3: one decoder with small differences, and the same names of tensors.

Written from the classes of transformers 5.23. As a target these hold the text path only: of experts per modality the
text's, and nothing of images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from solo.config import Config
from solo.interop.layout import Layout, LayoutError, Rules, Sections, TensorRule, first_refusal
from solo.interop.layouts.rope import read_rope, write_rope
from solo.model.parameters import ModelDefinition


def get(config_json: Mapping[str, Any], key: str) -> Any:
    """The value of a key. Raises LayoutError where it is missing."""
    if config_json.get(key) is None:
        raise LayoutError(f"config.json does not say {key}")
    return config_json[key]


def demand(config_json: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise LayoutError where a key is there with another value than the one our model can do."""
    for key, value in wanted.items():
        if config_json.get(key, value) != value:
            raise LayoutError(f"config.json has {key}: {config_json[key]}; our model of this family has {value}")


@dataclass(frozen=True)
class LlamaLike(Layout):
    """One of the family.

    name           the model_type
    architecture   its class in transformers
    bias, qk_norm  as in `ModelConfig`
    windowed       whether `sliding_window` holds for every layer
    max_positions  what is written as max_position_embeddings
    """

    name: str
    architecture: str
    bias: Literal["none", "qkv"] = "none"
    qk_norm: Literal["none", "rms"] = "none"
    windowed: bool = False
    max_positions: int = 32_768
    has_images: bool = False
    adds_placeholder: bool = False
    special_tokens: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    def recognises(self, config_json: Mapping[str, Any]) -> bool:
        """By its model_type; a monolith that borrows it has another class and a patch size."""
        architectures = config_json.get("architectures") or [self.architecture]
        borrowed = "vision_patch_size" in config_json or self.architecture not in architectures
        return config_json.get("model_type") == self.name and not borrowed

    def config_from(self, config_json: Mapping[str, Any]) -> Sections:
        """See `Layout`."""
        demand(config_json, {"hidden_act": "silu", "mlp_bias": False, "use_sliding_window": False})
        if self.bias == "none":
            demand(config_json, {"attention_bias": False})
        heads = get(config_json, "num_attention_heads")
        model = {
            "vocab_size": get(config_json, "vocab_size"),
            "width": get(config_json, "hidden_size"),
            "layers": get(config_json, "num_hidden_layers"),
            "heads": heads,
            "kv_heads": config_json.get("num_key_value_heads") or heads,
            "head_dim": config_json.get("head_dim") or config_json["hidden_size"] // heads,
            "ffn_width": get(config_json, "intermediate_size"),
            "experts": {"ffn": "shared", "qkv": "shared", "out": "shared", "norms": "shared"},
            "ffn": "swiglu",
            "bias": self.bias,
            "norm": "rms",
            "norm_eps": float(get(config_json, "rms_norm_eps")),
            "qk_norm": self.qk_norm,
            "tied_head": bool(config_json.get("tie_word_embeddings", False)),
            **read_rope(config_json),
        }
        window = config_json.get("sliding_window") if self.windowed else None
        return {"model": model, "image": {}, "sequence": {"sliding_window": window}}

    def config_json(self, config: Config, vocab_size: int) -> dict[str, Any]:
        """See `Layout`."""
        model = config.model
        return {
            "architectures": [self.architecture],
            "model_type": self.name,
            "vocab_size": vocab_size,
            "hidden_size": model.width,
            "intermediate_size": model.ffn_width,
            "num_hidden_layers": model.layers,
            "num_attention_heads": model.heads,
            "num_key_value_heads": model.kv_heads,
            "head_dim": model.dim_per_head,
            "hidden_act": "silu",
            "initializer_range": model.init_std,
            "rms_norm_eps": model.norm_eps,
            "tie_word_embeddings": model.tied_head,
            **({"sliding_window": config.sequence.sliding_window} if self.windowed else {}),
            **write_rope(model, self.max_positions),
        }

    def refusal(self, config: Config) -> str | None:
        """See `Layout`."""
        allowed = {
            "model.experts.ffn": ("shared", "modality"),
            "model.ffn": "swiglu",
            "model.bias": self.bias,
            "model.norm": "rms",
            "model.qk_norm": self.qk_norm,
            "model.rope_fraction": 1.0,
        }
        return first_refusal(
            config, self.name, allowed if self.windowed else {**allowed, "sequence.sliding_window": None}
        )

    def tensors(self, definition: ModelDefinition) -> list[TensorRule]:
        """Without what images need."""
        return self.text_tensors(Rules(definition))

    def text_tensors(self, rules: Rules, prefix: str = "") -> list[TensorRule]:
        """The language model, its names behind a prefix."""
        model = rules.config
        found = [rules.same(f"{prefix}model.embed_tokens.weight", "text_embed")]
        for layer in range(model.layers):
            found += self.layer_tensors(rules, f"{prefix}model.layers.{layer}", layer)
        found.append(rules.same(f"{prefix}model.norm.weight", "final_norm/scale"))
        return found if model.tied_head else [*found, rules.linear(f"{prefix}lm_head.weight", "head")]

    def layer_tensors(
        self, rules: Rules, name: str, layer: int, region: str = "text", mark: str = ""
    ) -> list[TensorRule]:
        """One layer.

        Args:
            rules: of the model.
            name: what the layer's tensors begin with.
            layer: its number.
            region: whose experts, where there are experts.
            mark: stands before the names of modules (EVEv2's `moe_`).
        """
        experts = rules.config.experts

        def ours(component: str, sharing: str, last: str) -> str:
            return f"layers/{component}/{'shared' if sharing == 'shared' else region}/{last}"

        norms = {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
        found = [
            rules.same(f"{name}.{mark}{theirs}.weight", ours(component, experts.norms, "scale"), layer)
            for theirs, component in norms.items()
        ]
        attention = f"{name}.self_attn.{mark}"
        for part in "qkv":
            found.append(rules.linear(f"{attention}{part}_proj.weight", ours("qkv", experts.qkv, part), layer))
            if self.bias == "qkv":
                found.append(
                    rules.flat(f"{attention}{part}_proj.bias", ours("qkv", experts.qkv, f"{part}_bias"), layer)
                )
        if self.qk_norm == "rms":
            for part in "qk":
                path = ours("qkv", experts.qkv, f"{part}_norm/scale")
                found.append(rules.same(f"{attention}{part}_norm.weight", path, layer))
        found.append(rules.linear(f"{attention}o_proj.weight", ours("out", experts.out, "kernel"), layer, inputs=2))
        for part in ("gate", "up", "down"):
            path = ours("ffn", experts.ffn, part)
            found.append(rules.linear(f"{name}.{mark}mlp.{part}_proj.weight", path, layer))
        return found

    def copies(self, definition: ModelDefinition) -> Mapping[str, str]:
        """A tied head that is stored all the same, as Qwen3-0.6B's is."""
        return {"lm_head.weight": "model.embed_tokens.weight"} if definition.config.tied_head else {}


MISTRAL = LlamaLike("mistral", "MistralForCausalLM", windowed=True, templates=("solo_chat",))
LLAMA = LlamaLike("llama", "LlamaForCausalLM", max_positions=131_072)
QWEN2 = LlamaLike("qwen2", "Qwen2ForCausalLM", bias="qkv", templates=("chatml",))
QWEN3 = LlamaLike("qwen3", "Qwen3ForCausalLM", qk_norm="rms", max_positions=40_960, templates=("chatml",))
