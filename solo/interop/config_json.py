"""Reads config.json, and checks the types of the values that the layouts use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from solo.files import lfs_pointer
from solo.interop.layout import LayoutError


class _Object(BaseModel):
    """A JSON object whose declared keys may be absent or null. It may have other keys."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _Rope(_Object):
    rope_type: str | None = None
    type: str | None = None
    factor: PositiveFloat | None = None
    rope_theta: PositiveFloat | None = None
    low_freq_factor: PositiveFloat | None = None
    high_freq_factor: PositiveFloat | None = None
    original_max_position_embeddings: PositiveInt | None = None
    partial_rotary_factor: PositiveFloat | None = None
    sliding_attention: _Rope | None = None
    full_attention: _Rope | None = None


class _LayerConfig(_Object):
    """What config.json says about a single layer."""

    num_key_value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None


class _Kind(_Object):
    """The keys that identify the layout."""

    model_type: str | None = None
    architectures: list[str] | None = None
    llm_config: _Kind | None = None


class _ConfigJson(_Kind):
    """The keys of all layouts. A nested language or vision config is checked in the same way."""

    text_config: _ConfigJson | None = None
    llm_config: _ConfigJson | None = None
    vision_config: _ConfigJson | None = None

    vocab_size: PositiveInt | None = None
    appended_rows: int | None = Field(None, ge=0)
    hidden_size: PositiveInt | None = None
    intermediate_size: PositiveInt | None = None
    num_hidden_layers: int | None = Field(None, ge=0)  # 0 in the vision_config of Mono-InternVL
    num_attention_heads: PositiveInt | None = None
    num_key_value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    rms_norm_eps: PositiveFloat | None = None
    layer_norm_eps: PositiveFloat | None = None
    tie_word_embeddings: bool | None = None
    qk_layernorm: bool | None = None
    sliding_window: int | None = None
    pad_token_id: int | None = None

    max_position_embeddings: PositiveInt | None = None
    original_max_position_embeddings: PositiveInt | None = None
    rope_theta: PositiveFloat | None = None
    partial_rotary_factor: PositiveFloat | None = None
    rope_parameters: _Rope | None = None
    rope_scaling: _Rope | None = None

    patch_size: PositiveInt | None = None
    vision_patch_size: PositiveInt | None = None
    vision_patch_token_id: int | None = None
    image_token_id: int | None = None
    image_token_index: int | None = None
    img_context_token_id: int | None = None
    image_size: PositiveInt | None = None
    force_image_size: PositiveInt | None = None
    downsample_ratio: PositiveFloat | None = None
    min_dynamic_patch: PositiveInt | None = None
    max_dynamic_patch: PositiveInt | None = None
    ps_version: str | None = None
    template: str | None = None
    visual_attention_experts: str | None = None
    mm_hidden_size: PositiveInt | None = None
    patch_stride: PositiveInt | None = None
    dense_stride: PositiveInt | None = None
    moe_part: str | None = None

    layer_types: list[str] | None = None
    per_layer_config: dict[str, _LayerConfig] | None = None
    global_head_dim: PositiveInt | None = None
    num_global_key_value_heads: PositiveInt | None = None
    attention_k_eq_v: bool | None = None
    final_logit_softcapping: PositiveFloat | None = None
    use_bidirectional_attention: str | None = None
    mm_embed_dim: PositiveInt | None = None
    mm_posemb_size: PositiveInt | None = None
    output_proj_dims: PositiveInt | None = None
    pooling_kernel_size: PositiveInt | None = None
    num_soft_tokens: PositiveInt | None = None

    llm_hidden_size: PositiveInt | None = None
    rope_theta_hw: PositiveFloat | None = None
    rope_theta_vision: PositiveFloat | None = None
    min_pixels: PositiveInt | None = None
    max_pixels: PositiveInt | None = None
    num_experts: int | None = Field(None, ge=0)


def is_repository(folder: Path) -> bool:
    """Returns whether a folder is a repository in Hugging Face form, or was meant to be one, and is not a run."""
    named = ("config.json", "adapter_config.json")
    return any((folder / name).is_file() for name in named) and not (folder / "config.yaml").is_file()


def adapter_message(folder: Path) -> str | None:
    """Returns a message if a folder holds an adapter of PEFT that was not merged, else None."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        return None
    try:
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    return (
        f"{folder} has an adapter of PEFT ({path.name}) for the model {base or 'it was trained on'}, which is not"
        " merged into the model's weights; merge it (merge_and_unload of peft), save the model, and name that folder"
    )


def read_config_json(folder: str | Path) -> dict[str, Any]:
    """Returns a repository's config.json. Raises LayoutError if it is missing or not a JSON object."""
    folder = Path(folder)
    path = folder / "config.json"
    if not folder.exists():
        raise LayoutError(f"{folder} does not exist; download the repository and name its folder")
    if not path.is_file() and (adapter := adapter_message(folder)):
        raise LayoutError(adapter)
    try:
        if pointer := lfs_pointer(path):
            raise LayoutError(pointer)
        found = json.loads(path.read_text(encoding="utf-8"))
    except LayoutError:
        raise
    except OSError as error:
        raise LayoutError(f"{folder} is not a model repository: cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise LayoutError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise LayoutError(f"{path} is not a JSON object")
    return found


def read_json_object(file: Path) -> dict[str, Any]:
    """Returns a JSON object of a repository; empty if there is no such file. Raises LayoutError if it is not one."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LayoutError(f"{file} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise LayoutError(f"{file} is not a JSON object")
    return found


def read_image_processor(folder: Path) -> dict[str, Any]:
    """Returns the settings of a repository's image processor, or {} if it has none.

    transformers writes them to processor_config.json since version 5; before, to preprocessor_config.json.

    Raises:
        LayoutError: a file is not a JSON object.
    """
    settings = read_json_object(folder / "processor_config.json").get("image_processor")
    if isinstance(settings, dict):
        return settings
    found = read_json_object(folder / "preprocessor_config.json")
    settings = found.get("image_processor", found)
    return settings if isinstance(settings, dict) else {}


def check_kind(config_json: Mapping[str, Any], origin: str) -> None:
    """Raises LayoutError if a key that identifies the layout has a value of the wrong type. `origin` names the file."""
    _check(_Kind, config_json, origin)


def check_values(config_json: Mapping[str, Any], origin: str) -> None:
    """Raises LayoutError if a key that a layout reads has an invalid type, or must be positive and is not."""
    _check(_ConfigJson, config_json, origin)


def _check(schema: type[_Object], config_json: Mapping[str, Any], origin: str) -> None:
    try:
        schema.model_validate(config_json)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, each['loc']))}: {each['msg']}, found {each['input']!r}" for each in error.errors()
        ]
        raise LayoutError("\n".join([f"{origin} has invalid values:", *lines])) from None
