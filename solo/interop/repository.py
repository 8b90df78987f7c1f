"""The files of an exported repository besides its weights and its card."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import tokenizers

from solo.config import ConfigError, ImageConfig
from solo.data.images.delimiters import image_tokens
from solo.data.text import Tokenizer
from solo.data.text.templates import Template, make_template
from solo.interop.chat_template import chat_template
from solo.interop.plan import Plan
from solo.interop.sentencepiece_json import has_dummy_prefix, tokenizer_json
from solo.interop.source import json_text

REMOTE_CODE = (
    "configuration_solo.py",
    "image_processing_solo.py",
    "layers_solo.py",
    "modeling_solo.py",
    "processing_solo.py",
    "spans_solo.py",
)
# What stands for an image in a chat template where the vocabulary has no token for it.
PLACEHOLDER = "<image>"
_AUTO_MODEL = {
    "AutoConfig": "configuration_solo.SoloMonolithConfig",
    "AutoModel": "modeling_solo.SoloMonolithModel",
    "AutoModelForCausalLM": "modeling_solo.SoloMonolithForCausalLM",
    "AutoModelForImageTextToText": "modeling_solo.SoloMonolithForCausalLM",
}
_AUTO_PROCESSOR = {
    "AutoImageProcessor": "image_processing_solo.SoloMonolithImageProcessor",
    "AutoProcessor": "processing_solo.SoloMonolithProcessor",
}


def write_files(folder: Path, plan: Plan) -> None:
    """Write config.json and all that the tokenizer, the processor and generation need. Raises OSError."""
    config = config_json(plan)
    if plan.tokenizer is not None:
        template = _template(plan)
        _write_tokenizer(folder, plan, plan.tokenizer)
        (folder / "generation_config.json").write_text(json_text(_generation(plan, plan.tokenizer, template)))
    if plan.layout.name == "native":
        config |= {"auto_map": _AUTO_MODEL}
        _write_processor(folder, plan)
        for name in REMOTE_CODE:
            with resources.as_file(resources.files("solo.interop.remote") / name) as file:
                shutil.copyfile(file, folder / name)
    (folder / "config.json").write_text(json_text(config))


def config_json(plan: Plan) -> dict[str, Any]:
    """The layout's, with what the tokenizer adds to it."""
    found = plan.layout.config_json(plan.config, plan.definition.vocab_size) | {"dtype": plan.dtype}
    if plan.tokenizer is None:
        return found
    special = plan.tokenizer.special
    found |= {"bos_token_id": special.bos, "eos_token_id": special.eos, "pad_token_id": special.pad}
    token = plan.config.image.placeholder_token
    if plan.layout.name in ("native", "fuyu") and token is not None:
        found["image_token_id"] = plan.tokenizer.find(token)
    if plan.layout.name == "native":
        tokens = image_tokens(plan.config.image, plan.tokenizer)
        found |= {"image_begin_id": tokens.begin, "image_end_id": tokens.end, "image_row_id": tokens.row}
        found["max_position_embeddings"] = _longest(plan)
    return found


def _longest(plan: Plan) -> int | None:
    """Slots of the longest row that was trained, or the length that the rotary positions were made for."""
    scaling = plan.config.model.rope_scaling
    rows = [
        stage.row_slots if stage.patch_slots is None else stage.patch_slots + (stage.text_slots or 0)
        for stage in plan.config.stages
    ]
    return max(rows) if rows else scaling.trained_length if scaling is not None else None


def _template(plan: Plan) -> Template:
    assert plan.tokenizer is not None
    return make_template(plan.tokenizer, plan.config.sequence)


def _write_tokenizer(folder: Path, plan: Plan, tokenizer: Tokenizer) -> None:
    """Both forms: `tokenizer.model` where that is what it is, and `tokenizer.json`, which AutoTokenizer reads."""
    tokenizer.save(folder)
    model, text = folder / "tokenizer.model", folder / "tokenizer.json"
    dummy_prefix = False
    if model.is_file():
        data = model.read_bytes()
        dummy_prefix = has_dummy_prefix(data)
        text.write_text(tokenizer_json(data, add_bos=tokenizer.special.bos is not None), encoding="utf-8")
    opened = tokenizers.Tokenizer.from_file(str(text))
    special = tokenizer.special
    names = {"bos_token": special.bos, "eos_token": special.eos, "pad_token": special.pad}
    found = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: None if token is None else opened.id_to_token(token) for name, token in names.items()},
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(json_text(found))
    image = plan.config.image.placeholder_token or PLACEHOLDER
    template = chat_template(plan.config.sequence, image, special.bos is not None, dummy_prefix)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _generation(plan: Plan, tokenizer: Tokenizer, template: Template) -> dict[str, Any]:
    """An answer ends where ours ends, and holds no special token."""
    special = tokenizer.special
    unused = range(tokenizer.vocab_size, plan.definition.vocab_size)
    return {
        "bos_token_id": special.bos,
        "eos_token_id": sorted(template.stops),
        "pad_token_id": special.pad,
        "do_sample": False,
        "suppress_tokens": sorted((tokenizer.special_ids | set(unused)) - set(template.stops)),
    }


def _write_processor(folder: Path, plan: Plan) -> None:
    image = plan.config.image
    if image.placeholder_token is None:
        raise ConfigError("image.placeholder_token is not set")
    classes = {"processor_class": "SoloMonolithProcessor", "auto_map": _AUTO_PROCESSOR}
    cutting = {
        "image_processor_type": "SoloMonolithImageProcessor",
        "image": image.model_dump(mode="json"),
        **classes,
    }
    (folder / "preprocessor_config.json").write_text(json_text(cutting))
    (folder / "processor_config.json").write_text(json_text({**classes, **processor_config(image)}))


def processor_config(image: ImageConfig) -> dict[str, Any]:
    """What the processor is told of the tokens of images."""
    return {
        "image_token": image.placeholder_token,
        "image_begin_token": image.begin_token,
        "image_end_token": image.end_token,
        "image_row_token": None if image.geometry == "tiles" else image.row_token,
        "row_token_after_last": image.row_token_after_last,
    }
