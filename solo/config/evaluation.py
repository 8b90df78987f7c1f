"""Config sections for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from solo.config.base import Section, decides
from solo.config.cadence import Evaluator
from solo.config.evaluators import IntegrationRateConfig, SamplesConfig


class TaskConfig(Evaluator):
    """A generative task. The last assistant turn of each conversation is the reference answer."""

    keys_decide = ("evaluation",)

    source: str
    metric: Literal["exact_match", "character_error_rate"] = "exact_match"
    limit: int | None = Field(None, ge=1)
    max_new_tokens: int = Field(16, ge=1)
    batch_rows: int = Field(64, ge=1)
    blank_images: bool = Field(False, description="also answer with blank images, to measure multi-modal gain (MMStar)")


class HeldOutConfig(Evaluator):
    """The mean cross-entropy on a held-out source, which is packed into rows like those of the last stage."""

    keys_decide = ("evaluation",)

    source: str
    batches: int | None = Field(None, ge=1, description="number of batches; default: the whole source once")
    batch_rows: int = Field(
        8, ge=1, description="rows of a batch, rounded up to a multiple of the devices that the mesh shards rows over"
    )


class EvaluationConfig(Section):
    """What is evaluated during training and at the end of a run, and how many examples the report shows."""

    keys_decide = ("evaluation",)

    every_steps: int | None = Field(
        None,
        ge=1,
        description="run evaluators without an every_steps of their own after every N-th step and at the end; default:"
        " only at the end",
        json_schema_extra=decides("nothing"),
    )
    at_start: bool = Field(
        False,
        description="also evaluate before the first step, which measures the initial weights and shows early whether"
        " evaluation fits in memory",
        json_schema_extra=decides("nothing"),
    )
    weights: tuple[str, ...] = Field(
        ("trained",), min_length=1, description="weights to evaluate: trained, or names of averages"
    )
    tasks: dict[str, TaskConfig] = Field(default_factory=dict)
    losses: dict[str, HeldOutConfig] = Field(default_factory=dict)
    samples: dict[str, SamplesConfig] = Field(default_factory=dict)
    integration_rate: dict[str, IntegrationRateConfig] = Field(default_factory=dict)
    report_examples: int = Field(
        12, ge=0, description="examples per task in report.html", json_schema_extra=decides("nothing")
    )

    def evaluators(self) -> Iterator[tuple[str, str, Evaluator]]:
        """Yields (kind, name, section) of every evaluator. Its metrics have the first two as `kind` and `task`."""
        for name, task in self.tasks.items():
            yield "evaluation", name, task
        for name, loss in self.losses.items():
            yield "held_out", name, loss
        for name, samples in self.samples.items():
            yield "samples", name, samples
        for name, rate in self.integration_rate.items():
            yield "integration_rate", name, rate

    def runs_at(self, evaluator: Evaluator, step: int, last: bool) -> bool:
        """Returns whether an evaluator runs after a step of the run. Step 0 stands for the start, before any step."""
        if step == 0:
            return self.at_start
        every = evaluator.every_steps or self.every_steps
        return last or (every is not None and step % every == 0)
