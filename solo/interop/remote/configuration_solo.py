"""Configuration of a monolithic vision-language model, shipped beside its weights.

One transformer reads text tokens and raw image patches. What it is made of stands in three sections that are copied
from the training config as they are: `model` (the network), `image` (how an image becomes patches) and `sequence`
(chat template, positions, sliding window). The usual top-level names (`hidden_size`, ...) follow from them.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


class SoloMonolithConfig(PreTrainedConfig):
    """The sections, and what other code expects to find in a configuration.

    Args:
        model: width, layers, heads, experts, norms, rotary positions ...
        image: patch size, geometry, begin, end and row tokens, attention among the tokens of an image ...
        sequence: template, kind of positions, sliding window.
        vocab_size: rows of the embedding, the placeholder's included.
        image_token_id: the placeholder: it stands in `input_ids` where a patch stands.
        image_begin_id: token before an image's patches, or None.
        image_end_id: token behind them, or None.
        image_row_id: token between two rows of patches, or None.
        max_position_embeddings: the longest sequence that was trained; longer ones are not refused.
        use_cache: whether a forward pass returns a cache unless told otherwise.

    Raises:
        ValueError: a top-level name contradicts its section.
    """

    model_type = "solo_monolith"
    keys_to_ignore_at_inference = ("past_key_values", "cache")
    has_no_defaults_at_init = True

    def __init__(
        self,
        model: dict[str, Any] | None = None,
        image: dict[str, Any] | None = None,
        sequence: dict[str, Any] | None = None,
        vocab_size: int | None = None,
        image_token_id: int | None = None,
        image_begin_id: int | None = None,
        image_end_id: int | None = None,
        image_row_id: int | None = None,
        max_position_embeddings: int | None = None,
        use_cache: bool = True,
        **kwargs: Any,
    ):
        if model is None or image is None or sequence is None or vocab_size is None or image_token_id is None:
            raise ValueError("a SoloMonolithConfig needs model, image, sequence, vocab_size and image_token_id")
        self.model, self.image, self.sequence = model, image, sequence
        self.vocab_size, self.image_token_id = vocab_size, image_token_id
        self.image_begin_id, self.image_end_id, self.image_row_id = image_begin_id, image_end_id, image_row_id
        self.max_position_embeddings, self.use_cache = max_position_embeddings, use_cache
        for name, value in self._derived().items():
            given = kwargs.pop(name, value)
            if given != value:
                raise ValueError(f"{name} {given!r} contradicts the section it follows from: {value!r}; change that")
            setattr(self, name, value)
        super().__init__(**kwargs)

    def _derived(self) -> dict[str, Any]:
        """Top-level names that follow from the sections."""
        model = self.model
        return {
            "hidden_size": model["width"],
            "intermediate_size": model["ffn_width"],
            "num_hidden_layers": model["layers"],
            "num_attention_heads": model["heads"],
            "num_key_value_heads": model["kv_heads"],
            "head_dim": model["head_dim"] or model["width"] // model["heads"],
            "patch_size": self.image["patch_size"],
            "tie_word_embeddings": model["tied_head"],
            "initializer_range": model["init_std"],
        }

    @property
    def rotary_dim(self) -> int:
        """How many of a head's dimensions are rotated, the first ones."""
        return int(self.head_dim * self.model["rope_fraction"])

    @property
    def routes(self) -> bool:
        """Whether patches have weights of their own in some component."""
        return "modality" in self.model["experts"].values()


__all__ = ["SoloMonolithConfig"]
