"""The base class of every section of the schema, and its errors."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

# What a key can affect. `solo.config.compare` uses this to compare configs.
#   model       the function that the network computes for given weights
#   data        the contents of every batch: the records, their order, their tokens and patches
#   result      the trained weights, in any other way
#   evaluation  the results of evaluators
#   nothing     only where and how fast a run is computed, how much memory it uses, and which files it keeps
Decides = Literal["model", "data", "result", "evaluation", "nothing"]


class ConfigError(ValueError):
    """Raised for an invalid config. The message says what is wrong, where, and what was expected."""


class Section(BaseModel):
    """Base class of all sections: immutable, strict about types, and without unknown keys or non-finite numbers.

    Every section sets `keys_decide` to what its keys affect. A key that differs from the rest of its section overrides
    it: `Field(..., json_schema_extra=decides("nothing"))`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    keys_decide: ClassVar[tuple[Decides, ...]] = ()


def decides(*what: Decides) -> dict[str, Any]:
    """Returns the field metadata that overrides `keys_decide` of the section for one key."""
    return {"decides": list(what)}


def nearest(name: str, known: Sequence[str]) -> str:
    """Returns a suggestion to append to an error message, or an empty string if no known name is similar."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""
