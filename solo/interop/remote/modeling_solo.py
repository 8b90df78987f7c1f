"""A monolithic vision-language model in PyTorch: one decoder over text tokens and raw image patches.

`input_ids == image_token_id` marks the patches in every step: in a whole prompt, in a part of one, and on top of a
cache. Components with modality experts gather the tokens of each modality, so that each expert computes its own tokens
only.

Letters in names and comments: B rows, S tokens of this step, R tokens of all steps so far, D width, n patches of all
rows.
"""

from __future__ import annotations

from .versions_solo import OLDEST  # noqa: F401  refuses an older transformers before its names are imported

# isort: split
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.masking_utils import and_masks, create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from .configuration_solo import SoloMonolithConfig
from .layers_solo import EMBEDDERS, ConvEmbed, GridEmbed, MoE, Routing, SoloMonolithLayer, make_norm
from .spans_solo import TEXT_AXES, expand_by_row, grid_positions, image_blocks, rotary_tables, take_new, text_positions

_OF_PATCHES = ("pixel_values", "patches_grid")
# transformers 5.24 renamed the cache, in outputs and in arguments.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"


class SoloMonolithPreTrainedModel(PreTrainedModel):
    """Base of both classes."""

    config_class = SoloMonolithConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ("SoloMonolithLayer",)
    _skip_keys_device_placement = ("past_key_values", "cache")
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, MoE):
            for kernel in (module.gate, module.up, module.down):
                nn.init.normal_(kernel, std=std)
        extra = [getattr(module, name, None) for name in ("positions", "class_token", "begin_marker", "row_marker")]
        for parameter in extra if isinstance(module, ConvEmbed | GridEmbed) else []:
            if parameter is not None:
                nn.init.normal_(parameter, std=std)


class SoloMonolithModel(SoloMonolithPreTrainedModel):
    """Maps token ids and patches to final hidden states."""

    def __init__(self, config: SoloMonolithConfig):
        super().__init__(config)
        model = config.model
        self.text_embed = nn.Embedding(config.vocab_size, model["width"])
        self.patch_embed = EMBEDDERS[model["patch_embed"]["kind"]](config)
        self.layers = nn.ModuleList(SoloMonolithLayer(config, number) for number in range(model["layers"]))
        self.final_norm = make_norm(model["norm"], model["width"], model["norm_eps"])
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_embed = value

    @can_return_tuple
    def get_image_features(
        self, pixel_values: Tensor, patches_grid: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Embeds patches: normalised pixels [n, p*p*3] at places [n, 2] of their images become features [n, D]."""
        token_id, like = self.config.model["patch_embed"]["token_id"], self.text_embed.weight
        features = self.patch_embed(pixel_values.to(like.device, like.dtype), patches_grid)
        if token_id is not None:
            features = features + like[token_id]
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=features)

    def get_position_ids(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, patches_grid: Tensor | None = None
    ) -> Tensor:
        """Returns the positions of a whole sequence: [B, S], or [3, B, S] (time, row, column) for grid positions.

        `input_ids` must include the beginning of the sequence, and `patches_grid` the places of all its patches.
        """
        if self.config.sequence["positions"] == "text":
            return text_positions(input_ids.shape[1], input_ids, attention_mask)
        return grid_positions(self.config, input_ids, attention_mask, patches_grid)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        patches_grid: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Computes the hidden states of tokens, from the beginning of a sequence or on top of a cache.

        Args:
            input_ids: int64 [B, S], with the placeholder for patches. With `inputs_embeds` it only marks the patches.
            pixel_values: [n, p*p*3], normalised pixels of the patches among these tokens, row after row.
            patches_grid: int64 [n, 2], row and column of each patch in its image or tile.
            attention_mask: [B, R], 0 at padding (left or right); or a complete mask [B, 1, S, R].
            position_ids: [B, S] or [3, B, S]. Required on top of a cache for grid positions.
            past_key_values: the cache, by its name before transformers 5.24.
            cache: the cache, by its name since then.
            inputs_embeds: [B, S, D] in place of the embeddings of `input_ids`.
            use_cache: return a cache even if none was given.
            mm_encoder_outputs: {"image": get_image_features(...)} in place of `pixel_values`.
            output_attentions: return the attention weights (eager only).
            output_hidden_states: return the input of every layer and the final hidden states.
            kwargs: passed on to the attention function.

        Raises:
            ValueError: the numbers of placeholders and patches differ, or an input is missing.
        """
        cache = self._usable(past_key_values if cache is None else cache, use_cache)
        features = self._features(pixel_values, patches_grid, mm_encoder_outputs)
        is_patch = self._is_patch(input_ids, inputs_embeds, features)
        if inputs_embeds is None:
            # The placeholder may have no row.
            inputs_embeds = self.text_embed(input_ids if is_patch is None else torch.where(is_patch, 0, input_ids))
        if features is not None:
            inputs_embeds = self._place(inputs_embeds, is_patch, features)
        past = 0 if cache is None else cache.get_seq_length()
        if position_ids is None:
            position_ids = self._positions(input_ids, inputs_embeds, attention_mask, patches_grid, past)
        mask = self.attention_mask(input_ids, inputs_embeds, is_patch, attention_mask, cache)
        rotary = rotary_tables(self.config, position_ids)
        routing = Routing.of(is_patch) if self.config.routes and is_patch is not None else None
        x, states, attentions = inputs_embeds, [], []
        for layer in self.layers:
            states.append(x)
            x, weights = layer(x, mask, rotary, routing, cache=cache, **kwargs)
            attentions.append(weights)
        x = self.final_norm(x)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            **{CACHE: cache},
            hidden_states=(*states, x) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def _usable(self, cache: Cache | None, use_cache: bool | None) -> Cache | None:
        """Returns the cache to write to, or None.

        Checkpointed layers run twice and would write twice, so that they have none.
        """
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            if cache is not None and cache.get_seq_length():
                raise ValueError("gradient checkpointing runs layers twice, which a filled cache does not allow")
            return None
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            return DynamicCache(config=self.config)
        return cache

    def _features(
        self, pixel_values: Tensor | None, patches_grid: Tensor | None, mm_encoder_outputs: dict[str, Any] | None
    ) -> Tensor | None:
        """Returns the embedded patches [n, D] of these tokens, or None without any."""
        if mm_encoder_outputs and mm_encoder_outputs.get("image") is not None:
            features = mm_encoder_outputs["image"]["pooler_output"]
            return torch.cat([each.reshape(-1, each.shape[-1]) for each in features])
        if pixel_values is None:
            return None
        return self.get_image_features(pixel_values, patches_grid, return_dict=True).last_hidden_state

    def _is_patch(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, features: Tensor | None
    ) -> Tensor | None:
        """Returns which tokens are patches, bool [B, S], or None if none is.

        Patches are among the tokens only if they are given, as features or within `inputs_embeds`. A step of decoding
        is therefore known to be text without a look at its ids, and is compiled as one graph.
        """
        if input_ids is None:
            if inputs_embeds is None:
                raise ValueError("give input_ids or inputs_embeds")
            if self.config.routes or self.config.image["mask"] != "causal":
                raise ValueError("this model must know which tokens are patches: give input_ids with inputs_embeds")
            return None
        is_patch = input_ids == self.config.image_token_id
        if features is None and inputs_embeds is None:
            if not torch.compiler.is_compiling() and is_patch.any():
                raise ValueError(f"{self._counted(is_patch)} for 0 patches: pixel_values is missing")
            return None
        return is_patch if features is not None or is_patch.any() else None

    def _counted(self, is_patch: Tensor) -> str:
        return f"{int(is_patch.sum())} placeholders (token {self.config.image_token_id})"

    def _place(self, inputs_embeds: Tensor, is_patch: Tensor | None, features: Tensor) -> Tensor:
        if is_patch is None:
            raise ValueError("patches need input_ids with placeholders")
        found = int(is_patch.sum())
        if found != len(features):
            raise ValueError(f"{self._counted(is_patch)} for {len(features)} patches")
        return inputs_embeds.masked_scatter(is_patch[..., None], features.to(inputs_embeds))

    def _positions(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        patches_grid: Tensor | None,
        past: int,
    ) -> Tensor:
        if self.config.sequence["positions"] == "text":
            return text_positions(past + inputs_embeds.shape[1], inputs_embeds, attention_mask)[:, past:]
        if past or input_ids is None:
            raise ValueError("grid positions: give position_ids as returned by get_position_ids for the whole sequence")
        return self.get_position_ids(input_ids, attention_mask, patches_grid)

    def attention_mask(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor,
        is_patch: Tensor | None,
        attention_mask: Tensor | None,
        cache: Cache | None,
    ) -> Any:
        """Returns the attention mask: causal within the sliding window, except for the tokens of images.

        A mask [B, 1, S, R] is returned as it is.
        """
        if attention_mask is not None and attention_mask.ndim == 4:
            return attention_mask
        attention, window = self.config.image["mask"], self.config.sequence["sliding_window"]
        special: dict[str, Any] = {}
        limits = []
        past = 0 if cache is None else cache.get_seq_length()
        slots = inputs_embeds.shape[1] if cache is None else cache.get_mask_sizes(inputs_embeds.shape[1], 0)[0]
        if is_patch is not None and attention in ("bidirectional", "prefix"):
            blocks = image_blocks(self.config, input_ids, int(past), slots)

            def same_image(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
                return (blocks[b, q] == blocks[b, k]) & (blocks[b, q] >= 0)

            special["or_mask_function"] = same_image
            if window is not None:
                limits.append(lambda b, h, q, k: (q - k < window) | same_image(b, h, q, k))
        elif window is not None:
            limits.append(lambda b, h, q, k: q - k < window)
        if is_patch is not None and attention == "isolated":
            alone = F.pad(is_patch, (int(past), max(slots - int(past) - is_patch.shape[1], 0)))
            limits.append(lambda b, h, q, k: (q == k) | ~alone[b, q])
        if limits:
            special["and_mask_function"] = and_masks(*limits)
        return create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            **{CACHE: cache},
            **special,
        )


class SoloMonolithForCausalLM(SoloMonolithPreTrainedModel, GenerationMixin):
    """The model with its head: next-token logits, and generation with images in every turn."""

    _tied_weights_keys = {"head.weight": "model.text_embed.weight"}  # noqa: RUF012

    def __init__(self, config: SoloMonolithConfig):
        super().__init__(config)
        self.model = SoloMonolithModel(config)
        self.head = nn.Linear(config.model["width"], config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.text_embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.text_embed = value

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.head = new_embeddings

    def get_image_features(self, *args: Any, **kwargs: Any) -> Any:
        """See `SoloMonolithModel.get_image_features`."""
        return self.model.get_image_features(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        patches_grid: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        mm_token_type_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """See `SoloMonolithModel.forward`.

        Labels [B, S] are shifted here; -100 is ignored. Other keyword arguments also reach the loss, such as
        `num_items_in_batch` of Trainer, by which it divides in place of the number of labels.
        """
        if labels is not None and not torch.compiler.is_compiling() and (labels == self.config.image_token_id).any():
            raise ValueError(
                f"labels contain the placeholder of patches (token {self.config.image_token_id}), which is not to be"
                " predicted: set labels to -100 there"
            )
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            patches_grid=patches_grid,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            mm_encoder_outputs=mm_encoder_outputs,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.head(outputs.last_hidden_state[:, kept])
        for row in self.config.appended_ids:
            logits[..., row] = torch.finfo(logits.dtype).min
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **{CACHE: getattr(outputs, CACHE)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """Generates as in transformers. On top of a cache, the whole conversation with all images may be given again;
        patches that are in the cache are skipped.
        """
        kwargs = {name: value for name, value in kwargs.items() if value is not None or name not in _OF_PATCHES}
        ids = inputs if inputs is not None else kwargs.get("input_ids")
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        past = 0 if cache is None else cache.get_seq_length()
        mask = kwargs.get("attention_mask")
        if past and ids is not None and (mask is None or mask.shape[1] == ids.shape[1]):
            grid = kwargs.get("patches_grid")
            if kwargs.get("position_ids") is None and self.config.sequence["positions"] != "text":
                kwargs["position_ids"] = self.model.get_position_ids(ids, mask, grid)
            for name in _OF_PATCHES:
                if name in kwargs:
                    kwargs[name] = take_new(ids == self.config.image_token_id, past, kwargs[name])
        return super().generate(inputs, **kwargs)

    def create_masks_for_generate(self, attention_mask: Tensor | None, **kwargs: Any) -> Tensor | None:
        """Leaves the mask of a static cache to `prepare_inputs_for_generation`, which has the ids."""
        return attention_mask

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As in transformers. Ids accompany `inputs_embeds`, and a static cache gets its mask here, as a whole."""
        found: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        ids, embeds = found.get("input_ids"), found.get("inputs_embeds")
        if embeds is not None and input_ids.shape[1] >= embeds.shape[1]:
            ids = found["input_ids"] = input_ids[:, -embeds.shape[1] :]
        mask, cache = found.get("attention_mask"), found.get(CACHE)
        if isinstance(cache, Cache) and cache.is_compileable and (mask is None or mask.ndim == 2):
            like: Tensor = found["input_ids"] if embeds is None else embeds
            sizes = torch.empty((*like.shape[:2], 0), dtype=self.dtype, device=like.device)
            is_patch = None if ids is None else ids == self.config.image_token_id
            if is_patch is not None and not is_patch.any():
                is_patch = None
            found["attention_mask"] = self.model.attention_mask(ids, sizes, is_patch, mask, cache)
        return found

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
        ids = model_kwargs.get("input_ids")
        ids = inputs_tensor if ids is None or not ids.shape[1] else ids
        if self.config.sequence["positions"] == "text" or ids.dtype.is_floating_point:
            return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
        return self.model.get_position_ids(ids, model_kwargs.get("attention_mask"), model_kwargs.get("patches_grid"))

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Advances positions [3, B, S] as text does; transformers adds one to all three."""
        before = model_kwargs.get("position_ids")
        found: dict[str, Any] = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        after = found.get("position_ids")
        if before is not None and after is not None and after.ndim == 3:
            axes = TEXT_AXES[self.config.sequence["positions"]]
            after[:, :, before.shape[-1] :] *= torch.tensor(axes, device=after.device)[:, None, None]
        return found

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Repeats rows. Patches have no batch axis, so the patches of a row are repeated together."""
        if expand_size == 1:
            return input_ids, model_kwargs
        of_patches = {name: model_kwargs.pop(name, None) for name in _OF_PATCHES}
        encoded = model_kwargs.pop("mm_encoder_outputs", None)
        positions = model_kwargs.pop("position_ids", None)
        is_patch = None if input_ids is None else input_ids == self.config.image_token_id
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if positions is not None:  # rows are the last axis but one: [B, S] or [3, B, S]
            model_kwargs["position_ids"] = positions.repeat_interleave(expand_size, dim=-2)
        for name, value in of_patches.items():
            if value is not None:
                model_kwargs[name] = expand_by_row(is_patch, value, expand_size)
        if encoded is not None:
            if encoded.get("image") is not None:
                features = expand_by_row(is_patch, encoded["image"]["pooler_output"], expand_size)
                encoded = {"image": BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=features)}
            model_kwargs["mm_encoder_outputs"] = encoded
        return input_ids, model_kwargs


__all__ = ["SoloMonolithForCausalLM", "SoloMonolithModel", "SoloMonolithPreTrainedModel"]
