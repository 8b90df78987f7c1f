"""A small sweep for tests, and the environment of a process that trains its runs."""

import os
from pathlib import Path
from typing import Any

import yaml

from solo.scaling.sweep.spec import SweepSpec, load_spec
from tests.compiler import QUICK

# One device, because two rows cannot be sharded over eight.
ENVIRONMENT = {**os.environ, "XLA_FLAGS": QUICK}
MODEL = {
    "width": 16,
    "layers": 1,
    "heads": 2,
    "kv_heads": 1,
    "head_dim": 8,
    "ffn_width": 32,
    "attention_implementation": "dense",
}
ROW_STATISTICS = {"patches": 100, "text": 100, "targets": 80, "attended_pairs": 12000}


def write_sweep(folder: Path, base: dict[str, Any] | None = None, **spec: Any) -> Path:
    """Writes a sweep's file and its base; `base` and `spec` replace sections. Returns the path of the sweep's file."""
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = {"learning_rate": 1e-2, "schedule": "wsd", "warmup_steps": 1}
    stage = {"name": "only", "mixture": {"scenes": 1.0}, "steps": 10, "batch_rows": 2, "row_slots": 128}
    config = {
        "name": "base",
        "data": {
            "folder": str(folder / "data"),
            "tokenizer": {"vocab_size": 300},
            "worker_processes": 0,
            "sources": {
                "scenes": {"reader": "scenes", "limit": 300},
                "held_out": {"reader": "scenes", "options": {"split": "held_out"}, "limit": 20},
            },
        },
        "image": {"patch_size": 8, "max_side": 64},
        "model": MODEL,
        "stages": [{**stage, "optimizer": optimizer}],
        "evaluation": {"losses": {"text": {"source": "held_out", "batch_rows": 2}}},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump({**config, **(base or {})}))
    whole = {"name": "tiny", "base": "base.yaml", "folder": str(folder / "sweeps"), **spec}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(whole))
    return path


def planned(folder: Path, base: dict[str, Any] | None = None, **spec: Any) -> SweepSpec:
    """Returns a spec that is planned without data."""
    return load_spec(write_sweep(folder, base, **{"row_statistics": ROW_STATISTICS, **spec}))
