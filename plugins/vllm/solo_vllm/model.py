"""The exported model with vLLM's attention. All other layers are the repository's own PyTorch code.

Letters in names and comments: N tokens of all requests of this step, D width, H query heads, K key/value heads, C head
dimension, n patches of all images, V vocabulary.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.multimodal import MULTIMODAL_REGISTRY

from solo_vllm.processing import DummyInputs, ProcessingInfo, Processor


def refusal(config: Any, vllm_config: VllmConfig) -> str | None:
    """Returns why vLLM cannot serve this model with these settings, or None."""
    image, model = config.image, config.model
    scaling = model["rope_scaling"] or {}
    longest = vllm_config.model_config.max_model_len
    if image["mask"] != "causal":
        return f"image.mask is {image['mask']!r}, and this plug-in attends causally"
    if found := [key for key in ("head_parts", "value_dim", "attention_scale") if model.get(key) is not None]:
        return f"model.{found[0]}: heads in parts are not implemented"
    if model["rope_sections"] is not None:
        return "model.rope_sections: positions of rows and columns are not implemented"
    for key in ("share_tiles", "share_pixels"):
        if image.get(key):
            return f"image.{key}: vLLM processes every image by itself"
    if scaling.get("kind") == "dynamic" and longest > scaling["trained_length"]:
        return (
            f"rope_scaling is dynamic: set --max-model-len to at most {scaling['trained_length']}, the trained length"
        )
    parallel = vllm_config.parallel_config
    if parallel.tensor_parallel_size > 1 or parallel.pipeline_parallel_size > 1:
        return "its weights are not sharded: serve it with tensor and pipeline parallel sizes of 1"
    if vllm_config.quant_config is not None:
        return "it is not quantised"
    if not vllm_config.model_config.enforce_eager:
        return "which tokens are patches decides its shapes, so a captured graph would be wrong: add --enforce-eager"
    return None


class Backbone(nn.Module):
    """The modules of the repository's `SoloMonolithModel`, by the same names."""

    def __init__(self, remote: Any, config: Any):
        super().__init__()
        width = config.model["width"]
        self.text_embed = nn.Embedding(config.vocab_size, width)
        self.patch_embed = remote.EMBEDDERS[config.model["patch_embed"]["kind"]](config)
        self.layers = nn.ModuleList(remote.SoloMonolithLayer(config, i) for i in range(config.num_hidden_layers))
        self.final_norm = remote.make_norm(config.model["norm"], width, config.model["norm_eps"])


@MULTIMODAL_REGISTRY.register_processor(Processor, info=ProcessingInfo, dummy_inputs=DummyInputs)
class SoloMonolithForCausalLM(nn.Module, SupportsMultiModal):
    """A monolithic vision-language model, with or without visual experts.

    Raises:
        ValueError: vLLM cannot serve the model with these settings; the message says why.
    """

    # vLLM passes the ids beside the embeddings: a token is a patch if its id is the placeholder's.
    requires_raw_input_tokens = True

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Returns the text that stands for an image in a chat template that takes plain texts."""
        return "<image>" if modality == "image" else None

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        config = vllm_config.model_config.hf_config
        if reason := refusal(config, vllm_config):
            raise ValueError(f"solo in vLLM: {reason}")
        given = vllm_config.model_config
        published = get_class_from_dynamic_module(
            "modeling_solo.SoloMonolithModel", given.model, revision=given.revision, code_revision=given.code_revision
        )
        self.remote = sys.modules[published.__module__]
        self.config = config
        self.model = Backbone(self.remote, config)
        self.head = nn.Linear(config.model["width"], config.vocab_size, bias=False)
        if config.model["tied_head"]:
            self.head.weight = self.model.text_embed.weight
        self.attention = nn.ModuleList(
            Attention(
                config.num_attention_heads,
                config.head_dim,
                config.head_dim**-0.5,
                num_kv_heads=config.num_key_value_heads,
                cache_config=vllm_config.cache_config,
                per_layer_sliding_window=config.sequence["sliding_window"],
                prefix=f"{prefix}.attention.{number}".lstrip("."),
            )
            for number in range(config.num_hidden_layers)
        )
        settings = given.try_get_generation_config()
        self.never = sorted({config.image_token_id, *(settings.get("suppress_tokens") or ())})

    def get_language_model(self) -> nn.Module:
        """Returns the model itself: text and patches go through one decoder."""
        return self

    def embed_multimodal(
        self, pixel_values: Tensor | None = None, patches_grid: Tensor | None = None, num_patches: Any = None, **_: Any
    ) -> list[Tensor]:
        """Embeds the patches of images: pixels [n, p*p*3] at places [n, 2] become features, one [n_i, D] per image."""
        if pixel_values is None:
            return []
        token_id, like = self.config.model["patch_embed"]["token_id"], self.model.text_embed.weight
        features = self.model.patch_embed(pixel_values.to(like.device, like.dtype), patches_grid)
        if token_id is not None:
            features = features + like[token_id]
        return list(features.split(torch.as_tensor(num_patches).flatten().tolist()))

    def embed_input_ids(
        self,
        input_ids: Tensor,
        multimodal_embeddings: Any = None,
        *,
        is_multimodal: Tensor | None = None,
    ) -> Tensor:
        """Returns the embeddings [N, D] of tokens, those of patches in the places that `is_multimodal` [N] marks."""
        x_ND = self.model.text_embed(input_ids)
        if multimodal_embeddings is None or not len(multimodal_embeddings):
            return x_ND
        assert is_multimodal is not None
        features = torch.cat([each.reshape(-1, each.shape[-1]) for each in multimodal_embeddings])
        return x_ND.masked_scatter(is_multimodal[:, None].to(x_ND.device), features.to(x_ND))

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Returns final hidden states [N, D] of tokens at positions [N] of their requests."""
        if input_ids is None:
            raise ValueError("solo in vLLM: the ids of the tokens, which say which of them are patches, are missing")
        is_patch = input_ids == self.config.image_token_id
        x_ND = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        routing = self.remote.Routing.of(is_patch) if self.config.routes and bool(is_patch.any()) else None
        rotary = self.remote.rotary_tables(self.config, positions[None])
        for layer, attention in zip(self.model.layers, self.attention, strict=True):
            x_ND = decoder_layer(layer, attention, x_ND, rotary, routing)
        return self.model.final_norm(x_ND)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """Returns logits [N, V]. Placeholders and the other special tokens that answers never hold have -inf."""
        logits_NV = self.head(hidden_states)
        logits_NV[:, self.never] = -torch.inf
        return logits_NV

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Loads the repository's tensors, whose names are the parameters' names.

        Raises:
            ValueError: a tensor is missing, unknown or of another shape.
        """
        return load(self, weights)


def decoder_layer(layer: Any, attention: Any, x_ND: Tensor, rotary: tuple[Tensor, Tensor], routing: Any) -> Tensor:
    """Computes a layer of the repository's code with another attention.

    Args:
        layer: a `SoloMonolithLayer`.
        attention: maps queries [N, H*C], keys and values [N, K*C] to outputs [N, H*C].
        x_ND: hidden states.
        rotary: cosines and sines [1, N, r/2].
        routing: flat indices of patches and of text, or None if all tokens are text.
    """
    rotate = sys.modules[type(layer).__module__].rotate
    q_NHC, k_NKC, v_NKC = layer.qkv(layer.attention_norm(x_ND, routing), routing)
    q, k = (rotate(each.transpose(0, 1)[None], *rotary)[0].transpose(0, 1) for each in (q_NHC, k_NKC))
    heads = attention(q.flatten(1), k.flatten(1), v_NKC.flatten(1))
    x_ND = x_ND + layer.out(heads, routing)
    return x_ND + layer.ffn(layer.ffn_norm(x_ND, routing), routing)


def load(module: nn.Module, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
    """Copies tensors into the parameters of the same names; see `SoloMonolithForCausalLM.load_weights`."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    loaded = set()
    for name, tensor in weights:
        if name not in parameters or parameters[name].shape != tensor.shape:
            found = tuple(parameters[name].shape) if name in parameters else "none"
            raise ValueError(
                f"solo in vLLM: {name} is {tuple(tensor.shape)} in the repository, and {found} in the model"
            )
        parameters[name].data.copy_(tensor)
        loaded.add(name)
    full = {id(parameters[name]) for name in loaded}
    if missing := sorted(name for name, value in parameters.items() if id(value) not in full):
        raise ValueError(f"solo in vLLM: the repository lacks {', '.join(missing)}")
    return set(parameters)
