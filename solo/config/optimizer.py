"""Sections about the optimizer: the update rule, groups of parameters, the schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from solo.config.base import Section

MomentDtype = Literal["float32", "bfloat16"]
# An average x of decay b rounds to 8 bits: unless (1 - b) x exceeds the rounding by far, it stalls.
_MAX_BFLOAT16_DECAY = 0.99


class MuonConfig(Section):
    """Muon's own keys: momentum, and the orthogonalisation of each layer's matrix by Newton-Schulz steps."""

    keys_decide = ("result",)

    momentum: float = Field(0.95, ge=0, lt=1)
    nesterov: bool = True
    newton_schulz_steps: int = Field(5, ge=1, le=20)
    consistent_rms: PositiveFloat | None = Field(
        0.2,
        description="root mean square of an update: 0.2 is about AdamW's, so that one learning rate serves both"
        " (arXiv 2502.16982); null: scaled by sqrt(max(1, outputs / inputs)) instead (Jordan 2024), which needs a"
        " learning rate of its own",
    )


class AdafactorConfig(Section):
    """Adafactor's own keys (arXiv 1804.04235)."""

    keys_decide = ("result",)

    decay_rate: float = Field(0.8, gt=0, le=1, description="c: the second moment's decay at step t is 1 - t^-c")
    clipping_threshold: PositiveFloat | None = Field(
        1.0, description="largest root mean square of a matrix's update, before the learning rate"
    )
    multiply_by_parameter_scale: bool = Field(
        True, description="step sizes are relative to the root mean square of each layer's matrix"
    )
    min_dim_size_to_factor: int = Field(
        128, ge=2, description="a matrix with a smaller side has an unfactored second moment"
    )


# The keys of each update rule, with the defaults of its paper or of common use for language models.
_OWN: Mapping[str, Mapping[str, Any]] = {
    "adamw": {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8},
    "lion": {"beta1": 0.9, "beta2": 0.99},
    "adafactor": {"beta1": None, "eps": 1e-30, "adafactor": AdafactorConfig()},
    "muon": {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "muon": MuonConfig()},
    "sgd": {"momentum": 0.9, "nesterov": False},
}
_ALL = ("beta1", "beta2", "eps", "momentum", "nesterov", "muon", "adafactor")


class UpdateRuleConfig(Section):
    """An update rule and its keys. Keys that the rule does not have are null, and are refused if they are set."""

    keys_decide = ("result",)

    name: Literal["adamw", "lion", "adafactor", "muon", "sgd"] = Field(
        "adamw", description="muon: Muon for the layers' matrices, AdamW for all other parameters"
    )
    beta1: float | None = Field(
        None, ge=0, lt=1, description="decay of the first moment; default: 0.9, for adafactor no first moment"
    )
    beta2: float | None = Field(
        None, ge=0, lt=1, description="decay of AdamW's second moment (default 0.95), or of Lion's momentum (0.99)"
    )
    eps: PositiveFloat | None = Field(None, description="default: 1e-8; adafactor: 1e-30, added to squared gradients")
    momentum: float | None = Field(None, ge=0, lt=1, description="sgd; default: 0.9")
    nesterov: bool | None = Field(None, description="sgd; default: false")
    first_moment_dtype: MomentDtype = Field(
        "float32", description="of the first moment or momentum; bfloat16 is safe with the default decays"
    )
    second_moment_dtype: MomentDtype = Field(
        "float32", description="of AdamW's second moment; bfloat16 is refused for beta2 above 0.99, where it stalls"
    )
    muon: MuonConfig | None = None
    adafactor: AdafactorConfig | None = None

    @model_validator(mode="after")
    def _check_rule(self) -> UpdateRuleConfig:
        own = _OWN[self.name]
        for key, default in own.items():
            if getattr(self, key) is None:  # so that a resolved config shows the default
                object.__setattr__(self, key, default)
        for key in _ALL:
            if key not in own and getattr(self, key) is not None:
                having = [name for name, keys in _OWN.items() if key in keys]
                raise ValueError(
                    f"{key} belongs to {' and '.join(having)}, and name is {self.name}, which has {', '.join(own)}"
                )
        if self.second_moment_dtype != "float32" and self.name not in ("adamw", "muon"):
            raise ValueError(f"second_moment_dtype belongs to adamw and muon, and name is {self.name}")
        if self.first_moment_dtype != "float32" and not self._has_first_moment:
            raise ValueError(f"first_moment_dtype: {self.name} has no first moment with these keys")
        for key, decay in self._low_precision():
            if decay > _MAX_BFLOAT16_DECAY:
                raise ValueError(
                    f"{key}: bfloat16 cannot hold an average of decay {decay:g}, whose changes are smaller than its"
                    f" rounding; keep float32, or lower the decay to {_MAX_BFLOAT16_DECAY:g} or less"
                )
        return self

    @property
    def _has_first_moment(self) -> bool:
        return not (self.name == "sgd" and not self.momentum) and not (self.name == "adafactor" and self.beta1 is None)

    def _low_precision(self) -> list[tuple[str, float]]:
        """Returns the keys of bfloat16 moments, with the decays of their averages."""
        first = {"lion": self.beta2, "sgd": self.momentum}.get(self.name, self.beta1)
        decays = {"first_moment_dtype": [first], "second_moment_dtype": [self.beta2]}
        if self.muon is not None:
            decays["first_moment_dtype"].append(self.muon.momentum)
        return [
            (key, decay or 0.0) for key, each in decays.items() for decay in each if getattr(self, key) == "bfloat16"
        ]


class GroupConfig(Section):
    """Parameters whose updates differ from the rest. Keys that are null are those of the optimizer section."""

    keys_decide = ("result",)

    match: tuple[str, ...] = Field(
        min_length=1, description="globs over parameter paths; a component's name stands for all of its parameters"
    )
    learning_rate_scale: NonNegativeFloat | None = Field(None, description="factor on the scheduled learning rate")
    weight_decay: NonNegativeFloat | None = Field(
        None, description="of all parameters of the group, whatever weight_decay_mask says"
    )
    clip_norm: PositiveFloat | None = Field(
        None, description="the group's gradients are clipped by their own global norm, apart from the others"
    )
    optimizer: UpdateRuleConfig | None = Field(None, description="another update rule, as {name: adamw}")

    @model_validator(mode="after")
    def _check_group(self) -> GroupConfig:
        if all(getattr(self, key) is None for key in type(self).model_fields if key != "match"):
            raise ValueError("a group sets at least one of learning_rate_scale, weight_decay, clip_norm and optimizer")
        return self


class OptimizerConfig(UpdateRuleConfig):
    """The update rule, its schedule, weight decay and clipping; groups of parameters may differ."""

    keys_decide = ("result",)

    learning_rate: float = Field(ge=0, description="peak")
    schedule: Literal["cosine", "linear", "wsd", "constant", "inverse_sqrt"] = Field(
        "cosine",
        description="from the end of the warm-up on; wsd: constant, then a decay; inverse_sqrt: falls like one over the"
        " square root of the steps, in units of the warm-up. Over steps, or over tokens if the stage's length is given"
        " in tokens",
    )
    warmup_steps: int = Field(0, ge=0)
    warmup_tokens: int | None = Field(None, ge=1, description="in place of warmup_steps, in a stage of so many tokens")
    start_at_zero: bool = Field(
        False, description="the first step's rate is 0 and the schedule runs one step late (Megatron)"
    )
    decay_steps: int | None = Field(None, ge=1, description="wsd: length of the decay; default: a fifth of the stage")
    decay_tokens: int | None = Field(None, ge=1, description="in place of decay_steps, in a stage of so many tokens")
    decay_shape: Literal["linear", "1-sqrt"] = Field(
        "linear", description="wsd: 1-sqrt falls fast at first (arXiv 2405.18392)"
    )
    final_fraction: float = Field(
        0.1, ge=0, le=1, description="final learning rate / peak; not with schedules constant and inverse_sqrt"
    )
    weight_decay: float = Field(0.1, ge=0, description="times the learning rate, as in AdamW, for every update rule")
    weight_decay_mask: Literal["matrices", "matrices_and_embeddings", "all"] = Field(
        "matrices", description="parameters that decay; matrices: not norms, biases, embeddings"
    )
    clip_norm: float | None = Field(1.0, gt=0, description="largest global norm of the gradients; null: any")
    groups: tuple[GroupConfig, ...] = Field(
        (), description="each key of a parameter is set by the last group that matches it and has the key"
    )

    @model_validator(mode="after")
    def _check_schedule(self) -> OptimizerConfig:
        if self.schedule == "inverse_sqrt" and not (self.warmup_steps or self.warmup_tokens):
            raise ValueError("schedule inverse_sqrt needs a warm-up, whose length decides how fast the rate falls")
        own = {"decay_steps": None, "decay_tokens": None, "decay_shape": "linear"}
        if self.schedule != "wsd" and (found := [key for key, no in own.items() if getattr(self, key) != no]):
            raise ValueError(f"{found[0]} belongs to schedule wsd, and schedule is {self.schedule}")
        return self
