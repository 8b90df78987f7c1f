"""The one schema of a run: frozen, nested, validated; unknown keys are refused with a suggestion.

A config file is YAML. `extends: other.yaml` (a path relative to the file, or a list of them) is merged
under it, mappings key by key, lists as a whole. `key.path=value` overrides come last. `load_config` returns
a `Config`; `dump_config` writes one back, and that text alone repeats the run.
"""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class ConfigError(ValueError):
    """A config that cannot be used; the message says what is wrong, where, and what was expected."""


class Section(BaseModel):
    """Base of every section: immutable, unknown keys refused, no silent change of type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


# ----------------------------------------------------------------------------------------------- data


class TokenizerConfig(Section):
    """A SentencePiece model: one that exists (`path`), or one trained on the sources' text."""

    path: str | None = None
    vocab_size: int = Field(1024, ge=64, description="pieces of a trained tokenizer, special tokens included")
    model_type: Literal["unigram", "bpe"] = "unigram"
    train_on: tuple[str, ...] = Field((), description="sources whose text trains it; empty: all of them")
    max_characters: int = Field(4_000_000, ge=1, description="text read for training, over all sources")


class ImageConfig(Section):
    """How an image becomes visual tokens. Shared by the data (cutting, counting, masks) and the model."""

    geometry: Literal["native"] = "native"
    patch_size: int = Field(32, ge=1, description="side of the square of pixels under one visual token")
    max_side: int = Field(1024, ge=1, description="longest side after resizing, in pixels (SOLO: 1024)")
    attention: Literal["causal", "bidirectional", "isolated"] = Field(
        "causal", description="among the tokens of one image; isolated: a patch sees only itself"
    )
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @model_validator(mode="after")
    def _check(self) -> ImageConfig:
        if self.max_side % self.patch_size:
            raise ValueError(f"max_side {self.max_side} is not a multiple of patch_size {self.patch_size}")
        return self


class SourceConfig(Section):
    """One dataset: a reader's name (see `solo.data.readers`), its options, and how many records to take."""

    reader: str
    options: dict[str, Any] = {}
    limit: int | None = Field(None, ge=1, description="records to take; needed by endless readers")


class DataConfig(Section):
    """Where prepared data lies and how documents become rows."""

    folder: str = Field("data", description="prepared shards, indexes and the trained tokenizer")
    sources: dict[str, SourceConfig] = Field(min_length=1)
    tokenizer: TokenizerConfig = TokenizerConfig()
    overlong: Literal["split", "drop"] = Field(
        "split",
        description="a document too long for a row: cut into pieces that fit (never in an image), or dropped; split"
        " also cuts text that would leave a row's patches without text of their own",
    )
    records_per_shard: int = Field(4096, ge=1)
    planning_window: int = Field(256, ge=1, description="rows that are packed together")
    worker_processes: int = Field(0, ge=0, description="0: threads of the training process")
    prefetch_batches: int = Field(4, ge=1)
    verify_images: bool = Field(True, description="decode every image once while preparing; bad ones are quarantined")


# ---------------------------------------------------------------------------------------------- model

Sharing = Literal["shared", "modality"]


class ExpertsConfig(Section):
    """Per component: one set of weights, or one for patches and one for text (Mono-InternVL: ffn)."""

    ffn: Sharing = "shared"
    qkv: Sharing = "shared"
    out: Sharing = "shared"
    norms: Sharing = "shared"


class ModelConfig(Section):
    """A pre-norm decoder: RMSNorm, rotary attention with grouped keys, SwiGLU."""

    width: int = Field(ge=1, description="D")
    layers: int = Field(ge=1, description="L")
    heads: int = Field(ge=1, description="H")
    kv_heads: int = Field(ge=1, description="K")
    head_dim: int | None = Field(None, description="C; default D / H")
    ffn_width: int = Field(ge=1, description="F")
    experts: ExpertsConfig = ExpertsConfig()
    patch_embed_bias: bool = False
    patch_token: bool = Field(False, description="add one learned vector under every patch (SOLO's <vpatch>)")
    rope_theta: float = Field(10_000.0, gt=0)
    norm_eps: float = Field(1e-5, gt=0)
    tied_head: bool = False
    vocab_multiple: int = Field(128, ge=1, description="the vocabulary is padded up to a multiple of this")
    init_std: float = Field(0.02, gt=0)
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "full"] = Field("none", description="what a layer recomputes in the backward pass")
    scan_layers: bool = True
    attention: Literal["blocks", "dense"] = Field("blocks", description="dense materialises S x S: for tests")
    attention_block: int = Field(128, ge=8, description="queries and keys per block")

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.head_dim is None and self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}; set head_dim")
        if self.dim_per_head % 2:
            raise ValueError(f"head_dim {self.dim_per_head} is odd; rotary positions rotate pairs")
        return self

    @property
    def dim_per_head(self) -> int:
        """C, the width of one attention head."""
        return self.head_dim or self.width // self.heads


class MeshConfig(Section):
    """Devices along each mesh axis; at most one -1 takes what is left."""

    replica: int = 1
    data: int = 1
    fsdp: int = -1
    context: int = 1
    tensor: int = 1

    @model_validator(mode="after")
    def _check(self) -> MeshConfig:
        sizes = list(self.model_dump().values())
        if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise ValueError("axis sizes are positive, and at most one is -1 (all devices that are left)")
        return self


# ------------------------------------------------------------------------------------------- training


class OptimizerConfig(Section):
    """AdamW, its schedule, and clipping."""

    learning_rate: float = Field(ge=0, description="peak")
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    decay_steps: int | None = Field(
        None, ge=1, description="wsd: length of the final decay; default a fifth of the stage"
    )
    final_fraction: float = Field(0.1, ge=0, le=1, description="last learning rate / peak")
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0, description="matrices only: not norms, biases, embeddings")
    clip_norm: float | None = Field(1.0, gt=0)


class LossConfig(Section):
    """Cross-entropy at the target slots."""

    average: Literal["token", "row"] = Field(
        "token", description="row: every row weighs the same, as SOLO's packs do (solo.md 1.8)"
    )
    z_loss: float = Field(0.0, ge=0)
    chunk: int = Field(1024, ge=1, description="target slots whose logits exist at once")


class StageConfig(Section):
    """One stage of a run: its data, what it trains, and how."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    mixture: dict[str, float] = Field(min_length=1, description="source: weight")
    mixture_by: Literal["documents", "positions"] = "documents"
    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0, description="instead of steps: passes over each source, times its weight")
    batch_rows: int = Field(ge=1, description="B, over all hosts")
    accumulate: int = Field(1, ge=1, description="micro-batches that a batch is computed in")
    row_slots: int = Field(1024, ge=16, description="about this many slots a row, where P and T are chosen")
    slot_multiple: int = Field(8, ge=1, description="P, T and Y are multiples of this")
    patch_slots: int | None = Field(None, ge=0, description="P; chosen from the data unless given")
    text_slots: int | None = Field(None, ge=1, description="T; chosen from the data unless given")
    target_slots: int | None = Field(None, ge=1, description="Y; chosen from the data unless given")
    train: tuple[str, ...] = Field(("*",), description="globs over parameter paths; the rest is frozen")
    learning_rate_scale: dict[str, float] = Field({}, description="glob over parameter paths: factor")
    optimizer: OptimizerConfig
    optimizer_state: Literal["carry", "reset"] = "reset"
    loss: LossConfig = LossConfig()

    @model_validator(mode="after")
    def _check(self) -> StageConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        if any(weight <= 0 for weight in self.mixture.values()):
            raise ValueError("mixture weights are positive")
        if self.batch_rows % self.accumulate:
            raise ValueError(f"batch_rows {self.batch_rows} is not a multiple of accumulate {self.accumulate}")
        if (self.patch_slots is None) != (self.text_slots is None):
            raise ValueError("give both patch_slots and text_slots, or neither")
        return self


class CheckpointConfig(Section):
    """When to save and what to keep."""

    every_steps: int = Field(100, ge=1)
    keep_latest: int = Field(2, ge=1)
    keep_every_steps: int | None = Field(None, ge=1, description="besides the latest, keep these for good")


class SafetyConfig(Section):
    """What happens at a loss that is not finite, or that jumps."""

    policy: Literal["stop", "skip"] = Field("stop", description="skip: leave the parameters as they were, go on")
    spike_factor: float | None = Field(None, gt=1, description="a loss above this times the running mean is a spike")
    spike_warmup_steps: int = Field(50, ge=1)
    max_skips: int = Field(10, ge=1, description="skipped steps in a row after which the run stops")


class TaskConfig(Section):
    """One evaluation by generation: the last assistant turn of every conversation is the right answer."""

    source: str
    metric: Literal["exact_match", "character_error_rate"] = "exact_match"
    limit: int | None = Field(None, ge=1)
    max_new_tokens: int = Field(16, ge=1)
    batch_rows: int = Field(64, ge=1)
    blank_images: bool = Field(False, description="also answer with the images blanked: multi-modal gain (MMStar)")


class EvaluationConfig(Section):
    """What is evaluated at the end of a run, and how much of it the report shows."""

    tasks: dict[str, TaskConfig] = {}
    report_examples: int = Field(12, ge=0, description="examples of each task shown in report.html")


class Config(Section):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    folder: str = Field("runs", description="the run lives in <folder>/<name>")
    seed: int = Field(0, ge=0)
    data: DataConfig
    image: ImageConfig = ImageConfig()
    model: ModelConfig
    mesh: MeshConfig = MeshConfig()
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    checkpoint: CheckpointConfig = CheckpointConfig()
    safety: SafetyConfig = SafetyConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        known = list(self.data.sources)

        def check(name: str, where: str) -> None:
            if name not in known:
                raise ValueError(f"{where}: no source {name!r} in data.sources{nearest(name, known)}")

        for stage in self.stages:
            for name in stage.mixture:
                check(name, f"stage {stage.name!r}, mixture")
        for title, task in self.evaluation.tasks.items():
            check(task.source, f"evaluation task {title!r}")
        for name in self.data.tokenizer.train_on:
            check(name, "data.tokenizer.train_on")
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stage names repeat: {names}")
        return self

    @property
    def run_folder(self) -> Path:
        """Where the run lives."""
        return Path(self.folder) / self.name


# ------------------------------------------------------------------------------------ reading, writing


class _Loader(yaml.SafeLoader):
    """YAML whose floats may be written 1e-3, as YAML 1.2 has it (PyYAML reads that as a string)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)$"),
    list("-+.0123456789"),
)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, what it extends, and `key.path=value` overrides.

    Raises:
        ConfigError: the file is missing or unreadable, or the config is not valid.
    """
    data = _read(Path(path), seen=())
    for override in overrides:
        _apply(data, override)
    return parse_config(data, origin=str(path))


def parse_config(data: Mapping[str, Any], origin: str = "config") -> Config:
    """Validate a mapping. Raises ConfigError with one line per fault."""
    try:
        return Config.model_validate_json(json.dumps(data))
    except ValidationError as error:
        lines = [_explain(fault) for fault in error.errors()]
        raise ConfigError(f"{origin} is not a valid config:\n" + "\n".join(f"  {line}" for line in lines)) from None


def dump_config(config: Config) -> str:
    """The resolved config as YAML; `load_config` on it gives an equal Config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=100)


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: extends itself through {' -> '.join(str(p) for p in seen)}")
    try:
        data = yaml.load(path.read_text(), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of keys at the top, found {type(data).__name__}")
    parents = data.pop("extends", [])
    merged: dict[str, Any] = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        merged = _merge(merged, _read(path.parent / parent, (*seen, path.resolve())))
    return _merge(merged, data)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _apply(data: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"override {override!r}: expected key.path=value")
    keys = path.split(".")
    node: Any = data
    try:
        for key in keys[:-1]:
            node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
        if isinstance(node, list):
            node[int(keys[-1])] = yaml.load(text, Loader=_Loader)
        elif isinstance(node, dict):
            node[keys[-1]] = yaml.load(text, Loader=_Loader)
        else:
            raise TypeError
    except (ValueError, IndexError, TypeError, AttributeError):
        raise ConfigError(f"override {override!r}: there is no such place in the config") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from None


def _explain(fault: Any) -> str:
    location = [str(part) for part in fault["loc"]]
    where = ".".join(location) or "(top)"
    if fault["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        return f"{where}: unknown key{nearest(location[-1], known) or f'; known keys: {sorted(known)}'}"
    if fault["type"] == "missing":
        return f"{where}: missing"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{where}: {message}"
    found = json.dumps(fault["input"]) if not isinstance(fault["input"], dict) else "a mapping"
    return f"{where}: {message[0].lower()}{message[1:]}; found {found} ({type(fault['input']).__name__})"


def _fields_at(location: list[str]) -> list[str]:
    """Field names of the section at a dotted path of the schema."""
    kind: Any = Config
    for part in location:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[part].annotation if part in kind.model_fields else None
        else:
            arguments = [a for a in typing.get_args(kind) if a not in (Ellipsis, types.NoneType, str)]
            kind = arguments[-1] if arguments else None
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def nearest(name: str, known: Sequence[str]) -> str:
    """A suggestion to end an error message with, or nothing where no known name is close."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""
