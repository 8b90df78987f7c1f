"""Config sections for monitoring a run: log lines, Weights & Biases, and profiles."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from solo.config.base import Section


class WandbConfig(Section):
    """Logging to Weights & Biases. The API key comes from `wandb login` or $WANDB_API_KEY."""

    keys_decide = ("nothing",)

    project: str = Field(min_length=1, description="name of the project")
    entity: str | None = Field(None, description="user or team; default: that of the API key")
    mode: Literal["online", "offline"] = Field(
        "online", description="offline: store the W&B run in the run's folder, for `wandb sync`"
    )
    group: str | None = Field(None, description="group of the run")
    tags: tuple[str, ...] = Field((), description="tags of the run")


class WatchConfig(Section):
    """What a run logs during training. `metrics.jsonl` always has every step."""

    keys_decide = ("nothing",)

    log_every_seconds: float = Field(
        30.0, gt=0, description="seconds between two log lines if the output is not a terminal"
    )
    norms_every_steps: int | None = Field(
        None,
        ge=1,
        description="log the norms of every component's gradients, updates and parameters after every N-th step of a"
        " stage",
    )
    activations_every_steps: int | None = Field(
        None,
        ge=1,
        description="log the size of the logits and of the residual stream after every layer after every N-th step of a"
        " stage; this takes an additional forward pass",
    )
    wandb: WandbConfig | None = Field(None, description="also send the metrics to Weights & Biases; default: off")


class ProfileConfig(Section):
    """Steps to trace with JAX's profiler, into `<run>/profile`. At any time, SIGUSR2 traces the next three steps."""

    keys_decide = ("nothing",)

    steps: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="first and last step of the run to trace, such as [10, 13]; a few steps are enough"
    )
    processes: Literal["first", "all"] = Field("first", description="processes of the run that trace these steps")
    python: bool = Field(False, description="also trace Python's function calls, which makes traces many times larger")

    @model_validator(mode="after")
    def _check(self) -> ProfileConfig:
        if self.steps is not None and self.steps[0] > self.steps[1]:
            raise ValueError(f"steps: the first step, {self.steps[0]}, follows the last one, {self.steps[1]}")
        return self
