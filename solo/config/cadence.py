"""How often an evaluator runs."""

from __future__ import annotations

from pydantic import Field

from solo.config.base import Section, decides

_EVERY = "run this evaluator after every N-th step and at the end; default: evaluation.every_steps"


class Evaluator(Section):
    """Base class of the sections of evaluators."""

    keys_decide = ("evaluation",)

    every_steps: int | None = Field(None, ge=1, description=_EVERY, json_schema_extra=decides("nothing"))
