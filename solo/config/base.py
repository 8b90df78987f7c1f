"""The base class of every section of the schema, and its errors."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

# The things that a key can decide. `solo.config.compare` compares and hashes configs by them.
#   model       the function that the network computes, given its weights
#   data        the contents of every batch: records, their order, their tokens and patches
#   result      the trained weights, in any other way
#   evaluation  the measurements after training
#   nothing     where, how fast and in how much memory a run is computed, and which files are kept
Decides = Literal["model", "data", "result", "evaluation", "nothing"]


class ConfigError(ValueError):
    """A config that cannot be used; the message says what is wrong, where, and what was expected."""


class Section(BaseModel):
    """Base of every section: immutable, rejects unknown keys and infinite numbers, converts no value's type.

    Every section sets `keys_decide` to what its keys decide. A key that differs from the others declares it:
    `Field(..., json_schema_extra=decides("nothing"))`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    keys_decide: ClassVar[tuple[Decides, ...]] = ()


def decides(*what: Decides) -> dict[str, Any]:
    """Returns the metadata of a key that does not decide the same as the other keys of its section."""
    return {"decides": list(what)}


def nearest(name: str, known: Sequence[str]) -> str:
    """Returns a suggestion to end an error message with, or an empty string if no known name is close."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""
