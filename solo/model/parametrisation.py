"""How initial scales, learning rates and multipliers follow a model's size (`ParametrisationConfig`).

muP (Yang et al. 2022, arXiv 2203.03466, table 8) keeps activations and their updates of one size over widths, so that
a learning rate tuned at a small width serves a large one. CompleteP (Dey et al. 2025, arXiv 2505.01618, table 1,
alpha = 1) does so over depths too. Both are written as factors on the standard parametrisation that are 1 at the base
size; m is width / base_width, d is layers / base_layers (1 but for CompleteP):

                     initial scale   Adam's step   Adam's eps   in the forward pass
    input            1               1             1/m          embeddings, patch embedder
    hidden           1/sqrt(m)       1/m           1/(m d)      output of a residual branch: 1/d
    router           1/m             1/m           1/(m d)
    head             1               1             1/m          logits: 1/m, tied or not
    norms, biases    1               1             1/(m d)      outside of the layers: 1/m

Queries are scaled by sqrt(base_head_dim) / C in all, muP's 1/d attention. Decay is not scaled: learning rate times
decay is the same for every matrix. They take it that F / D is that of the base size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from solo.config import ModelConfig

Role = Literal["input", "hidden", "router", "head", "vector"]

# Axes that grow with the width.
_WIDE = {"embed", "ffn", "heads", "kv_heads"}
# [D, D], though its axes are named like those of the matrix before it.
_HIDDEN = ("patch_embed/out/kernel",)


def role(path: str, axes: Sequence[str]) -> Role:
    """What a parameter is to the parametrisation, by which of its axes grow with the width."""
    matrix = [axis for axis in axes if axis not in ("layers", "head_dim")]
    if path == "head":
        return "head"
    if path.endswith("router"):
        return "router"
    matrix = [axis for axis in matrix if axis != "experts"]
    if len(matrix) < 2 or path.endswith("bias"):
        return "vector"
    return "hidden" if matrix[0] in _WIDE or path in _HIDDEN else "input"


def width_factor(config: ModelConfig) -> float:
    """m; 1 in the standard parametrisation."""
    base = config.parametrisation.base_width
    return 1.0 if config.parametrisation.kind == "standard" or base is None else config.width / base


def depth_factor(config: ModelConfig) -> float:
    """d; 1 unless it is CompleteP."""
    base = config.parametrisation.base_layers
    return config.layers / base if config.parametrisation.kind == "completep" and base else 1.0


def residual_multiplier(config: ModelConfig) -> float:
    """Of what a residual branch adds."""
    return 1 / depth_factor(config)


def logits_multiplier(config: ModelConfig) -> float:
    """Of the logits."""
    return 1 / width_factor(config)


def query_multiplier(config: ModelConfig) -> float:
    """Of the queries, besides the 1 / sqrt(C) of attention."""
    base = config.parametrisation.base_head_dim
    if config.parametrisation.kind == "standard" or base is None:
        return 1.0
    return (base / config.dim_per_head) ** 0.5


def initial_scale(path: str, axes: Sequence[str], config: ModelConfig) -> float:
    """Factor on a parameter as the standard parametrisation draws it."""
    m, d = width_factor(config), depth_factor(config)
    scale = {"hidden": m**-0.5, "router": 1 / m}.get(role(path, axes), 1.0)
    # The standard residual outputs shrink with the root of the depth; CompleteP has its multiplier instead.
    ends_branch = path.startswith("layers/") and path.split("/")[-1] in ("kernel", "down")
    return scale * d**0.5 if ends_branch else scale


def step_scale(path: str, axes: Sequence[str], config: ModelConfig) -> float:
    """Factor on Adam's step."""
    return 1 / width_factor(config) if role(path, axes) in ("hidden", "router") else 1.0


def eps_scale(path: str, axes: Sequence[str], config: ModelConfig) -> float:
    """Factor on Adam's eps: gradients are smaller in a larger model."""
    depth = depth_factor(config) if path.startswith("layers/") else 1.0
    return 1 / (width_factor(config) * depth)
