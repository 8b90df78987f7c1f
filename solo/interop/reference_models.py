"""PyTorch implementations of exported repositories. Imports torch and transformers."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Set before transformers is imported: nothing here needs the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

from solo.interop.export_plan import ExportPlan, make_plan
from solo.interop.layouts.native import NATIVE
from solo.interop.remote.configuration_solo import SoloMonolithConfig
from solo.interop.remote.image_processing_solo import SoloMonolithImageProcessor
from solo.interop.remote.modeling_solo import SoloMonolithForCausalLM
from solo.interop.remote.processing_solo import SoloMonolithProcessor
from solo.interop.repository import PLACEHOLDER, config_json, processor_config
from solo.interop.source import open_source


class NoReferenceError(Exception):
    """Nothing installed can compute a repository's logits; the message says why."""


@dataclass
class Reference:
    """A PyTorch model and its processor.

    Attributes:
        name: name of the implementation, for the user.
        model: computes logits and generates.
        processor: applies the chat template; a tokenizer, or a processor with images.
        generation: settings of `generate`.
        has_images: whether it reads images.
        inputs: maps what the processor returns to the arguments of the model.
    """

    name: str
    model: Any
    processor: Any
    generation: Any
    has_images: bool = True
    inputs: Callable[[dict[str, Any]], dict[str, Any]] = dict

    @property
    def placeholder_id(self) -> int:
        """The token id that stands for a patch, or -1."""
        return getattr(self.processor, "image_token_id", -1)

    def logits(self, messages: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the token ids [N] and float32 logits [N, V] of a conversation."""
        inputs = self._processed(messages, add_generation_prompt=False)
        with torch.no_grad():
            found = self.model.eval()(**inputs).logits[0].float().numpy()
        return inputs["input_ids"][0].numpy(), found

    def answer(self, messages: list[dict[str, Any]], max_new_tokens: int) -> list[int]:
        """Returns the tokens of a greedy answer."""
        inputs = self._processed(messages, add_generation_prompt=True)
        self.generation.max_new_tokens = max_new_tokens
        found = self.model.eval().generate(**inputs, generation_config=self.generation)[0].tolist()
        return found[inputs["input_ids"].shape[1] :]

    def _processed(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> dict[str, Any]:
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
        found = self.processor.apply_chat_template([messages], add_generation_prompt=add_generation_prompt, **options)
        return self.inputs(found)


def make_reference(folder: Path, plan: ExportPlan) -> Reference:
    """Returns a model that computes a repository's logits. Raises NoReferenceError if there is none."""
    if plan.tokenizer is None:
        raise NoReferenceError("the repository has no tokenizer")
    layout = plan.layout.name
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    generation = transformers.GenerationConfig.from_pretrained(folder)
    if not plan.layout.has_images:
        (name,) = config_json(plan)["architectures"]
        if not hasattr(transformers, name):
            raise NoReferenceError(f"transformers has no class for the layout {layout}")
        model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32)
        return Reference(f"transformers' {name}", model, tokenizer, generation, has_images=False)
    processor = _processor(folder, plan, tokenizer)
    if layout == "native":
        processor.image_processor = SoloMonolithImageProcessor.from_pretrained(folder)
        model = SoloMonolithForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return Reference("the PyTorch code in the repository", model, processor, generation)
    if layout == "fuyu":
        model = transformers.FuyuForCausalLM.from_pretrained(folder, dtype=torch.float32)
        name = f"transformers' FuyuForCausalLM around {type(model.model.language_model).__name__}"
        return Reference(name, model, processor, generation, inputs=_fuyu_inputs(model.config.patch_size))
    if layout == "gemma4_unified":
        processor.image_processor.form = str(plan.layout.images_form)
        model = transformers.Gemma4UnifiedForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        return Reference("transformers' Gemma4UnifiedForConditionalGeneration", model, processor, generation)
    name = "the PyTorch code of native repositories; current transformers has no class for this layout"
    return Reference(name, _native_model(folder, plan), processor, generation)


def _processor(folder: Path, plan: ExportPlan, tokenizer: Any) -> SoloMonolithProcessor:
    """Returns our processor, also for repositories that come without one."""
    image = plan.config.image
    if image.placeholder_token is None:
        image = image.model_copy(update={"placeholder_token": PLACEHOLDER})
    tokenizer.add_tokens([image.placeholder_token], special_tokens=True)
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    images = SoloMonolithImageProcessor(image=image.model_dump(mode="json"))
    return SoloMonolithProcessor(images, tokenizer, template, **processor_config(image))


def _fuyu_inputs(side: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Fuyu takes pixels ordered (y, x, channel)."""

    def inputs(processed: dict[str, Any]) -> dict[str, Any]:
        found = {name: value for name, value in processed.items() if name != "patches_grid"}
        if "pixel_values" in found:
            pixels = found["pixel_values"].view(-1, 3, side, side).permute(0, 2, 3, 1)
            found["pixel_values"] = pixels.reshape(1, -1, side * side * 3)
        return found

    return inputs


def _native_model(folder: Path, plan: ExportPlan) -> Any:
    """Returns our PyTorch model with the tensors of a repository of another layout."""
    source = open_source(folder)
    try:
        source.config, source.tokenizer, source.definition = plan.config, plan.tokenizer, plan.definition
        native = make_plan(source, NATIVE, "float32")
        settings = config_json(native)
        del settings["model_type"]
        model = SoloMonolithForCausalLM(SoloMonolithConfig(**settings))
        tensors = {name: torch.from_numpy(np.ascontiguousarray(native.value(name))) for name in native.rules}
    finally:
        source.close()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    if unexpected or set(missing) - set(getattr(model, "all_tied_weights_keys", {})):
        raise ValueError(f"tensors do not fit {type(model).__name__}: missing {missing}, unexpected {unexpected}")
    return model
