"""InternLM2: q, k and v in one tensor, and the FFN's gate, down and up as w1, w2 and w3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from solo.config import Config
from solo.interop.layout import Sections, demand
from solo.interop.layouts.llama import LlamaLike


class InternLM2(LlamaLike):
    """Llama's architecture under other tensor names."""

    names: ClassVar = {
        "model.tok_embeddings.weight": "text_embed",
        "model.norm.weight": "final_norm/scale",
        "output.weight": "head",
    }
    layer_names: ClassVar = {
        "attention_norm{mark}.weight": ("attention_norm", "scale"),
        "attention.wo{mark}.weight": ("out", "kernel"),
        "ffn_norm{mark}.weight": ("ffn_norm", "scale"),
        "feed_forward{mark}.w1.weight": ("ffn", "gate"),
        "feed_forward{mark}.w2.weight": ("ffn", "down"),
        "feed_forward{mark}.w3.weight": ("ffn", "up"),
    }
    packed_names: ClassVar = {"attention.wqkv{mark}.weight": ("q", "k", "v")}

    def fixed(self) -> Mapping[str, Any]:
        return {**super().fixed(), "model.tied_head": False}

    def config_from(self, config_json: Mapping[str, Any]) -> Sections:
        demand(config_json, {"bias": False})
        found = super().config_from(config_json)
        found["model"]["frozen_embedding_id"] = config_json.get("pad_token_id")
        return found

    def config_json(self, config: Config, vocab_size: int) -> dict[str, Any]:
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
        model = config.model
        if model.dim_per_head * model.heads != model.width:
            return f"model.head_dim is {model.dim_per_head}; the {self.name} layout has model.width / model.heads"
        return super().refusal(config)


INTERNLM2 = InternLM2("internlm2", "InternLM2ForCausalLM", templates=("internlm2_chat",))
