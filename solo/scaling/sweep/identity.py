"""Identifies a run of a sweep by the keys of its config that affect its results."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from solo.config import Config, identity

_LETTERS = 12


def run_id(config: Config) -> str:
    """Returns twelve hexadecimal digits of the sha256 of the keys that decide what a run's evaluation measures.

    Keys about where and how a run is computed do not count: mesh, kernels, compiler options, checkpoints, folders.
    """
    return digest(identity(config, "evaluation"))


def digest(value: Any) -> str:
    """Returns the same digits of a JSON value; the order of keys does not count."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_LETTERS]
