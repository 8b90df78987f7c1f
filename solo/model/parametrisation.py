"""Scales initial weights, learning rates and multipliers with a model's size (`ParametrisationConfig`).

muP (Yang et al. 2022, arXiv 2203.03466, table 8) keeps activations and their updates the same size at every width, so
a learning rate tuned at a small width also works at a large one. CompleteP (Dey et al. 2025, arXiv 2505.01618, table 1,
alpha = 1) does the same for the depth. Both are factors on the standard parametrisation that are 1 at the base size;
m is width / base_width, d is layers / base_layers (1 except in CompleteP):

    role of a parameter    initial scale   Adam's step   Adam's eps   in the forward pass
    input, embedding       1               1             1/m          embeddings, patch embedder
    hidden, residual       1/sqrt(m)       1/m           1/(m d)      output of a residual branch: 1/d
    router                 1/m             1/m           1/(m d)
    head                   1               1             1/m          logits: 1/m, tied or not
    norm, bias, vector     1               1             1/(m d)      outside the layers: 1/m

Queries are scaled by sqrt(base_head_dim) / C in total, which is muP's 1/d attention. Weight decay is not scaled: the
learning rate times the decay is the same for every matrix. Both assume that F / D is the same as at the base size.
"""

from __future__ import annotations

from solo.config import ConfigError, ModelConfig, UpdateRuleConfig
from solo.model.declare import ParameterSpec


def width_factor(config: ModelConfig) -> float:
    """m; 1 in the standard parametrisation."""
    base = config.parametrisation.base_width
    return 1.0 if config.parametrisation.kind == "standard" or base is None else config.width / base


def depth_factor(config: ModelConfig) -> float:
    """d; 1 except in CompleteP."""
    base = config.parametrisation.base_layers
    return config.layers / base if config.parametrisation.kind == "completep" and base else 1.0


def residual_multiplier(config: ModelConfig) -> float:
    """Returns the factor on the output of a residual branch."""
    return 1 / depth_factor(config)


def logits_multiplier(config: ModelConfig) -> float:
    """Returns the factor on the logits."""
    return 1 / width_factor(config)


def query_multiplier(config: ModelConfig) -> float:
    """Returns the factor on the queries, on top of the 1 / sqrt(C) of attention."""
    base = config.parametrisation.base_head_dim
    if config.parametrisation.kind == "standard" or base is None:
        return 1.0
    return (base / config.dim_per_head) ** 0.5


def initial_scale(spec: ParameterSpec, config: ModelConfig) -> float:
    """Returns the factor on a parameter's initial scale in the standard parametrisation."""
    m, d = width_factor(config), depth_factor(config)
    scale = {"hidden": m**-0.5, "residual": m**-0.5, "router": 1 / m}.get(spec.role, 1.0)
    # The standard parametrisation divides residual outputs by sqrt(depth). CompleteP uses a multiplier instead.
    return scale * d**0.5 if spec.role == "residual" else scale


def step_scale(
    spec: ParameterSpec, config: ModelConfig, rule: str = "adamw", keys: UpdateRuleConfig | None = None
) -> float:
    """Returns the factor on the step of an update rule.

    With any rule, the spectral norm of a step of the layers' matrices should scale like sqrt(outputs / inputs) with the
    width (Yang et al. 2023, arXiv 2310.17813). A step of Adam or Lion has entries of equal size, and its singular
    values are as unequal as those of the gradient, so its factor is 1/m. A step of Muon has equal singular values. A
    step of Adafactor is relative to the scale of the parameter, which the initial scale has already reduced.

    Raises:
        ConfigError: the rule is `sgd`, whose steps grow with the gradient and have no scaling rule.
    """
    m = width_factor(config)
    if config.parametrisation.kind != "standard" and rule == "sgd":
        raise ConfigError(
            f"model.parametrisation.kind is {config.parametrisation.kind}, which has no rule for optimizer sgd: its"
            " steps grow with the gradients. Use adamw, lion, muon or adafactor, or kind: standard"
        )
    if spec.role not in ("hidden", "residual", "router"):
        return 1.0
    if rule == "muon":
        # sqrt(outputs / inputs) divided by the spectral norm of a step, both relative to the base size.
        norm = m**0.5 if keys is not None and keys.muon is not None and keys.muon.consistent_rms is not None else 1.0
        return (m**-0.5 if spec.role == "router" else 1.0) / norm
    if rule == "adafactor" and keys is not None and keys.adafactor is not None:
        relative = keys.adafactor.multiply_by_parameter_scale
        return initial_scale(spec, config) ** -1 / m if relative else 1 / m
    return 1 / m


def eps_scale(spec: ParameterSpec, config: ModelConfig) -> float:
    """Returns the factor on Adam's eps, since a larger model has smaller gradients."""
    depth = depth_factor(config) if spec.in_layers else 1.0
    return 1 / (width_factor(config) * depth)
