"""The config section for averages of the weights."""

from __future__ import annotations

from pydantic import Field

from solo.config.base import Section


class AverageConfig(Section):
    """An exponential moving average of the trained weights, with the bias correction of Adam's moments.

    After n updates, the average is a weighted mean of n snapshots of the weights: the latest has weight 1, the one
    before it `decay`, the one before that `decay`^2, and so on. This equals `optax.ema` with `debias=True`.
    """

    keys_decide = ("result",)

    decay: float = Field(ge=0, lt=1, description="decay per update; 0.9999 averages over about the last 10,000 updates")
    start_step: int = Field(1, ge=1, description="first step of the run whose weights enter the average")
    every_steps: int = Field(1, ge=1, description="update the average after every step that is a multiple of this")
