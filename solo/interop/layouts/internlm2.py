"""InternLM2 (mono_internvl.md 1.5): q, k and v in one tensor, and the FFN's gate, down and up as w1, w2 and w3."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from solo.config import Config
from solo.interop.layout import Rules, Sections, TensorRule, demand
from solo.interop.layouts.llama import LlamaLike

_TENSORS = {
    "model.tok_embeddings.weight": "text_embed",
    "model.norm.weight": "final_norm/scale",
    "output.weight": "head",
}
_LAYER_TENSORS = {
    "attention_norm{mark}.weight": ("attention_norm", "scale"),
    "attention.wo{mark}.weight": ("out", "kernel"),
    "ffn_norm{mark}.weight": ("ffn_norm", "scale"),
    "feed_forward{mark}.w1.weight": ("ffn", "gate"),
    "feed_forward{mark}.w2.weight": ("ffn", "down"),
    "feed_forward{mark}.w3.weight": ("ffn", "up"),
}


class InternLM2(LlamaLike):
    """The language model: Llama's architecture under other tensor names."""

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

    def text_tensors(self, rules: Rules, prefix: str = "", visual_mark: str | None = None) -> list[TensorRule]:
        """Returns the rules of the language model.

        Args:
            rules: of the model.
            prefix: precedes every name.
            visual_mark: suffix of the module names of visual experts. None leaves these out.
        """
        first, *last = rules.tensors({prefix + name: path for name, path in _TENSORS.items()})
        marks = {"text": ""} if visual_mark is None else {"text": "", "patches": visual_mark}
        found = [first]
        for layer, (region, mark) in product(range(rules.config.layers), marks.items()):
            name = f"{prefix}model.layers.{layer}."
            if region == "text" or not rules.is_shared("qkv"):
                q, k, v = (rules.layer_path("qkv", region, each) for each in "qkv")
                found.append(rules.packed(f"{name}attention.wqkv{mark}.weight", (q, k, v), layer))
            found += rules.layer(_LAYER_TENSORS, name, layer, region, mark)
        return [*found, *last]


INTERNLM2 = InternLM2("internlm2", "InternLM2ForCausalLM", templates=("internlm2_chat",))
