"""Writes the files of an exported repository other than its weights and its model card."""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import tokenizers

from solo.config import Config, ImageConfig
from solo.data.images.delimiters import image_tokens
from solo.data.text import Tokenizer
from solo.data.text.templates import make_template
from solo.inference.trained import longest_sequence
from solo.interop.chat_template import chat_template
from solo.interop.description import APPENDED_ROWS
from solo.interop.export_plan import ExportPlan
from solo.interop.sentencepiece_json import has_dummy_prefix, tokenizer_json

PROCESSOR_CODE = ("image_processing_solo.py", "processing_solo.py", "versions_solo.py")
REMOTE_CODE = (
    "configuration_solo.py",
    "image_processing_solo.py",
    "layers_solo.py",
    "modeling_solo.py",
    "processing_solo.py",
    "spans_solo.py",
    "versions_solo.py",
)
# Represents an image in chat templates if the vocabulary has no placeholder token.
PLACEHOLDER = "<image>"
_AUTO_MODEL = {
    "AutoConfig": "configuration_solo.SoloMonolithConfig",
    "AutoModel": "modeling_solo.SoloMonolithModel",
    "AutoModelForCausalLM": "modeling_solo.SoloMonolithForCausalLM",
    "AutoModelForImageTextToText": "modeling_solo.SoloMonolithForCausalLM",
    "AutoModelForMultimodalLM": "modeling_solo.SoloMonolithForCausalLM",
}
_AUTO_PROCESSOR = {
    "AutoImageProcessor": "image_processing_solo.SoloMonolithImageProcessor",
    "AutoProcessor": "processing_solo.SoloMonolithProcessor",
}


def write_files(folder: Path, plan: ExportPlan) -> None:
    """Writes config.json and the files of the tokenizer, the processor and generation. Raises OSError."""
    config = config_json(plan)
    if plan.tokenizer is not None:
        _write_tokenizer(folder, plan, plan.tokenizer)
        _write_json(folder / "generation_config.json", _generation(plan, plan.tokenizer))
    code: tuple[str, ...] = ()
    if plan.layout.images_form is not None and plan.tokenizer is not None:
        _write_processor(folder, plan.config, plan.layout.images_form)
        code = PROCESSOR_CODE
    if plan.layout.name == "native":
        config |= {"auto_map": _AUTO_MODEL}
        code = REMOTE_CODE
    for name in code:
        with resources.as_file(resources.files("solo.interop.remote") / name) as file:
            shutil.copyfile(file, folder / name)
    _write_json(folder / "config.json", config)


def config_json(plan: ExportPlan) -> dict[str, Any]:
    """Returns the layout's config.json with the token ids and lengths that the layout does not know."""
    found = plan.layout.config_json(plan.config, plan.definition.vocab_size) | {"dtype": plan.dtype}
    if plan.tokenizer is None:
        return found
    special = plan.tokenizer.special
    found |= {"bos_token_id": special.bos, "eos_token_id": special.eos, "pad_token_id": special.pad}
    placeholder = plan.config.image.placeholder_token
    if plan.layout.name != "native" and (appended := plan.config.model.appended_rows):
        found[APPENDED_ROWS] = appended
    if plan.layout.names_placeholder and placeholder is not None:
        found["image_token_id"] = plan.tokenizer.find(placeholder)
    if plan.layout.name == "native":
        tokens = image_tokens(plan.config.image, plan.tokenizer)
        found |= {"image_begin_id": tokens.begin, "image_end_id": tokens.end, "image_row_id": tokens.row}
        found["max_position_embeddings"] = longest_sequence(plan.config)
    return found


def _write_tokenizer(folder: Path, plan: ExportPlan, tokenizer: Tokenizer) -> None:
    """Writes `tokenizer.json`, which AutoTokenizer reads, and `tokenizer.model` if that is the tokenizer's format."""
    tokenizer.save(folder)
    model, text = folder / "tokenizer.model", folder / "tokenizer.json"
    special, dummy_prefix = tokenizer.special, False
    if model.is_file():
        data = model.read_bytes()
        dummy_prefix = has_dummy_prefix(data)
        text.write_text(tokenizer_json(data, add_bos=special.bos is not None), encoding="utf-8")
    opened = tokenizers.Tokenizer.from_file(str(text))
    ids = {"bos_token": special.bos, "eos_token": special.eos, "pad_token": special.pad}
    found = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: None if token is None else opened.id_to_token(token) for name, token in ids.items()},
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "model_input_names": ["input_ids", "attention_mask"],
    }
    _write_json(folder / "tokenizer_config.json", found)
    image = plan.config.image.placeholder_token or PLACEHOLDER
    template = chat_template(plan.config.sequence, image, special.bos is not None, dummy_prefix)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _generation(plan: ExportPlan, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns settings for greedy decoding that stops where ours stops and never produces other special tokens."""
    special, stops = tokenizer.special, set(make_template(tokenizer, plan.config.sequence).stops)
    unused = range(tokenizer.vocab_size, plan.definition.vocab_size)
    return {
        "bos_token_id": special.bos,
        "eos_token_id": sorted(stops),
        "pad_token_id": special.pad,
        "do_sample": False,
        "suppress_tokens": sorted((tokenizer.special_ids | set(unused)) - stops),
    }


def _write_processor(folder: Path, config: Config, form: str) -> None:
    image = config.image
    if image.placeholder_token is None:
        image = image.model_copy(update={"placeholder_token": PLACEHOLDER})
    classes = {"processor_class": "SoloMonolithProcessor", "auto_map": _AUTO_PROCESSOR}
    images = {
        "image_processor_type": "SoloMonolithImageProcessor",
        "image": image.model_dump(mode="json"),
        "form": form,
        **({"inner_size": config.model.patch_embed.inner_size} if form == "grid_hw" else {}),
        **classes,
    }
    _write_json(folder / "preprocessor_config.json", images)
    _write_json(folder / "processor_config.json", {**classes, **processor_config(image)})


def processor_config(image: ImageConfig) -> dict[str, Any]:
    """Returns the image tokens as arguments of `SoloMonolithProcessor`."""
    return {
        "image_token": image.placeholder_token,
        "image_begin_token": image.begin_token,
        "image_end_token": image.end_token,
        "image_row_token": None if image.geometry == "tiles" else image.row_token,
        "row_token_after_last": image.row_token_after_last,
    }


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
