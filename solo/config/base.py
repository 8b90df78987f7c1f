"""What every part of the schema is made of."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict


class ConfigError(ValueError):
    """A config that cannot be used; the message says what is wrong, where, and what was expected."""


class Section(BaseModel):
    """Base of every section: immutable, unknown keys refused, no silent change of type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def nearest(name: str, known: Sequence[str]) -> str:
    """A suggestion to end an error message with, or nothing where no known name is close."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""
