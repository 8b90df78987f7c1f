"""Config sections for checkpoints and for the handling of bad losses."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from solo.config.base import Section, decides


class BestConfig(Section):
    """Selects the best checkpoints by a metric that an evaluator measures during training."""

    keys_decide = ("nothing",)

    metric: str = Field(
        pattern=r"^[a-z_]+/.+$",
        description="KIND/NAME of an evaluator, such as held_out/text or evaluation/questions, or one of its fields:"
        " held_out/text/loss_by_context/with_image",
    )
    mode: Literal["min", "max"] = Field("min", description="min: lower is better; max: higher is better")
    keep: int = Field(1, ge=1, description="number of best checkpoints to keep, in addition to the newest ones")
    weights: str = Field("trained", description="weights whose metric is compared: trained, or the name of an average")


class CheckpointConfig(Section):
    """When checkpoints are saved, and which of them are kept."""

    keys_decide = ("nothing",)

    every_steps: int = Field(100, ge=1)
    keep_latest: int = Field(2, ge=1)
    keep_every_steps: int | None = Field(None, ge=1, description="also keep every N-th step permanently")
    at_steps: tuple[PositiveInt, ...] = Field(
        (),
        description="also save these steps and keep them permanently, such as those where decay branches of a sweep"
        " start",
    )
    best: BestConfig | None = Field(
        None,
        description="also save at every step where this metric is measured, and keep the best checkpoints (RUN@best)",
    )

    def saves_at(self, step: int) -> bool:
        """Returns whether these settings save a checkpoint after this step."""
        return step % self.every_steps == 0 or step in self.at_steps


class SafetyConfig(Section):
    """What a run does when its loss is not finite or spikes."""

    keys_decide = ("result",)

    policy: Literal["stop", "skip"] = Field(
        "stop",
        description="stop: end the run; skip: discard the update and continue. A stopped run may be resumed with skip",
        json_schema_extra=decides("nothing"),
    )
    spike_factor: float | None = Field(
        None, gt=1, description="a loss above this factor times the running mean is a spike"
    )
    spike_warmup_steps: int = Field(50, ge=1)
    max_skips: int = Field(
        10,
        ge=1,
        description="the run stops after this many consecutive skipped steps",
        json_schema_extra=decides("nothing"),
    )
