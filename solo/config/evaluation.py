"""Sections about evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from solo.config.base import Section, decides
from solo.config.cadence import Evaluator
from solo.config.evaluators import IntegrationRateConfig, SamplesConfig


class TaskConfig(Evaluator):
    """One evaluation by generation: the last assistant turn of each conversation is the reference answer."""

    keys_decide = ("evaluation",)

    source: str
    metric: Literal["exact_match", "character_error_rate"] = "exact_match"
    limit: int | None = Field(None, ge=1)
    max_new_tokens: int = Field(16, ge=1)
    batch_rows: int = Field(64, ge=1)
    blank_images: bool = Field(False, description="also answer with blank images: multi-modal gain (MMStar)")


class HeldOutConfig(Evaluator):
    """The mean cross-entropy of a held-out source, packed into rows like those of the last stage."""

    keys_decide = ("evaluation",)

    source: str
    batches: int | None = Field(None, ge=1, description="batches of batch_rows rows; default: the whole source once")
    batch_rows: int = Field(
        8, ge=1, description="rows computed at once, rounded up to a multiple of what the mesh divides rows by"
    )


class EvaluationConfig(Section):
    """What is measured while a run trains and at its end, and the number of examples in the report."""

    keys_decide = ("evaluation",)

    every_steps: int | None = Field(
        None,
        ge=1,
        description="evaluators without an own every_steps run after every N-th step, and at the end; default: at the"
        " end only",
        json_schema_extra=decides("nothing"),
    )
    at_start: bool = Field(
        False,
        description="also before the first step: how good the initial weights are, and whether evaluation fits",
        json_schema_extra=decides("nothing"),
    )
    weights: tuple[str, ...] = Field(
        ("trained",), min_length=1, description="weights that are evaluated: trained, and names of averages"
    )
    tasks: dict[str, TaskConfig] = Field(default_factory=dict)
    losses: dict[str, HeldOutConfig] = Field(default_factory=dict)
    samples: dict[str, SamplesConfig] = Field(default_factory=dict)
    integration_rate: dict[str, IntegrationRateConfig] = Field(default_factory=dict)
    report_examples: int = Field(
        12, ge=0, description="examples of each task shown in report.html", json_schema_extra=decides("nothing")
    )

    def evaluators(self) -> Iterator[tuple[str, str, Evaluator]]:
        """Yields (kind, name, section) of every evaluator; `kind` and `task` of its lines are the first two."""
        for name, task in self.tasks.items():
            yield "evaluation", name, task
        for name, loss in self.losses.items():
            yield "held_out", name, loss
        for name, samples in self.samples.items():
            yield "samples", name, samples
        for name, rate in self.integration_rate.items():
            yield "integration_rate", name, rate

    def runs_at(self, evaluator: Evaluator, step: int, last: bool) -> bool:
        """Returns whether an evaluator runs after a step of the run; step 0 is before the first one."""
        if step == 0:
            return self.at_start
        every = evaluator.every_steps or self.every_steps
        return last or (every is not None and step % every == 0)
