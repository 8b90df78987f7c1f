"""Config sections for the stages of a run."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, model_validator

from solo.config.base import Section, decides
from solo.config.mixture import (
    MaxEpochs,
    MixtureLearningConfig,
    Weights,
    WeightsAtSteps,
    mean_weights,
    mixture_faults,
    sources_of,
)
from solo.config.optimizer import OptimizerConfig

Average = Literal["token", "row", "document", "document_root"]


class LossConfig(Section):
    """The cross-entropy loss at the target slots."""

    keys_decide = ("result",)

    average: Average = Field(
        "token",
        description="what has equal weight in the mean: target tokens, rows (SOLO), or documents. document_root: each"
        " of a document's n target tokens has weight 1 / sqrt(n) (InternVL and NEO: square)",
    )
    z_loss: float = Field(0.0, ge=0)
    chunk_size: int | None = Field(
        None,
        ge=1,
        description="target slots whose logits a device holds at a time; default: 128 MiB of logits",
        json_schema_extra=decides("nothing"),
    )


class StageImageConfig(Section):
    """Image sizes of a stage, which override those of the `image` section."""

    keys_decide = ("data",)

    max_side: int | None = Field(None, ge=1)
    min_pixels: int | None = Field(None, ge=1)
    max_pixels: int | None = Field(None, ge=1)
    max_tiles: int | None = Field(None, ge=1)
    max_height: int | None = Field(None, ge=1)
    max_width: int | None = Field(None, ge=1)


class StageConfig(Section):
    """A stage of a run: its data, trained parameters, loss and optimizer."""

    keys_decide = ("data",)

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    mixture: Weights = Field(
        min_length=1, description="weight of every source; 0 for a source that only a later entry gives a weight"
    )
    mixture_by: Literal["documents", "tokens", "targets"] = Field(
        "documents",
        description="unit of the weights: documents, tokens (patches and text tokens), or target tokens",
    )
    mixture_schedule: WeightsAtSteps = Field(
        {}, description="weights from a step of the stage on; sources that an entry does not name keep their weight"
    )
    mixture_between: Literal["step", "linear"] = Field(
        "step", description="weights between two entries. step: those of the earlier entry; linear: interpolated"
    )
    mixture_changes: WeightsAtSteps = Field(
        {},
        description="like mixture_schedule, for changes made during the run: a resumed run may append entries, which"
        " may name new sources",
    )
    max_epochs: MaxEpochs | None = Field(
        None, description="largest number of passes over each source in the stage: a number, or one per source"
    )
    when_exhausted: Literal["refuse", "redistribute"] = Field(
        "refuse",
        description="what to do if a source would exceed max_epochs. refuse: raise an error; redistribute: give its"
        " weight to the other sources",
    )
    mixture_learning: MixtureLearningConfig | None = Field(
        None, description="learn the weights from the sources' losses, starting at those of `mixture`"
    )
    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(
        None, gt=0, description="replaces steps: passes over each source, multiplied by the source's weight"
    )
    tokens: int | None = Field(
        None,
        ge=1,
        description="replaces steps: number of patches and text tokens. The number of steps follows from the average"
        " tokens per step, and the schedule is over tokens (warmup_tokens, decay_tokens)",
    )
    batch_rows: int = Field(ge=1, description="B, the global batch size in rows, over all hosts")
    accumulate: int = Field(
        1, ge=1, description="number of micro-batches that a batch is split into", json_schema_extra=decides("result")
    )
    row_slots: int = Field(1024, ge=16, description="approximate P + T if they are chosen from the data")
    slot_multiple: int = Field(8, ge=1, description="P, T and Y are rounded to multiples of this")
    patch_slots: int | None = Field(None, ge=0, description="P; default: chosen from the data")
    text_slots: int | None = Field(None, ge=1, description="T; default: chosen from the data")
    target_slots: int | None = Field(None, ge=1, description="Y; default: chosen from the data")
    image: StageImageConfig | None = Field(
        None, description="image sizes of this stage, such as in a resolution curriculum"
    )
    train: tuple[str, ...] = Field(
        ("*",),
        description="globs over parameter paths; all other parameters are frozen. layers[a:b]/... stands for some of"
        " the layers, from 0, such as layers[:12] for the first twelve",
        json_schema_extra=decides("result"),
    )
    learning_rate_scale: dict[str, NonNegativeFloat] = Field(
        {}, description="factors on the learning rate by glob over parameter paths", json_schema_extra=decides("result")
    )
    optimizer: OptimizerConfig
    optimizer_state: Literal["carry", "reset"] = Field("reset", json_schema_extra=decides("result"))
    loss: LossConfig = LossConfig()

    @model_validator(mode="after")
    def _check(self) -> StageConfig:
        if sum(length is not None for length in (self.steps, self.epochs, self.tokens)) != 1:
            raise ValueError("set exactly one of steps, epochs and tokens")
        self._check_units()
        for fault in mixture_faults(self):
            raise ValueError(fault)
        if not self.train:
            raise ValueError("train: [] trains nothing; leave it out to train everything, or leave out the stage")
        if self.batch_rows % self.accumulate:
            raise ValueError(f"batch_rows {self.batch_rows} is not a multiple of accumulate {self.accumulate}")
        if (self.patch_slots is None) != (self.text_slots is None):
            raise ValueError("set both patch_slots and text_slots, or neither")
        return self

    def _check_units(self) -> None:
        """Raises ValueError if the schedule and the length of the stage use different units."""
        over_tokens = self.tokens is not None
        for key, set_here in (
            ("warmup_steps", over_tokens and self.optimizer.warmup_steps),
            ("decay_steps", over_tokens and self.optimizer.decay_steps),
            ("warmup_tokens", not over_tokens and self.optimizer.warmup_tokens),
            ("decay_tokens", not over_tokens and self.optimizer.decay_tokens),
        ):
            if set_here:
                unit, other = ("tokens", "steps") if over_tokens else ("steps or epochs", "tokens")
                use = key.replace("_steps", "_tokens") if over_tokens else key.replace("_tokens", "_steps")
                raise ValueError(
                    f"optimizer.{key}: the stage's length is given in {unit}; set optimizer.{use}, or the length in"
                    f" {other}"
                )

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources of the mixture, followed by those that its changes add."""
        return sources_of(self.mixture, self.mixture_changes)

    def planned(self) -> StageConfig:
        """Returns the stage with constant mixture weights: their means over the schedule, without `mixture_changes`.

        Row shapes are chosen for this mixture, so that a change during the run does not affect the steps before it.
        """
        mixture = self.mixture
        if self.mixture_schedule:
            mixture = mean_weights(mixture, self.mixture_schedule, self.mixture_between, self.steps or 1)
        plain: dict[str, Any] = {"mixture_schedule": {}, "mixture_changes": {}}
        return self.model_copy(update={"mixture": mixture, "max_epochs": None, "mixture_learning": None, **plain})
