"""The model sizes of a ladder, each given by its width."""

from __future__ import annotations

from typing import Any

from solo.config import Config, ConfigError
from solo.scaling.sweep.spec import Ladder

# The keys of the model section that a ladder sets; the width of experts is in model.moe.
SIZE_KEYS = ("width", "layers", "heads", "kv_heads", "head_dim", "ffn_width")


def sizes(ladder: Ladder | None, base: Config) -> list[dict[str, Any]]:
    """Returns the model's keys and values for each width, or one empty mapping if there is no ladder."""
    if ladder is None:
        return [{}]
    return [size(ladder, base, width) for width in ladder.width]


def size(ladder: Ladder, base: Config, width: int) -> dict[str, Any]:
    """Returns dotted keys and values for a width, which need not be one of the ladder's.

    Raises:
        ConfigError: the width is not a multiple of the head dimension.
    """
    model = base.model
    head_dim = ladder.head_dim or model.dim_per_head
    heads, left = divmod(width, head_dim)
    if left or not heads:
        raise ConfigError(f"ladder: width {width} is not a multiple of head_dim {head_dim}")
    wanted = max(1, heads * model.kv_heads // model.heads)
    found = {
        "model.width": width,
        "model.layers": layers_of(ladder, base, width),
        "model.heads": heads,
        "model.kv_heads": max(count for count in range(1, wanted + 1) if heads % count == 0),
        "model.head_dim": head_dim,
        "model.ffn_width": _rounded(width * model.ffn_width / model.width, ladder.ffn_multiple),
    }
    if model.moe.width is not None:
        scaled = width * model.moe.width / model.width
        found["model.moe.width"] = _rounded(scaled, ladder.ffn_multiple)
    return found


def layers_of(ladder: Ladder, base: Config, width: int) -> int:
    """Returns the number of layers for a width, interpolated in logarithms between the listed widths."""
    if ladder.aspect is not None:
        return max(1, round(width / ladder.aspect))
    if not isinstance(ladder.layers, tuple):
        return ladder.layers or base.model.layers
    if width in ladder.width:
        return ladder.layers[ladder.width.index(width)]
    import numpy as np

    order = np.argsort(ladder.width)
    widths, layers = np.log(np.array(ladder.width))[order], np.log(np.array(ladder.layers))[order]
    return max(1, round(float(np.exp(np.interp(np.log(width), widths, layers)))))


def _rounded(value: float, multiple: int) -> int:
    return max(multiple, round(value / multiple) * multiple)
