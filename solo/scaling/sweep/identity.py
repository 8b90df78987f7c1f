"""Identifies a run of a sweep by the keys of its config that affect its results."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from solo.config import Config, identity

_LETTERS = 12


def run_id(config: Config) -> str:
    """Returns twelve hexadecimal digits of the SHA-256 of the keys that affect a run's evaluation results.

    Keys that only say where or how to compute are left out: mesh, kernels, compiler options, checkpoints, folders.
    """
    return digest(identity(config, "evaluation"))


def digest(value: Any) -> str:
    """Returns twelve such digits for any JSON value. The order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_LETTERS]
