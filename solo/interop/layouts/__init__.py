"""All layouts by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from solo.config import nearest
from solo.interop.config_json import check_kind, check_values
from solo.interop.layout import Layout, LayoutError
from solo.interop.layouts.evev2 import EVEV2
from solo.interop.layouts.fuyu import FUYU
from solo.interop.layouts.gemma4_unified import GEMMA4_UNIFIED
from solo.interop.layouts.internlm2 import INTERNLM2
from solo.interop.layouts.llama import LLAMA, MISTRAL, QWEN2, QWEN3, LlamaLike
from solo.interop.layouts.mono_internvl import MONO_INTERNVL
from solo.interop.layouts.native import NATIVE
from solo.interop.layouts.neo import MODEL_TYPE as NEO_TYPE
from solo.interop.layouts.neo import NEO, NEO_UNIFY
from solo.interop.layouts.solo import SAIL, SOLO

LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout
    for layout in (
        *(NATIVE, SOLO, SAIL, MONO_INTERNVL, EVEV2, FUYU, GEMMA4_UNIFIED, NEO, NEO_UNIFY),
        *(MISTRAL, LLAMA, QWEN2, QWEN3, INTERNLM2),
    )
}


def layout_named(name: str) -> Layout:
    """Returns a layout. Raises LayoutError for an unknown name."""
    if name not in LAYOUTS:
        raise LayoutError(f"unknown layout {name!r}{nearest(name, list(LAYOUTS))}; known are {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def recognise(
    config_json: Mapping[str, Any], origin: str, tensor_names: Callable[[], Collection[str]] = tuple
) -> Layout:
    """Returns the layout of a repository with this config.json.

    Args:
        config_json: its content.
        origin: names the file, for messages.
        tensor_names: returns the names of the repository's tensors. Called if config.json does not name the layout.

    Raises:
        LayoutError: the layout is unknown, or values that layouts read are invalid.
    """
    check_kind(config_json, origin)
    found = next((layout for layout in LAYOUTS.values() if layout.recognises(config_json)), None)
    if found is None:
        names = tensor_names()
        found = next((layout for layout in LAYOUTS.values() if layout.recognises_tensors(names)), None)
    if found is not None:
        check_values(found.completed(config_json, ()), origin)
        _check_weights_are_plain(config_json, origin)
        return found
    kind = config_json.get("model_type")
    if kind == NEO_TYPE:
        raise LayoutError(
            f"{origin} is of a NEO, whose forms are told apart by their tensors, and there is neither"
            " self_attn.q_proj_hw (NEO) nor self_attn.q_norm_hw (NEO-unify)"
        )
    architectures = ", ".join(config_json.get("architectures") or ["no class"])
    text = LAYOUTS.get(kind or "")
    if isinstance(text, LlamaLike) and "vision_patch_size" not in config_json:
        raise LayoutError(
            f"{origin} is of a {architectures}, which has no head for the next token; solo reads {text.architecture}:"
            " open it with AutoModelForCausalLM and save it again, if its head was trained"
        )
    raise LayoutError(f"{origin} is of model_type {kind!r} ({architectures}); solo reads {', '.join(LAYOUTS)}")


def _check_weights_are_plain(config_json: Mapping[str, Any], origin: str) -> None:
    """Raises LayoutError for quantised weights: what they stand for depends on scales, which may not be stored."""
    found = config_json.get("quantization_config")
    if found is not None:
        method = found.get("quant_method", "unknown") if isinstance(found, Mapping) else found
        raise LayoutError(
            f"{origin} has quantization_config ({method}): the weights are quantised. Save the dequantised model"
            " (`dequantize()` of transformers), or delete the key if the stored weights are the values themselves"
        )
