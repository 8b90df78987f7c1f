"""Configuration of a monolithic vision-language model, shipped with its weights.

One transformer reads text tokens and raw image patches. Three sections of the training config describe it: `model`
(the network), `image` (how an image becomes patches) and `sequence` (chat template, positions, sliding window). The
usual top-level names (`hidden_size`, ...) are derived from them.
"""

from __future__ import annotations

from .versions_solo import OLDEST  # noqa: F401  refuses an older transformers before its names are imported

# isort: split
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto import modeling_auto


class SoloMonolithConfig(PreTrainedConfig):
    """The sections of the training config and the names that other code expects.

    Args:
        model: width, layers, heads, experts, norms, rotary positions, and so on.
        image: patch size, geometry, delimiter tokens, image mask, and so on.
        sequence: chat template, kind of positions, sliding window.
        vocab_size: rows of the embedding, including the placeholder's.
        image_token_id: placeholder in `input_ids` for a patch.
        image_begin_id: token before the patches of an image, or None.
        image_end_id: token after the patches of an image, or None.
        image_row_id: token between two rows of patches, or None.
        max_position_embeddings: the longest training sequence. Longer sequences are allowed.
        use_cache: whether a forward pass returns a cache by default.

    Raises:
        ValueError: a top-level name contradicts its section.
    """

    model_type = "solo_monolith"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012  Trainer adds a list to it
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
                raise ValueError(f"{name} is {given!r}, but its section says {value!r}; change the section")
            setattr(self, name, value)
        super().__init__(**kwargs)

    def _derived(self) -> dict[str, Any]:
        """Returns the top-level names that are derived from the sections."""
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
        """Number of dimensions of a head without parts that are rotated: the first ones."""
        return int(self.head_dim * self.model["rope_fraction"])

    @property
    def head_parts(self) -> list[dict[str, Any]]:
        """Parts of a head's queries and keys, each with its axis of the positions; empty for a head in one piece."""
        return self.model.get("head_parts") or []

    @property
    def rotary_widths(self) -> list[int]:
        """Widths of the spans of a head that are rotated together; they come first."""
        return [part["width"] for part in self.head_parts] or [self.rotary_dim]

    @property
    def value_dim(self) -> int:
        """Width of a head's values."""
        return self.model.get("value_dim") or self.head_dim

    @property
    def appended_ids(self) -> range:
        """Ids of the rows that were appended to the trained vocabulary, which are never predicted."""
        rows = self.model["vocab_size"]
        return range(rows - self.model.get("appended_rows", 0), rows)

    @property
    def routes(self) -> bool:
        """Whether some component has separate weights for patches."""
        return "modality" in self.model["experts"].values()


# `transformers serve` and pipelines find out from this table, not from auto_map, that the model reads images.
_READS_IMAGES = getattr(modeling_auto, "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES", {})
_READS_IMAGES.setdefault(SoloMonolithConfig.model_type, "SoloMonolithForCausalLM")

__all__ = ["SoloMonolithConfig"]
