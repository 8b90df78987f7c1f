"""The config of a whole run."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, ValidationError, field_validator, model_validator

from solo.config.averages import AverageConfig
from solo.config.base import ConfigError, Section, decides, nearest
from solo.config.branch import BranchConfig
from solo.config.checkpoint import CheckpointConfig, SafetyConfig
from solo.config.data import DataConfig, ImageConfig, SequenceConfig
from solo.config.evaluation import EvaluationConfig
from solo.config.model import MeshConfig, ModelConfig
from solo.config.training import StageConfig
from solo.config.watch import ProfileConfig, WatchConfig
from solo.files import is_remote, place

# Windows and some network shares drop a trailing dot, and a leading dot hides a folder.
_NAME = re.compile(r"[A-Za-z0-9_-](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?")
_LONGEST_NAME = 100
# The bucket names that both stores allow. An invalid name would otherwise fail only at the first checkpoint.
_BUCKET = re.compile(r"(gs|s3)://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/[^/\s]+)*/?")


class Config(Section):
    """The config of a whole run."""

    keys_decide = ("result",)

    name: str = Field(description="name of the run and of its folder", json_schema_extra=decides("nothing"))
    folder: str = Field(
        "runs",
        description="a run is stored in <folder>/<name>; may be gs://bucket/folder or s3://bucket/folder",
        json_schema_extra=decides("nothing"),
    )
    seed: int = Field(0, ge=0, json_schema_extra=decides("data", "result"))
    init_from: str | None = Field(
        None, description="initial weights: a folder written by solo import, a run, or RUN@STEP; default: random"
    )
    branch: BranchConfig | None = Field(None, description="branch from a checkpoint of another run; see --branch-from")
    data: DataConfig = DataConfig()
    image: ImageConfig = ImageConfig()
    sequence: SequenceConfig = SequenceConfig()
    model: ModelConfig
    mesh: MeshConfig = MeshConfig()
    compiler_options: dict[str, str | int | float | bool | None] = Field(
        {},
        description="XLA compiler options, added to those of the chip in solo/chips; null removes an option",
        json_schema_extra=decides("nothing"),
    )
    stages: tuple[StageConfig, ...] = ()
    averages: dict[str, AverageConfig] = Field({}, description="averages of the weights by name, such as ema")
    checkpoint: CheckpointConfig = CheckpointConfig()
    safety: SafetyConfig = SafetyConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    watch: WatchConfig = WatchConfig()
    profile: ProfileConfig = ProfileConfig()

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
            raise ValueError(
                f"a run's name is also that of its folder: letters, digits, '.', '_' and '-', at most {_LONGEST_NAME}"
                f" of them, and no '.' at either end; {name[: _LONGEST_NAME + 1]!r} is not such a name"
            )
        return name

    @field_validator("folder")
    @classmethod
    def _check_folder(cls, folder: str) -> str:
        if is_remote(folder) and not _BUCKET.fullmatch(folder):
            raise ValueError(
                f"{folder!r} is neither a folder nor a place in a bucket: gs://BUCKET/FOLDER or s3://BUCKET/FOLDER"
            )
        return folder

    @field_validator("averages")
    @classmethod
    def _check_averages(cls, averages: dict[str, AverageConfig]) -> dict[str, AverageConfig]:
        for name in averages:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name == "trained":
                raise ValueError(f"{name!r} is no name of an average: small letters, digits and _, and not trained")
        return averages

    @model_validator(mode="after")
    def _check(self) -> Config:
        known = list(self.data.sources)

        def check(name: str, where: str) -> None:
            if name not in known:
                raise ValueError(f"{where}: no source {name!r} in data.sources{nearest(name, known)}")

        for stage in self.stages:
            for name in stage.sources:
                check(name, f"stage {stage.name!r}, mixture")
        for title, task in self.evaluation.tasks.items():
            check(task.source, f"evaluation task {title!r}")
        for title, loss in self.evaluation.losses.items():
            check(loss.source, f"evaluation loss {title!r}")
        for title, samples in self.evaluation.samples.items():
            check(samples.source, f"evaluation samples {title!r}")
        for title, rate in self.evaluation.integration_rate.items():
            check(rate.source, f"integration rate {title!r}")
        for weights in self.evaluation.weights:
            if weights not in self.weight_names:
                raise ValueError(f"evaluation.weights: there are no weights {weights!r}; known: {self.weight_names}")
        self._check_best()
        for name in self.data.tokenizer.train_on:
            check(name, "data.tokenizer.train_on")
        for number, stage in enumerate(self.stages):
            try:
                self.image_in(stage)
            except ValidationError as error:
                fault = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ValueError(f"stages.{number}.image: {fault}") from None
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stage names repeat: {names}")
        if self.model.positions != self.sequence.positions:
            raise ValueError(
                f"sequence.positions is {self.sequence.positions}, but the model's heads need {self.model.positions}:"
                " grid with model.rope_sections, separate with a row or column in model.head_parts, otherwise text"
            )
        types = [each.name for each in self.model.layer_types]
        masked = [each.layer_type for each in self.sequence.layer_masks]
        if types != masked:
            raise ValueError(
                f"sequence.layer_masks is for the layer types {masked}, and model.layer_types has {types}; give one"
                " mask for each type, in the same order"
            )
        if self.sequence.layer_masks and self.image.mask != "causal":
            raise ValueError("image.mask: with sequence.layer_masks, state it for each type of layers there")
        if self.image.markers and self.model.patch_embed.kind != "conv":
            raise ValueError("image.markers needs model.patch_embed.kind: conv, which has their embeddings")
        inner = self.model.patch_embed.inner_size
        if inner and self.image.patch_size % inner:
            raise ValueError(f"image.patch_size {self.image.patch_size} is not a multiple of inner_size {inner}")
        return self

    @property
    def weight_names(self) -> list[str]:
        """The names of all weights of a run: `trained`, and every average."""
        return ["trained", *self.averages]

    def _check_best(self) -> None:
        best, evaluation = self.checkpoint.best, self.evaluation
        if best is None:
            return
        measured = (each for each in evaluation.evaluators() if each[0] != "samples")  # samples have no score
        known = {f"{kind}/{name}": section for kind, name, section in measured}
        found = [name for name in known if best.metric == name or best.metric.startswith(f"{name}/")]
        if not found:
            raise ValueError(f"checkpoint.best: no evaluator {best.metric!r}{nearest(best.metric, list(known))}")
        if not (known[found[0]].every_steps or evaluation.every_steps):
            raise ValueError(
                f"checkpoint.best: {found[0]} is measured only at the end, where there is nothing to choose from; set"
                " evaluation.every_steps, or every_steps of the evaluator"
            )
        if best.weights not in evaluation.weights:
            raise ValueError(f"checkpoint.best: evaluation.weights does not name {best.weights!r}")

    def image_in(self, stage: StageConfig) -> ImageConfig:
        """Returns the image section with the overrides of a stage."""
        if stage.image is None:
            return self.image
        return ImageConfig.model_validate({**self.image.model_dump(), **stage.image.model_dump(exclude_none=True)})

    def check_runnable(self) -> None:
        """Raises ConfigError if the config has no sources or no stages, and so describes only a model."""
        if missing := [
            key for key, found in (("data.sources", self.data.sources), ("stages", self.stages)) if not found
        ]:
            raise ConfigError(f"{self.name!r} describes a model but no run: {' and '.join(missing)} are missing")

    @property
    def run_folder(self) -> Path:
        """The folder of the run. In a bucket, it is a path-like object with the same methods."""
        return place(self.folder) / self.name
