"""Sections about checkpoints and bad losses."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from solo.config.base import Section, decides


class BestConfig(Section):
    """Which checkpoints are the best, by a metric that an evaluator measures while the run trains."""

    keys_decide = ("nothing",)

    metric: str = Field(
        pattern=r"^[a-z_]+/.+$",
        description="KIND/NAME of an evaluator, such as held_out/text or evaluation/questions, or one of its fields:"
        " held_out/text/loss_by_context/with_image",
    )
    mode: Literal["min", "max"] = Field("min", description="whether low or high values are good")
    keep: int = Field(1, ge=1, description="best checkpoints kept besides the newest ones")
    weights: str = Field("trained", description="the weights that count: trained, or the name of an average")


class CheckpointConfig(Section):
    """When checkpoints are saved, and which are kept."""

    keys_decide = ("nothing",)

    every_steps: int = Field(100, ge=1)
    keep_latest: int = Field(2, ge=1)
    keep_every_steps: int | None = Field(None, ge=1, description="also keep every N-th step permanently")
    at_steps: tuple[PositiveInt, ...] = Field(
        (), description="also save and keep these steps: where decay branches of a sweep start"
    )
    best: BestConfig | None = Field(
        None, description="also save every step at which this metric is measured, and keep the best (RUN@best)"
    )

    def saves_at(self, step: int) -> bool:
        """Returns whether these settings save a checkpoint after this step."""
        return step % self.every_steps == 0 or step in self.at_steps


class SafetyConfig(Section):
    """The reaction to a loss that is not finite, or that spikes."""

    keys_decide = ("result",)

    policy: Literal["stop", "skip"] = Field(
        "stop",
        description="skip: discard the update and continue; a run that stopped may resume with it",
        json_schema_extra=decides("nothing"),
    )
    spike_factor: float | None = Field(None, gt=1, description="a loss above the running mean times this is a spike")
    spike_warmup_steps: int = Field(50, ge=1)
    max_skips: int = Field(
        10,
        ge=1,
        description="consecutive skipped steps after which the run stops",
        json_schema_extra=decides("nothing"),
    )
