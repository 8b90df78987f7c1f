"""PyTorch models that say what an exported repository says. Imports torch and transformers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

# Before transformers is imported: nothing here asks the network for anything.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

from solo.data.images.delimiters import image_tokens
from solo.interop.layouts.native import NATIVE
from solo.interop.plan import Plan
from solo.interop.remote.configuration_solo import SoloMonolithConfig
from solo.interop.remote.image_processing_solo import SoloMonolithImageProcessor
from solo.interop.remote.modeling_solo import SoloMonolithForCausalLM
from solo.interop.remote.processing_solo import SoloMonolithProcessor
from solo.interop.repository import PLACEHOLDER, processor_config
from solo.interop.tensor_files import TensorReader

_TEXT_CLASSES = ("llama", "mistral", "qwen2", "qwen3")


class NoOracleError(Exception):
    """There is nothing that could compute a repository's logits; the message says why."""


class Oracle:
    """A model that is asked by conversations.

    name            what it is
    placeholder_id  what stands for a patch in its token ids; -1 where nothing does
    sees_images     whether it can be shown any
    """

    sees_images = True

    def __init__(self, name: str, model: Any, reader: Any, generation: Any):
        self.name, self.model = name, model.eval()
        self.placeholder_id = getattr(reader, "image_token_id", -1)
        self._reader, self._generation = reader, generation

    def logits(self, messages: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids [N] and float32 logits [N, V] of a conversation."""
        read = self._read(messages, open_turn=False)
        with torch.no_grad():
            found = self.model(**self._inputs(read)).logits[0].float().numpy()
        return read["input_ids"][0].numpy(), found

    def answer(self, messages: list[dict[str, Any]], max_new_tokens: int) -> list[int]:
        """The tokens of a greedy answer."""
        inputs = self._inputs(self._read(messages, open_turn=True))
        self._generation.max_new_tokens = max_new_tokens
        written = self.model.generate(**inputs, generation_config=self._generation)[0].tolist()
        # Of embeddings instead of ids, transformers returns what is new only.
        return written[inputs["input_ids"].shape[1] :] if "input_ids" in inputs else written

    def _read(self, messages: list[dict[str, Any]], open_turn: bool) -> dict[str, Any]:
        options = {"add_generation_prompt": open_turn, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        return dict(self._reader.apply_chat_template([messages], **options))

    def _inputs(self, read: dict[str, Any]) -> dict[str, Any]:
        """What the model takes, of what the processor made."""
        return read


class TextOracle(Oracle):
    """A language model: it is asked without images."""

    sees_images = False


class SoloOracle(Oracle):
    """A stock Mistral that is fed embeddings: all that SOLO adds to it (solo.md, section 6)."""

    def __init__(self, *arguments: Any, projection: torch.Tensor, token_id: int):
        super().__init__(*arguments)
        self._projection, self._token_id = projection, token_id

    def _inputs(self, read: dict[str, Any]) -> dict[str, Any]:
        table = self.model.get_input_embeddings().weight
        visual = read["input_ids"] == self.placeholder_id
        embeds = table[read["input_ids"].masked_fill(visual, 0)].detach()
        if visual.any():
            patches = read["pixel_values"] @ self._projection.T + table[self._token_id].detach()
            embeds = embeds.masked_scatter(visual[..., None], patches)
        return {"inputs_embeds": embeds, "attention_mask": read["attention_mask"]}


class FuyuOracle(Oracle):
    """transformers' Fuyu, whose pixels stand as (y, x, channel)."""

    def _inputs(self, read: dict[str, Any]) -> dict[str, Any]:
        found = {name: value for name, value in read.items() if name != "patches_grid"}
        if "pixel_values" in found:
            side = self.model.config.patch_size
            pixels = found["pixel_values"].view(-1, 3, side, side).permute(0, 2, 3, 1)
            found["pixel_values"] = pixels.reshape(1, -1, side * side * 3)
        return found


def make_oracle(folder: Path, plan: Plan) -> Oracle:
    """What can compute a repository's logits. Raises NoOracleError where nothing can."""
    if plan.tokenizer is None:
        raise NoOracleError("there is no tokenizer to ask the model with")
    layout = plan.layout.name
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    generation = transformers.GenerationConfig.from_pretrained(folder)
    if layout in _TEXT_CLASSES:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return TextOracle(f"transformers' {type(model).__name__}", model, tokenizer, generation)
    if not plan.layout.has_images:
        raise NoOracleError(f"transformers has no class for the layout {layout}")
    if layout == "native":
        model = SoloMonolithForCausalLM.from_pretrained(folder, dtype=torch.float32)
        reader = _processor(folder, plan, tokenizer, SoloMonolithImageProcessor.from_pretrained(folder))
        return Oracle("the PyTorch code beside the weights", model, reader, generation)
    reader = _processor(folder, plan, tokenizer)
    if layout == "fuyu":
        model = transformers.FuyuForCausalLM.from_pretrained(folder, dtype=torch.float32)
        name = f"transformers' FuyuForCausalLM around {type(model.model.language_model).__name__}"
        return FuyuOracle(name, model, reader, generation)
    if layout == "solo":
        return _solo(folder, plan, reader, generation)
    name = "our own PyTorch model on these tensors; nobody ships a class for them that current transformers can load"
    return Oracle(name, _twin(folder, plan, reader.image_token_id), reader, generation)


def _processor(folder: Path, plan: Plan, tokenizer: Any, cutting: Any = None) -> SoloMonolithProcessor:
    """Ours, also for repositories that come without one."""
    image = plan.config.image
    if image.placeholder_token is None:
        image = image.model_copy(update={"placeholder_token": PLACEHOLDER})
    tokenizer.add_tokens([image.placeholder_token], special_tokens=True)
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    cutting = cutting or SoloMonolithImageProcessor(image=image.model_dump(mode="json"))
    return SoloMonolithProcessor(cutting, tokenizer, template, **processor_config(image))


def _read(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors, float32."""
    with TensorReader(folder) as reader:
        return {name: torch.from_numpy(reader.read(name).astype(np.float32)) for name in reader}


def _solo(folder: Path, plan: Plan, reader: Any, generation: Any) -> Oracle:
    tensors = _read(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.sliding_window = plan.config.sequence.sliding_window  # SOLO's config.json has one less
    config._attn_implementation = "eager"
    model = transformers.MistralForCausalLM(config)
    projection = tensors.pop("model.embed_vision_patch.weight")
    _load(model, tensors)
    token_id = plan.config.model.patch_embed.token_id
    assert token_id is not None
    name = "transformers' MistralForCausalLM, fed embeddings"
    return SoloOracle(name, model, reader, generation, projection=projection, token_id=token_id)


def _twin(folder: Path, plan: Plan, placeholder_id: int) -> Any:
    """Our own PyTorch model, of a repository's tensors as its layout's rules read them."""
    stored = _read(folder)
    parts = {
        part: values
        for name, rule in plan.rules.items()
        for part, values in zip(rule.parts, rule.split(stored[name].numpy()), strict=True)
    }
    assert plan.tokenizer is not None
    tokens = image_tokens(plan.config.image, plan.tokenizer)
    # A row for the placeholder, which these layouts need not have.
    rows = max(plan.definition.vocab_size, placeholder_id + 1)
    settings = NATIVE.config_json(plan.config, rows)
    del settings["model_type"]
    config = SoloMonolithConfig(
        **settings,
        image_token_id=placeholder_id,
        image_begin_id=tokens.begin,
        image_end_id=tokens.end,
        image_row_id=tokens.row,
    )
    model = SoloMonolithForCausalLM(config)
    tensors = {rule.name: rule.join([parts[part] for part in rule.parts]) for rule in NATIVE.tensors(plan.definition)}
    for name in {"model.text_embed.weight", "head.weight"} & tensors.keys():
        tensors[name] = np.pad(tensors[name], ((0, rows - len(tensors[name])), (0, 0)))
    _load(model, {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in tensors.items()})
    return model


def _load(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    missing, left = model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    if left or set(missing) - tied:
        raise ValueError(f"tensors do not fit {type(model).__name__}: missing {missing}, left over {left}")
