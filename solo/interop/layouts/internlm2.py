"""InternLM2 (mono_internvl.md 1.5): q, k and v in one tensor, and the FFN's gate, down and up as w1, w2 and w3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solo.config import Config
from solo.interop.layout import Rules, Sections, TensorRule, demand
from solo.interop.layouts.llama import LlamaLike

_FFN = {"w1": "gate", "w2": "down", "w3": "up"}


class InternLM2(LlamaLike):
    """The language model: Llama's architecture under other tensor names."""

    def fixed(self) -> Mapping[str, Any]:
        """See `Layout`."""
        return {**super().fixed(), "model.tied_head": False}

    def config_from(self, config_json: Mapping[str, Any]) -> Sections:
        """See `Layout`."""
        demand(config_json, {"bias": False})
        found = super().config_from(config_json)
        found["model"]["frozen_embedding_id"] = config_json.get("pad_token_id")
        return found

    def config_json(self, config: Config, vocab_size: int) -> dict[str, Any]:
        """See `Layout`."""
        frozen = config.model.frozen_embedding_id
        found = super().config_json(config, vocab_size)
        del found["head_dim"]
        return found | {
            "bias": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2 if frozen is None else frozen,
        }

    def refusal(self, config: Config) -> str | None:
        """See `Layout`."""
        model = config.model
        if model.dim_per_head * model.heads != model.width:
            return f"model.head_dim is {model.dim_per_head}; the {self.name} layout has model.width / model.heads"
        return super().refusal(config)

    def text_tensors(self, rules: Rules, prefix: str = "", visual_mark: str | None = None) -> list[TensorRule]:
        """Returns the rules of the language model.

        Args:
            rules: of the model.
            prefix: precedes every name.
            visual_mark: suffix of the module names of visual experts. None leaves these out.
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
    """Returns the rules of one layer and region. Shared weights belong to the text."""
    ours = rules.layer_path
    q, k, v = (ours("qkv", region, each) for each in "qkv")
    out, norms = ours("out", region, "kernel"), ("attention_norm", "ffn_norm")
    found = {
        "qkv": [rules.packed(f"{name}.attention.wqkv{mark}.weight", (q, k, v), layer)],
        "out": [rules.linear(f"{name}.attention.wo{mark}.weight", out, layer, inputs=2)],
        "ffn": [
            rules.linear(f"{name}.feed_forward{mark}.{theirs}.weight", ours("ffn", region, each), layer)
            for theirs, each in _FFN.items()
        ],
        "norm": [rules.same(f"{name}.{norm}{mark}.weight", ours(norm, region, "scale"), layer) for norm in norms],
    }
    return [
        rule
        for component, component_rules in found.items()
        for rule in component_rules
        if region == "text" or not rules.is_shared(component)
    ]


INTERNLM2 = InternLM2("internlm2", "InternLM2ForCausalLM", templates=("internlm2_chat",))
