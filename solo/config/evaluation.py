"""Sections about evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from solo.config.base import Section, decides


class TaskConfig(Section):
    """One evaluation by generation: the last assistant turn of each conversation is the reference answer."""

    keys_decide = ("evaluation",)

    source: str
    metric: Literal["exact_match", "character_error_rate"] = "exact_match"
    limit: int | None = Field(None, ge=1)
    max_new_tokens: int = Field(16, ge=1)
    batch_rows: int = Field(64, ge=1)
    blank_images: bool = Field(False, description="also answer with blank images: multi-modal gain (MMStar)")


class HeldOutConfig(Section):
    """The mean cross-entropy of a held-out source, packed into rows like those of the last stage."""

    keys_decide = ("evaluation",)

    source: str
    batches: int | None = Field(None, ge=1, description="batches of batch_rows rows; default: the whole source once")
    batch_rows: int = Field(8, ge=1)


class EvaluationConfig(Section):
    """The evaluations at the end of a run, and the number of examples in the report."""

    keys_decide = ("evaluation",)

    tasks: dict[str, TaskConfig] = Field(default_factory=dict)
    losses: dict[str, HeldOutConfig] = Field(default_factory=dict)
    report_examples: int = Field(
        12, ge=0, description="examples of each task shown in report.html", json_schema_extra=decides("nothing")
    )
