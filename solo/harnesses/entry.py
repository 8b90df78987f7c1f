"""Entry points that harnesses load. Only the harnesses import this module."""

from __future__ import annotations

from typing import Any


def lmms_eval_model() -> Any:
    """Returns the `ModelManifest` under which lmms-eval finds `--model solo`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("solo", chat_class_path="solo.harnesses.lmms.Solo")
