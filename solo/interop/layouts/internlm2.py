"""InternLM2 (mono_internvl.md 1.5): q, k and v in one tensor, and the FFN's gate, down and up as w1, w2 and w3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solo.config import Config
from solo.interop.layout import Layout, Rules, Sections, TensorRule, first_refusal
from solo.interop.layouts.llama import demand, get
from solo.interop.layouts.rope import read_rope, write_rope
from solo.model.parameters import ModelDefinition

_FFN = {"w1": "gate", "w2": "down", "w3": "up"}


class InternLM2(Layout):
    """The language model alone; as a target the text path of a monolith."""

    name = "internlm2"
    has_images = False
    templates = ("internlm2_chat",)

    def recognises(self, config_json: Mapping[str, Any]) -> bool:
        """By its model_type."""
        return config_json.get("model_type") == "internlm2"

    def config_from(self, config_json: Mapping[str, Any]) -> Sections:
        """See `Layout`."""
        demand(config_json, {"hidden_act": "silu", "bias": False})
        heads, width = get(config_json, "num_attention_heads"), get(config_json, "hidden_size")
        model = {
            "vocab_size": get(config_json, "vocab_size"),
            "width": width,
            "layers": get(config_json, "num_hidden_layers"),
            "heads": heads,
            "kv_heads": config_json.get("num_key_value_heads") or heads,
            "head_dim": width // heads,
            "ffn_width": get(config_json, "intermediate_size"),
            "experts": {"ffn": "shared", "qkv": "shared", "out": "shared", "norms": "shared"},
            "ffn": "swiglu",
            "bias": "none",
            "norm": "rms",
            "norm_eps": float(get(config_json, "rms_norm_eps")),
            "qk_norm": "none",
            "frozen_embedding_id": config_json.get("pad_token_id"),
            "tied_head": bool(config_json.get("tie_word_embeddings", False)),
            **read_rope(config_json),
        }
        return {"model": model, "image": {}, "sequence": {"sliding_window": None}}

    def config_json(self, config: Config, vocab_size: int) -> dict[str, Any]:
        """See `Layout`."""
        model = config.model
        return {
            "architectures": ["InternLM2ForCausalLM"],
            "model_type": "internlm2",
            "vocab_size": vocab_size,
            "hidden_size": model.width,
            "intermediate_size": model.ffn_width,
            "num_hidden_layers": model.layers,
            "num_attention_heads": model.heads,
            "num_key_value_heads": model.kv_heads,
            "hidden_act": "silu",
            "bias": False,
            "initializer_range": model.init_std,
            "rms_norm_eps": model.norm_eps,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2 if model.frozen_embedding_id is None else model.frozen_embedding_id,
            **write_rope(model, 32_768),
        }

    def refusal(self, config: Config) -> str | None:
        """See `Layout`."""
        model = config.model
        if model.dim_per_head * model.heads != model.width:
            return f"model.head_dim is {model.dim_per_head}; the {self.name} layout has model.width / model.heads"
        allowed = {
            "model.experts.ffn": ("shared", "modality"),
            "model.ffn": "swiglu",
            "model.bias": "none",
            "model.norm": "rms",
            "model.qk_norm": "none",
            "model.rope_fraction": 1.0,
            "model.tied_head": False,
            "sequence.sliding_window": None,
        }
        return first_refusal(config, self.name, allowed)

    def tensors(self, definition: ModelDefinition) -> list[TensorRule]:
        """Without what images need."""
        return text_tensors(Rules(definition))


def text_tensors(rules: Rules, prefix: str = "", visual_mark: str | None = None) -> list[TensorRule]:
    """The language model.

    Args:
        rules: of the model.
        prefix: stands before every name.
        visual_mark: what the names of visual experts end with; None leaves those out.
    """
    found = [rules.same(f"{prefix}model.tok_embeddings.weight", "text_embed")]
    for layer in range(rules.config.layers):
        name = f"{prefix}model.layers.{layer}"
        found += _layer(rules, name, layer, "text", "")
        if visual_mark is not None:
            found += _layer(rules, name, layer, "patches", visual_mark)
    found.append(rules.same(f"{prefix}model.norm.weight", "final_norm/scale"))
    return [*found, rules.linear(f"{prefix}output.weight", "head")]


def _layer(rules: Rules, name: str, layer: int, region: str, mark: str) -> list[TensorRule]:
    """One layer's tensors of one region; the text has what is shared."""
    experts = rules.config.experts

    def ours(component: str, last: str) -> str | None:
        sharing = getattr(experts, "norms" if component.endswith("norm") else component)
        if sharing == "shared":
            return f"layers/{component}/shared/{last}" if region == "text" else None
        return f"layers/{component}/{region}/{last}"

    found = []
    if (q := ours("qkv", "q")) and (k := ours("qkv", "k")) and (v := ours("qkv", "v")):
        found.append(rules.packed(f"{name}.attention.wqkv{mark}.weight", (q, k, v), layer))
    if path := ours("out", "kernel"):
        found.append(rules.linear(f"{name}.attention.wo{mark}.weight", path, layer, inputs=2))
    for theirs, part in _FFN.items():
        if path := ours("ffn", part):
            found.append(rules.linear(f"{name}.feed_forward{mark}.{theirs}.weight", path, layer))
    for component in ("attention_norm", "ffn_norm"):
        if path := ours(component, "scale"):
            found.append(rules.same(f"{name}.{component}{mark}.weight", path, layer))
    return found


INTERNLM2 = InternLM2()
