"""solo: pretraining of monolithic vision-language models in JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from solo.inference.monolith import Monolith
    from solo.loading import load
    from solo.pipeline import train

__version__ = "0.1.0"
__all__ = ["Monolith", "__version__", "load", "train"]

_HOMES = {"Monolith": "solo.inference.monolith", "load": "solo.loading", "train": "solo.pipeline"}


def __getattr__(name: str) -> Any:
    """Import on first use: `import solo` alone, as the data workers do it, does not import jax."""
    if name not in _HOMES:
        raise AttributeError(f"module 'solo' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
