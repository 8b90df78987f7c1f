"""Renamed config keys and values. An old name raises an error that gives the new name."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch

# Old key -> its replacement. `*` matches the index of any stage.
RENAMED_KEYS: Mapping[str, str] = {
    "start_from": "init_from",
    "data.planning_window": "data.packing_window",
    "data.tokenizer.add_pieces": "data.tokenizer.add_tokens",
    "image.attention": "image.mask",
    "model.attention": "model.attention_implementation",
    "model.learned_experts": "model.moe",
    "sequence.window": "sequence.sliding_window (which counts the slot itself: add 1)",
    "stages.*.max_tiles": "stages.*.image.max_tiles",
    "stages.*.loss.chunk": "stages.*.loss.chunk_size (of a device, not of all)",
    "stages.*.optimizer.decayed": "stages.*.optimizer.weight_decay_mask",
}

# Renamed keys of other files: sweeps, and designs for `solo fit simulate`.
_OTHER_FILES: Mapping[str, Mapping[str, str]] = {
    "sweep": {
        "traffic": "row_statistics (and its entry pairs is named attended_pairs)",
        "row_statistics.pairs": "row_statistics.attended_pairs",
    },
    "design": {"trunk_noise": "stable_run_noise"},
}

# (Key, old value) -> its replacement.
RENAMED_VALUES: Mapping[tuple[str, str], str] = {
    ("model.experts.ffn", "learned"): "moe",
    ("model.remat", "everything"): "full",
    ("stages.*.mixture_by", "positions"): "tokens",
}


def new_key(key: str, what: str = "config") -> str | None:
    """Returns the replacement of a dotted key of a config, sweep or design, or None if it was not renamed."""
    renamed = RENAMED_KEYS if what == "config" else _OTHER_FILES.get(what, {})
    return next((_with_index(new, key) for old, new in renamed.items() if fnmatch(key, old)), None)


def new_value(key: str, value: object) -> str | None:
    """Returns the replacement of a value of a key, or None if it was not renamed."""
    return next((new for (at, old), new in RENAMED_VALUES.items() if fnmatch(key, at) and value == old), None)


def _with_index(new: str, key: str) -> str:
    """Replaces the `*` in a stage's new key with the stage index of the old key."""
    return new.replace("stages.*", ".".join(key.split(".")[:2]), 1)
