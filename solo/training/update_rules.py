"""The update rules of optax, applied to each layer's matrix of a stacked parameter.

Muon and Adafactor treat a parameter as one matrix. Our parameters are stacked over layers and experts, and those of
attention have separate axes for heads and head dimensions; `ParameterSpec.matrix_axes` gives the axes that a product
sums over. Each layer is orthogonalised, factored, clipped and scaled separately, as if it were a parameter of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from optax import contrib

from solo.config import UpdateRuleConfig
from solo.model.declare import ParameterSpec
from solo.model.parameters import Parameters

# Roles of the matrices that Muon orthogonalises. Patch embeddings and heads are excluded (Jordan 2024).
MUON_ROLES = ("hidden", "residual", "router")
# The mesh axes that parameters are sharded over.
SHARDED = ("fsdp", "tensor")


def rule_name(rule: UpdateRuleConfig, spec: ParameterSpec) -> str:
    """Returns the name of a parameter's update rule. With Muon, AdamW updates everything except layers' matrices."""
    return "adamw" if rule.name == "muon" and spec.role not in MUON_ROLES else rule.name


def update_rule(
    name: str, rule: UpdateRuleConfig, specs: Mapping[str, ParameterSpec], mesh: Mesh | None = None
) -> list[Any]:
    """Returns the gradient transformations of an update rule; together, they map gradients to directions.

    Args:
        name: see `rule_name`.
        rule: the keys of the update rule.
        specs: all parameters; the rule updates some of them.
        mesh: the devices that the parameters are sharded over; default: one device.
    """
    dtype = _dtype(rule.first_moment_dtype)
    if name == "adamw":
        adam = optax.scale_by_adam(rule.beta1, rule.beta2, rule.eps, mu_dtype=dtype)
        return [adam if rule.second_moment_dtype == "float32" else _low_precision_nu(adam)]
    if name == "lion":
        return [optax.scale_by_lion(rule.beta1, rule.beta2, mu_dtype=dtype)]
    if name == "sgd":
        return [optax.trace(rule.momentum, bool(rule.nesterov), dtype) if rule.momentum else optax.identity()]
    if name == "adafactor":
        moment = [] if rule.beta1 is None else [optax.ema(rule.beta1, debias=False, accumulator_dtype=dtype)]
        return [_adafactor(rule, specs), *moment]
    return [*_muon(rule, specs, mesh), optax.stateless(lambda tree, _: _muon_scaled(tree, rule, specs))]


def _dtype(name: str) -> Any:
    return None if name == "float32" else jnp.dtype(name)


def _low_precision_nu(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns Adam with a second moment that is stored in bfloat16 and updated in float32.

    optax has an option for the dtype of the first moment only, and keeps the second one in the dtype of its state.
    """

    def init(parameters: Parameters) -> Any:
        state = adam.init(parameters)
        return state._replace(nu=optax.tree.cast(state.nu, jnp.bfloat16))

    return optax.GradientTransformation(init, adam.update)


def _muon(
    rule: UpdateRuleConfig, specs: Mapping[str, ParameterSpec], mesh: Mesh | None
) -> list[optax.GradientTransformation]:
    """Returns momentum, sharded like the parameters, and its orthogonalisation, with whole matrices on each device.

    If the sharded momentum were used directly, XLA would gather whole stacks of layers twice per Newton-Schulz step.
    """
    muon = rule.muon
    assert muon is not None

    def dimensions(tree: Parameters) -> dict[str, contrib.MuonDimensionNumbers]:
        return {path: contrib.MuonDimensionNumbers(*specs[path].matrix_axes[1:]) for path in tree}

    momentum = contrib.scale_by_muon(
        ns_steps=0,  # "aol" preconditions within the first step, so zero steps leave the momentum unchanged
        preconditioning="aol",
        beta=muon.momentum,
        eps=rule.eps,
        mu_dtype=_dtype(rule.first_moment_dtype),
        nesterov=muon.nesterov,
        weight_dimension_numbers=dimensions,
    )
    orthogonal = contrib.scale_by_muon(
        ns_steps=muon.newton_schulz_steps,
        beta=0.0,
        eps=rule.eps,
        nesterov=False,
        weight_dimension_numbers=lambda tree: jax.tree.map(lambda _: contrib.MuonDimensionNumbers(1, 2), tree),
    )

    def orthogonalised(path: str, value: Any) -> Any:
        matrices = as_matrices(value, specs[path])
        matrices = matrices.reshape(-1, *matrices.shape[-2:])
        spread = _spread(matrices, mesh)
        directions, _ = orthogonal.update(spread, orthogonal.init(spread))
        return directions[: len(matrices)].reshape(value.shape)

    return [
        momentum,
        optax.stateless(lambda tree, _: {path: orthogonalised(path, value) for path, value in tree.items()}),
    ]


def _spread(matrices: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Returns matrices [B, ., .] sharded over B on the devices that the parameters are sharded over, zero-padded."""
    if mesh is None or (shares := prod(mesh.shape[axis] for axis in SHARDED)) == 1:
        return matrices
    padded = jnp.pad(matrices, ((0, -len(matrices) % shares), (0, 0), (0, 0)))
    return jax.lax.with_sharding_constraint(padded, NamedSharding(mesh, PartitionSpec(SHARDED)))


def _muon_scaled(tree: Parameters, rule: UpdateRuleConfig, specs: Mapping[str, ParameterSpec]) -> Parameters:
    assert rule.muon is not None
    rms, found = rule.muon.consistent_rms, {}
    for path, value in tree.items():
        spec = specs[path]
        inputs, outputs = (prod(spec.shape[axis] for axis in axes) for axes in spec.matrix_axes[1:])
        factor = max(1.0, outputs / inputs) ** 0.5 if rms is None else rms * max(inputs, outputs) ** 0.5
        found[path] = value * factor
    return found


def _adafactor(rule: UpdateRuleConfig, specs: Mapping[str, ParameterSpec]) -> optax.GradientTransformation:
    """Returns Adafactor on each layer's matrix. The state holds rows and columns of `as_matrices`."""
    keys = rule.adafactor
    assert keys is not None
    factored = optax.scale_by_factored_rms(
        decay_rate=keys.decay_rate, min_dim_size_to_factor=keys.min_dim_size_to_factor, epsilon=rule.eps
    )
    further = [optax.identity()]
    if keys.clipping_threshold is not None:
        further.append(optax.clip_by_block_rms(keys.clipping_threshold))
    if keys.multiply_by_parameter_scale:
        further.append(optax.scale_by_param_block_rms())
    rest = optax.chain(*further)
    # The count is the same for all layers of a stack.
    stacked = optax.FactoredState(None, 0, 0, 0)

    def update_one(gradient: Any, state: optax.FactoredState, parameter: Any) -> Any:
        direction, state = factored.update(gradient, state, parameter)
        direction, _ = rest.update(direction, rest.init(parameter), parameter)
        return direction, state

    def init(parameters: Parameters) -> optax.FactoredState:
        found = {}
        for path, value in parameters.items():
            one = factored.init
            for _ in specs[path].matrix_axes[0]:
                one = jax.vmap(one, out_axes=stacked)
            found[path] = one(as_matrices(value, specs[path]))
        return _joined(found)

    def update(
        gradients: Parameters, state: optax.FactoredState, parameters: Parameters | None = None
    ) -> tuple[Parameters, optax.FactoredState]:
        assert parameters is not None
        directions, found = {}, {}
        for path, gradient in gradients.items():
            spec, one = specs[path], update_one
            for _ in spec.matrix_axes[0]:
                one = jax.vmap(one, in_axes=(0, stacked, 0), out_axes=(0, stacked))
            own = optax.FactoredState(state.count, state.v_row[path], state.v_col[path], state.v[path])
            direction, found[path] = one(as_matrices(gradient, spec), own, as_matrices(parameters[path], spec))
            directions[path] = direction.reshape(gradient.shape)
        return directions, _joined(found)

    return optax.GradientTransformation(init, update)


def as_matrices(value: Any, spec: ParameterSpec) -> Any:
    """Returns a parameter as stacked matrices [..., inputs, outputs], or as stacked vectors [..., outputs]."""
    stack, *sides = spec.matrix_axes
    sizes = [prod(value.shape[axis] for axis in axes) for axes in sides if axes]
    return value.reshape(*(value.shape[axis] for axis in stack), *sizes)


def _joined(states: Mapping[str, optax.FactoredState]) -> optax.FactoredState:
    """Returns one state from those of the parameters, whose counts are equal."""
    count = next(iter(states.values())).count
    return optax.FactoredState(count, *({path: each[field] for path, each in states.items()} for field in (1, 2, 3)))
