"""Images in vLLM: the repository's own processor cuts them, and the prompt gets its delimiters and placeholders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ImageProcessorItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdateDetails,
)

# Candidate sides of the image with the most tokens.
_SIDES = (1 << 14, 1 << 12, 1 << 11, 1 << 10, 512, 256)


def image_ids(config: Any, processor: Any, grid: Any) -> list[int]:
    """Returns the token ids of an image with this grid: delimiters, row tokens and a placeholder for each patch."""
    names = {
        processor.image_token: config.image_token_id,
        processor.image_begin_token: config.image_begin_id,
        processor.image_end_token: config.image_end_id,
        processor.image_row_token: config.image_row_id,
    }
    text, ids = processor.image_text(grid), []
    while text:
        token = max((name for name in names if name and text.startswith(name)), key=len)
        ids.append(names[token])
        text = text[len(token) :]
    return ids


class ProcessingInfo(BaseProcessingInfo):
    """Answers vLLM's questions about the images of a model before there are any."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Returns no limit on images."""
        return {"image": None}

    def grid(self, image: Any) -> Any:
        """Returns the grid of an image, whose EXIF orientation may swap its sides."""
        images = self.get_hf_processor().image_processor
        return images.grid(*images.open(image).size)

    def largest(self) -> tuple[int, int]:
        """Returns the width and height of the smallest of some squares that have the most tokens."""
        processor = self.get_hf_processor()

        def tokens(side: int) -> int:
            return len(image_ids(self.get_hf_config(), processor, processor.image_processor.grid(side, side)))

        most = max(map(tokens, _SIDES))
        side = min(side for side in _SIDES if tokens(side) == most)
        return side, side


class DummyInputs(BaseDummyInputsBuilder[ProcessingInfo]):
    """Inputs with which vLLM measures its use of memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """Returns a text with this many images."""
        return self.info.get_hf_processor().image_token * mm_counts.get("image", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> dict[str, Any]:
        """Returns images of the largest size."""
        width, height = self.info.largest()
        images = self._get_dummy_images(
            width=width, height=height, num_images=mm_counts.get("image", 0), overrides=mm_options.get("image")
        )
        return {"image": images}


class Processor(BaseMultiModalProcessor[ProcessingInfo]):
    """Replaces the placeholder of an image by its tokens, and passes its patches on."""

    def _get_hf_mm_text(self, mm_counts: Mapping[str, int]) -> str:
        return self.dummy_inputs.get_dummy_text(mm_counts)

    def _postprocess_hf_mm_data(self, mm_inputs: Any, hf_processor_mm_kwargs: Any, processed_data: Any) -> BatchFeature:
        images = mm_inputs.get("images")
        if images is not None:
            placeholder = self.info.get_hf_config().image_token_id
            counts = [self._ids(image).count(placeholder) for image in images]
            processed_data["num_patches"] = torch.tensor(counts)
        return processed_data

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        counts = hf_inputs.get("num_patches", torch.empty(0, dtype=torch.long))
        return {
            "pixel_values": MultiModalFieldConfig.flat_from_sizes("image", counts),
            "patches_grid": MultiModalFieldConfig.flat_from_sizes("image", counts),
            "num_patches": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptReplacement]:
        placeholder = self.info.get_hf_config().image_token_id

        def replacement(number: int) -> PromptUpdateDetails:
            ids = self._ids(mm_items.get_items("image", ImageProcessorItems).get(number))
            return PromptUpdateDetails.select_token_id(ids, placeholder)

        return [PromptReplacement(modality="image", target=[placeholder], replacement=replacement)]

    def _ids(self, image: Any) -> list[int]:
        return image_ids(self.info.get_hf_config(), self.info.get_hf_processor(), self.info.grid(image))
