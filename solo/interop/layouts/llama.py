"""Mistral, Llama, Qwen2 and Qwen3: one decoder with small differences and the same tensor names.

Written from the classes of transformers 5.23. Exported to these layouts, a monolith keeps its text path only: the text
experts of each modality-expert component, and no patch embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from solo.config import Config
from solo.interop.layout import Layout, Rules, Sections, TensorRule, demand, experts, get, sections
from solo.interop.layouts.rope import read_rope, write_rope
from solo.model.parameters import ModelDefinition

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

    def fixed(self) -> Mapping[str, Any]:
        """See `Layout`."""
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
        """See `Layout`."""
        demand(config_json, {"hidden_act": "silu", "mlp_bias": False, "use_sliding_window": False})
        if self.bias == "none":
            demand(config_json, {"attention_bias": False})
        found = sections(self.fixed())
        found["model"] |= read_sizes(config_json) | read_rope(config_json)
        if self.windowed:
            found["sequence"]["sliding_window"] = config_json.get("sliding_window")
        return found

    def config_json(self, config: Config, vocab_size: int) -> dict[str, Any]:
        """See `Layout`."""
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
        """See `Layout`."""
        return self.text_tensors(Rules(definition))

    def text_tensors(self, rules: Rules, prefix: str = "") -> list[TensorRule]:
        """Returns the rules of the language model; `prefix` precedes every name."""
        model = rules.config
        found = [rules.same(f"{prefix}model.embed_tokens.weight", "text_embed")]
        for layer in range(model.layers):
            found += self.layer_tensors(rules, f"{prefix}model.layers.{layer}", layer)
        found.append(rules.same(f"{prefix}model.norm.weight", "final_norm/scale"))
        return found if model.tied_head else [*found, rules.linear(f"{prefix}lm_head.weight", "head")]

    def layer_tensors(
        self, rules: Rules, name: str, layer: int, region: str = "text", mark: str = ""
    ) -> list[TensorRule]:
        """Returns the rules of one layer.

        Args:
            rules: of the model.
            name: prefix of the layer's tensors.
            layer: its number.
            region: whose experts to use, where there are experts.
            mark: prefix of module names (EVEv2's `moe_`).
        """
        ours, attention = rules.layer_path, f"{name}.self_attn.{mark}"
        norms = {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
        found = [
            rules.same(f"{name}.{mark}{theirs}.weight", ours(component, region, "scale"), layer)
            for theirs, component in norms.items()
        ]
        for each in "qkv":
            found.append(rules.linear(f"{attention}{each}_proj.weight", ours("qkv", region, each), layer))
            if self.bias == "qkv":
                found.append(rules.flat(f"{attention}{each}_proj.bias", ours("qkv", region, f"{each}_bias"), layer))
        if self.qk_norm == "rms":
            for each in "qk":
                path = ours("qkv", region, f"{each}_norm/scale")
                found.append(rules.same(f"{attention}{each}_norm.weight", path, layer))
        found.append(rules.linear(f"{attention}o_proj.weight", ours("out", region, "kernel"), layer, inputs=2))
        for each in ("gate", "up", "down"):
            found.append(rules.linear(f"{name}.{mark}mlp.{each}_proj.weight", ours("ffn", region, each), layer))
        return found

    def copies(self, definition: ModelDefinition) -> Mapping[str, str]:
        """A tied head that is stored all the same, as in Qwen3-0.6B."""
        return {"lm_head.weight": "model.embed_tokens.weight"} if definition.config.tied_head else {}


MISTRAL = LlamaLike("mistral", "MistralForCausalLM", windowed=True, templates=("solo_chat",))
LLAMA = LlamaLike("llama", "LlamaForCausalLM", max_positions=131_072)
QWEN2 = LlamaLike("qwen2", "Qwen2ForCausalLM", bias="qkv", templates=("chatml",))
QWEN3 = LlamaLike("qwen3", "Qwen3ForCausalLM", qk_norm="rms", max_positions=40_960, templates=("chatml",))
