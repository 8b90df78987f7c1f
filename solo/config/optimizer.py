"""Config sections for the optimizer: update rules, parameter groups and the learning rate schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from solo.config.base import Section

MomentDtype = Literal["float32", "bfloat16"]
# bfloat16 has 8 bits of precision. An update changes an average x with decay b by about (1 - b) x. Unless that is far
# above the rounding error, the average stalls.
_MAX_BFLOAT16_DECAY = 0.99


class MuonConfig(Section):
    """Settings of Muon: momentum, and the orthogonalisation of each layer's matrices by Newton-Schulz iterations."""

    keys_decide = ("result",)

    momentum: float = Field(0.95, ge=0, lt=1)
    nesterov: bool = True
    newton_schulz_steps: int = Field(5, ge=1, le=20)
    consistent_rms: PositiveFloat | None = Field(
        0.2,
        description="root mean square of an update. 0.2 is about that of AdamW, so both can use the same learning rate"
        " (arXiv 2502.16982). null: updates are scaled by sqrt(max(1, outputs / inputs)) instead (Jordan 2024), which"
        " needs a separate learning rate",
    )


class AdafactorConfig(Section):
    """Settings of Adafactor (arXiv 1804.04235)."""

    keys_decide = ("result",)

    decay_rate: float = Field(0.8, gt=0, le=1, description="c: the second moment's decay at step t is 1 - t^-c")
    clipping_threshold: PositiveFloat | None = Field(
        1.0, description="largest root mean square of a matrix's update, before the learning rate"
    )
    multiply_by_parameter_scale: bool = Field(
        True, description="scale each step by the root mean square of the layer's matrix"
    )
    min_dim_size_to_factor: int = Field(
        128, ge=2, description="the second moment of a matrix with a smaller side is not factored"
    )


# The keys of each update rule, with defaults from its paper or from common practice for language models.
_OWN: Mapping[str, Mapping[str, Any]] = {
    "adamw": {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8},
    "lion": {"beta1": 0.9, "beta2": 0.99},
    "adafactor": {"beta1": None, "eps": 1e-30, "adafactor": AdafactorConfig()},
    "muon": {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "muon": MuonConfig()},
    "sgd": {"momentum": 0.9, "nesterov": False},
}
_ALL = ("beta1", "beta2", "eps", "momentum", "nesterov", "muon", "adafactor")


class UpdateRuleConfig(Section):
    """An update rule and its settings. Keys that do not belong to the rule must be null."""

    keys_decide = ("result",)

    name: Literal["adamw", "lion", "adafactor", "muon", "sgd"] = Field(
        "adamw", description="muon: Muon for the layers' matrices, AdamW for all other parameters"
    )
    beta1: float | None = Field(
        None, ge=0, lt=1, description="decay of the first moment; default: 0.9; adafactor: null, no first moment"
    )
    beta2: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="decay of AdamW's second moment (default: 0.95) or of Lion's momentum (default: 0.99)",
    )
    eps: PositiveFloat | None = Field(None, description="default: 1e-8; adafactor: 1e-30, added to squared gradients")
    momentum: float | None = Field(None, ge=0, lt=1, description="sgd; default: 0.9")
    nesterov: bool | None = Field(None, description="sgd; default: false")
    first_moment_dtype: MomentDtype = Field(
        "float32", description="dtype of the first moment or momentum; bfloat16 is safe with the default decays"
    )
    second_moment_dtype: MomentDtype = Field(
        "float32", description="dtype of AdamW's second moment; bfloat16 needs a beta2 of at most 0.99, or it stalls"
    )
    muon: MuonConfig | None = None
    adafactor: AdafactorConfig | None = None

    @model_validator(mode="after")
    def _check_rule(self) -> UpdateRuleConfig:
        own = _OWN[self.name]
        for key, default in own.items():
            if getattr(self, key) is None:  # A resolved config shows the default.
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
        """Returns the dtype keys that are bfloat16, each with the decays of its moments."""
        first = {"lion": self.beta2, "sgd": self.momentum}.get(self.name, self.beta1)
        decays = {"first_moment_dtype": [first], "second_moment_dtype": [self.beta2]}
        if self.muon is not None:
            decays["first_moment_dtype"].append(self.muon.momentum)
        return [
            (key, decay or 0.0) for key, each in decays.items() for decay in each if getattr(self, key) == "bfloat16"
        ]


class GroupConfig(Section):
    """A group of parameters with its own settings. A key that is null keeps the value of the optimizer section."""

    keys_decide = ("result",)

    match: tuple[str, ...] = Field(
        min_length=1, description="globs over parameter paths; a component's name matches all of its parameters"
    )
    learning_rate_scale: NonNegativeFloat | None = Field(None, description="multiplies the scheduled learning rate")
    weight_decay: NonNegativeFloat | None = Field(
        None, description="weight decay of all parameters of the group, regardless of weight_decay_mask"
    )
    clip_norm: PositiveFloat | None = Field(
        None, description="clip the group's gradients by their own global norm, separately from all others"
    )
    optimizer: UpdateRuleConfig | None = Field(None, description="another update rule, such as {name: adamw}")

    @model_validator(mode="after")
    def _check_group(self) -> GroupConfig:
        if all(getattr(self, key) is None for key in type(self).model_fields if key != "match"):
            raise ValueError("a group sets at least one of learning_rate_scale, weight_decay, clip_norm and optimizer")
        return self


class OptimizerConfig(UpdateRuleConfig):
    """The update rule, learning rate schedule, weight decay, gradient clipping and parameter groups."""

    keys_decide = ("result",)

    learning_rate: float = Field(ge=0, description="peak learning rate")
    schedule: Literal["cosine", "linear", "wsd", "constant", "inverse_sqrt"] = Field(
        "cosine",
        description="learning rate after the warm-up. wsd: constant, then a decay; inverse_sqrt: peak /"
        " sqrt(step / warmup_steps). The schedule is over tokens instead of steps if the stage's length is given in"
        " tokens",
    )
    warmup_steps: int = Field(0, ge=0)
    warmup_tokens: int | None = Field(
        None, ge=1, description="replaces warmup_steps if the stage's length is given in tokens"
    )
    start_at_zero: bool = Field(
        False, description="the first step has a learning rate of 0, and the schedule is one step late (Megatron)"
    )
    decay_steps: int | None = Field(None, ge=1, description="wsd: length of the decay; default: a fifth of the stage")
    decay_tokens: int | None = Field(
        None, ge=1, description="replaces decay_steps if the stage's length is given in tokens"
    )
    decay_shape: Literal["linear", "1-sqrt"] = Field(
        "linear", description="wsd: shape of the decay; 1-sqrt is steeper at first (arXiv 2405.18392)"
    )
    final_fraction: float = Field(
        0.1, ge=0, le=1, description="final learning rate / peak; unused by the schedules constant and inverse_sqrt"
    )
    weight_decay: float = Field(
        0.1, ge=0, description="decoupled weight decay, multiplied by the learning rate as in AdamW, for every rule"
    )
    weight_decay_mask: Literal["matrices", "matrices_and_embeddings", "all"] = Field(
        "matrices", description="parameters with weight decay; matrices: no norms, biases or embeddings"
    )
    clip_norm: float | None = Field(1.0, gt=0, description="clip gradients to this global norm; null: no clipping")
    groups: tuple[GroupConfig, ...] = Field(
        (),
        description="parameter groups; if several groups match a parameter and set the same key, the last one applies",
    )

    @model_validator(mode="after")
    def _check_schedule(self) -> OptimizerConfig:
        if self.schedule == "inverse_sqrt" and not (self.warmup_steps or self.warmup_tokens):
            raise ValueError("schedule inverse_sqrt needs a warm-up, whose length decides how fast the rate falls")
        own = {"decay_steps": None, "decay_tokens": None, "decay_shape": "linear"}
        if self.schedule != "wsd" and (found := [key for key, no in own.items() if getattr(self, key) != no]):
            raise ValueError(f"{found[0]} belongs to schedule wsd, and schedule is {self.schedule}")
        return self
