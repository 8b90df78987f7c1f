"""Which run is which: a hash of everything in its config that its result depends on."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from solo.config import Config

_LETTERS = 12
# Where and how a run is computed and kept, not what comes out of it.
_FREE: tuple[tuple[str, ...], ...] = (
    ("name",),
    ("folder",),
    ("mesh",),
    ("checkpoint",),
    ("data", "folder"),
    ("data", "worker_processes"),
    ("data", "prefetch_batches"),
    ("data", "records_per_shard"),
    ("evaluation", "report_examples"),
    ("model", "remat"),
    ("model", "scan_layers"),
    ("model", "attention_implementation"),
    ("model", "attention_block"),
)


def identity(config: Config) -> dict[str, Any]:
    """The part of a config that its result depends on."""
    found = config.model_dump(mode="json")
    for path in _FREE:
        node = found
        for key in path[:-1]:
            node = node[key]
        node.pop(path[-1], None)
    return found


def run_id(config: Config) -> str:
    """Twelve hexadecimal digits of the sha256 of `identity`, written canonically."""
    return digest(identity(config))


def digest(value: Any) -> str:
    """Of anything that JSON can hold; the order of keys does not count."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_LETTERS]
