"""Our own layout, which stores every model under names that follow our parameter paths.

config.json has our sections `model`, `image` and `sequence` with all keys of a run's config, and `vocab_size`, the
number of vocabulary rows. Weights are (out, in) as in PyTorch, including those of convolutions, which act on flattened
patches. R is shared, patches or text, and i the layer:

    model.text_embed.weight [V, D]           head.weight [V, D], absent where tied
    model.patch_embed.weight [D, 3 p p] .bias [D]                        linear; pixels as (channel, y, x)
    model.patch_embed.inner.weight [I, 3 i i] .bias [I]                  conv, grid; pixels as (channel, y, x)
    model.patch_embed.merge.weight [D, n n I] .bias [D]                  conv; inner patches row by row, then channels
    model.patch_embed.begin_marker [D] .row_marker [D]                   conv with image.markers
    model.patch_embed.positions [G G, I] .class_token [I]                grid; one more, first, with a class slot
    model.patch_embed.norm.weight .bias [n n I]                          grid
    model.patch_embed.hidden.weight [D, n n I] .bias, .out.weight [D, D] .bias
    model.patch_embed.norm_in.weight .bias [3 p p], .hidden.weight [I, 3 p p] .bias      normed; pixels as in linear
    model.patch_embed.norm_hidden.weight .bias [I], .columns .rows [G, I]
    model.patch_embed.norm_out.weight .bias [I], .out.weight [D, I]
    model.layers.i.attention_norm.R.weight [D] .bias, model.layers.i.ffn_norm.R.weight .bias
    model.layers.i.attention_post_norm.R.weight [D] .bias, .ffn_post_norm.R.weight .bias   norm_placement: sandwich
    model.layers.i.scalar [1]                                                               layer_scalar
    model.layers.i.qkv.R.q.weight [H C, D] .bias [H C], .k.weight [K C, D] .bias, .v.weight [K E, D] .bias
    model.layers.i.qkv.R.q_norm.weight [C] .bias, .k_norm.weight .bias
    model.layers.i.qkv.R.q_grid.weight [H G, D] .bias, .k_grid.weight    with parts of that projection; G is their width
    model.layers.i.qkv.R.q_norm_row.weight .bias, .q_norm_column, .q_norm_grid, .k_norm_row, ...        norms of parts
    model.layers.i.out.R.weight [D, H E] .bias [D]                       E is the width of a value
    model.layers.i.ffn.R.gate.weight [F, D] .bias [F], .up.weight .bias, .down.weight [D, F] .bias [D]
    model.layers.i.ffn.moe.router.weight [E, D], .gate [E, F, D], .up [E, F, D], .down [E, D, F]
    model.final_norm.weight [D] .bias

Biases exist where our model has them (`model.bias`, `norm: layer`, `qk_norm: layer`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solo.config import Config
from solo.interop.layout import Layout, LayoutError, Sections, first_refusal
from solo.interop.tensor_rules import Rules, TensorRule
from solo.model.parameters import ModelDefinition

MODEL_TYPE = "solo_monolith"
ARCHITECTURE = "SoloMonolithForCausalLM"
# What the PyTorch code of an export computes, where the model has more.
_COMPUTED = {"model.ffn": ("swiglu", "relu2"), "model.patch_embed.kind": ("linear", "conv", "grid")}
_SECTIONS = ("model", "image", "sequence")
# Last part of our path -> of the tensor's name. The biases of projections are q_bias here and q.bias there.
_WORDS = {"kernel": "weight", "scale": "weight", "text_embed": "text_embed.weight", "head": "head.weight"}
_PROJECTIONS = ("q", "k", "v", "q_grid", "k_grid", "gate", "up", "down")


class Native(Layout):
    """See the module's docstring."""

    name = "native"
    has_images = True
    names_placeholder = True
    images_form = "patches"
    varies = ("model.head_parts", "model.value_dim", "model.attention_scale")

    def recognises(self, config_json: Mapping[str, Any]) -> bool:
        return config_json.get("model_type") == MODEL_TYPE

    def config_from(self, config_json: Mapping[str, Any]) -> Sections:
        if missing := [name for name in _SECTIONS if not isinstance(config_json.get(name), dict)]:
            raise LayoutError(f"config.json of a {MODEL_TYPE} lacks the sections {', '.join(missing)}")
        found = {name: dict(config_json[name]) for name in _SECTIONS}
        # `resize_token_embeddings` of transformers changes this key, and not the section.
        found["model"]["vocab_size"] = config_json.get("vocab_size", found["model"].get("vocab_size"))
        return found

    def config_json(self, config: Config, vocab_size: int) -> dict[str, Any]:
        sections = {name: getattr(config, name).model_dump(mode="json") for name in _SECTIONS}
        sections["model"]["vocab_size"] = vocab_size
        return {
            "architectures": [ARCHITECTURE],
            "model_type": MODEL_TYPE,
            "vocab_size": vocab_size,
            "tie_word_embeddings": config.model.tied_head,
            **sections,
        }

    def refusal(self, config: Config) -> str | None:
        """See `Layout`. All tensors can be stored, but the PyTorch code of an export does not compute every model."""
        found = first_refusal(config, self.name, {**self.usual(), **_COMPUTED})
        return found and f"{found}, since its PyTorch code computes nothing else"

    def tensors(self, definition: ModelDefinition) -> list[TensorRule]:
        rules, specs = Rules(definition), definition.specs
        stacked = [path for path, spec in specs.items() if spec.in_layers]
        first = [path for path, spec in specs.items() if spec.component in ("patch_embed", "text_embed")]
        last = [path for path in specs if path not in (*stacked, *first)]
        found = [rules.tensor(tensor_name(path), path) for path in first]
        for layer in range(definition.config.layers):
            stack, number = rules.stack_of(layer)
            for path in (path for path in stacked if path.startswith(stack)):
                name = tensor_name(f"layers/{path.removeprefix(stack)}", layer)
                found.append(rules.tensor(name, path, number))
        return [*found, *(rules.tensor(tensor_name(path), path) for path in last)]


def tensor_name(path: str, layer: int | None = None) -> str:
    """Returns the name of a parameter's tensor; see the table at the top."""
    *words, last = path.split("/")
    if last.endswith("_bias"):
        last = f"{last.removesuffix('_bias')}.bias"
    elif last == "router" or (last in _PROJECTIONS and "moe" not in words):
        last = f"{last}.weight"
    words.append(_WORDS.get(last, last))
    if layer is not None:
        words.insert(1, str(layer))
    return ".".join(words if path == "head" else ["model", *words])


NATIVE = Native()
