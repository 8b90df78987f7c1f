"""The section about averages of the weights."""

from __future__ import annotations

from pydantic import Field

from solo.config.base import Section


class AverageConfig(Section):
    """An exponential moving average of the trained weights, corrected for its beginning as Adam's moments are.

    After n updates, the average is the mean of the n weights that went into it, the latest with weight 1, the one
    before with weight `decay`, and so on: `optax.ema` with `debias`.
    """

    keys_decide = ("result",)

    decay: float = Field(ge=0, lt=1, description="of an update: 0.9999 averages over about the last 10,000")
    start_step: int = Field(1, ge=1, description="step of the run whose weights are the first ones in the average")
    every_steps: int = Field(1, ge=1, description="steps of the run between two updates; their numbers are multiples")
