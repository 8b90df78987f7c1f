"""Sections of evaluators that compare nothing with a reference score: sample answers, and the integration rate."""

from __future__ import annotations

from pydantic import Field

from solo.config.base import decides
from solo.config.cadence import Evaluator


class SamplesConfig(Evaluator):
    """Answers to the first records of a source, to be read: in metrics.jsonl, TensorBoard and report.html."""

    keys_decide = ("evaluation",)

    source: str
    count: int = Field(4, ge=1, description="records, from the first one on")
    max_new_tokens: int = Field(64, ge=1)


class IntegrationRateConfig(Evaluator):
    """The modality integration rate: how far apart images and text are in every layer (MIR, arXiv 2410.07167)."""

    keys_decide = ("evaluation",)

    source: str
    documents: int = Field(100, ge=1, description="the first records of the source that have an image and text")
    tokens: int = Field(
        8192,
        ge=2,
        description="visual tokens, and text tokens, that are compared at most, the same number of each document; below"
        " the model's width the covariances are not of full rank, and the rate is higher",
    )
    batch_rows: int = Field(
        8,
        ge=1,
        description="documents computed at once, rounded up to a multiple of what the mesh divides rows by",
        json_schema_extra=decides("nothing"),
    )
