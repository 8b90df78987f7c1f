"""The section about the optimizer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from solo.config.base import Section


class OptimizerConfig(Section):
    """AdamW, its schedule, and clipping."""

    keys_decide = ("result",)

    learning_rate: float = Field(ge=0, description="peak")
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    start_at_zero: bool = Field(
        False, description="the first step's rate is 0 and the schedule runs one step late (Megatron)"
    )
    decay_steps: int | None = Field(None, ge=1, description="wsd: length of the decay; default: a fifth of the stage")
    final_fraction: float = Field(0.1, ge=0, le=1, description="final learning rate / peak")
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    weight_decay_mask: Literal["matrices", "matrices_and_embeddings", "all"] = Field(
        "matrices", description="parameters that decay; matrices: not norms, biases, embeddings"
    )
    clip_norm: float | None = Field(1.0, gt=0)
