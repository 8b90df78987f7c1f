"""Config sections of evaluators that need no reference answers: samples and the modality integration rate."""

from __future__ import annotations

from pydantic import Field

from solo.config.base import decides
from solo.config.cadence import Evaluator


class SamplesConfig(Evaluator):
    """Generated answers to the first records of a source, shown in metrics.jsonl, TensorBoard and report.html."""

    keys_decide = ("evaluation",)

    source: str
    count: int = Field(4, ge=1, description="number of records, starting at the first")
    max_new_tokens: int = Field(64, ge=1)


class IntegrationRateConfig(Evaluator):
    """The modality integration rate: how far visual and text features are apart in every layer (arXiv 2410.07167)."""

    keys_decide = ("evaluation",)

    source: str
    documents: int = Field(100, ge=1, description="number of records, the first ones that have both an image and text")
    tokens: int = Field(
        8192,
        ge=2,
        description="largest number of visual tokens, and of text tokens, to compare; every document contributes the"
        " same number. Below the model's width, the covariances are rank-deficient and the rate is higher",
    )
    batch_rows: int = Field(
        8,
        ge=1,
        description="documents of a batch, rounded up to a multiple of the devices that the mesh shards rows over",
        json_schema_extra=decides("nothing"),
    )
