"""Norms of gradients, updates and parameters, by component of the model."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from solo.model.count import component_title
from solo.model.declare import ParameterSpec
from solo.model.parameters import Parameters

# component -> gradient, update or parameter -> float32 []
Norms = dict[str, dict[str, jax.Array]]


def norms_if(
    due: jax.Array,
    specs: Mapping[str, ParameterSpec],
    gradients: Parameters,
    updates: Parameters,
    parameters: Parameters,
) -> Norms:
    """Returns the L2 norms of the trained parameters of every component, or zeros if they are not due.

    Args:
        due: bool []: whether to compute the norms.
        specs: the parameters of the model; components are those of `solo plan --count`.
        gradients: gradients before clipping.
        updates: updates, which are subtracted from the parameters.
        parameters: parameters before the update.
    """
    paths: dict[str, list[str]] = {}
    for path in parameters:
        paths.setdefault(component_title(specs[path]), []).append(path)

    def of(tree: Parameters, component: str) -> jax.Array:
        return optax.global_norm([tree[path] for path in paths[component]])

    def compute() -> Norms:
        trees = {"gradient": gradients, "update": updates, "parameter": parameters}
        return {component: {name: of(tree, component) for name, tree in trees.items()} for component in paths}

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(compute))
    return jax.lax.cond(due, compute, lambda: zeros)
