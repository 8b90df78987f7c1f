"""Rotary positions in config.json: `rope_parameters` of transformers 5, `rope_theta` and `rope_scaling` before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solo.config import ModelConfig
from solo.interop.layout import LayoutError

# The default of transformers.
_THETA = 10_000.0


def read_rope(config: Mapping[str, Any], *, theta: float = _THETA, fraction: float = 1.0) -> dict[str, Any]:
    """Returns `rope_theta`, `rope_fraction` and `rope_scaling` of our model section.

    Args:
        config: config.json of the language model.
        theta: default base.
        fraction: default share of the head dimensions that are rotated.

    Raises:
        LayoutError: the scaling is of a kind that we do not have, differs by layer type, or lacks a number.
    """
    new = config.get("rope_parameters") or {}
    old = config.get("rope_scaling") or {}
    merged = {**config, **old, **new}
    if any(isinstance(value, Mapping) for value in new.values()):
        raise LayoutError(f"rope_parameters differ by layer type ({', '.join(new)}); our layers are all alike")
    kind = merged.get("rope_type") or merged.get("type") or "default"
    return {
        "rope_theta": float(merged.get("rope_theta") or theta),
        "rope_fraction": float(merged.get("partial_rotary_factor") or fraction),
        "rope_scaling": None if kind == "default" else _scaling(kind, merged),
    }


def _scaling(kind: str, merged: Mapping[str, Any]) -> dict[str, Any]:
    names = {"factor": "factor", "trained_length": "max_position_embeddings"}
    if kind == "llama3":
        names["trained_length"] = "original_max_position_embeddings"
        names |= {"low_frequency_factor": "low_freq_factor", "high_frequency_factor": "high_freq_factor"}
    elif kind not in ("linear", "dynamic"):
        raise LayoutError(f"rotary positions are scaled by {kind!r}; we have linear, dynamic and llama3")
    if missing := [theirs for theirs in names.values() if merged.get(theirs) is None]:
        raise LayoutError(f"rotary positions are scaled by {kind!r}, but {', '.join(missing)} is missing")
    numbers = {ours: merged[theirs] for ours, theirs in names.items()}
    return {"kind": kind, **{name: int(n) if name == "trained_length" else float(n) for name, n in numbers.items()}}


def write_rope(model: ModelConfig, max_positions: int) -> dict[str, Any]:
    """Returns the older keys, which transformers 4 and 5 both read, and `max_position_embeddings`.

    `max_positions` is the family's usual value. The trained length of the scaling takes precedence over it.
    """
    found: dict[str, Any] = {"max_position_embeddings": max_positions, "rope_theta": model.rope_theta}
    if model.rope_fraction != 1:
        found["partial_rotary_factor"] = model.rope_fraction
    if scaling := model.rope_scaling:
        found["rope_scaling"] = {"rope_type": scaling.kind, "type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            found["rope_scaling"] |= {
                "low_freq_factor": scaling.low_frequency_factor,
                "high_freq_factor": scaling.high_frequency_factor,
                "original_max_position_embeddings": scaling.trained_length,
            }
        else:
            found["max_position_embeddings"] = scaling.trained_length
    return found
