"""Describes values of a dataset in error messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def kind(value: Any) -> str:
    """Returns the kind of a JSON value with an article, for error messages."""
    if value is None:
        return "null"
    names = ((bool, "a truth value"), (str, "a string"), (int | float, "a number"), (Mapping, "a mapping"))
    found = next((name for type_, name in names if isinstance(value, type_)), None)
    return found or ("a list" if isinstance(value, list | tuple) else type(value).__name__)


def shown(value: Any) -> str:
    """Returns a value as text for an error message. Containers, which may be large or deep, are shown by kind."""
    return repr(value)[:60] if isinstance(value, str | int | float | bool | None) else kind(value)
