"""The optimizer of a stage: an update rule for every trained parameter, weight decay, clipping, and carried state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from solo.config import ConfigError, ModelConfig, OptimizerConfig, StageConfig, UpdateRuleConfig
from solo.model.declare import ParameterSpec
from solo.model.parameters import Parameters
from solo.model.parametrisation import eps_scale, step_scale
from solo.training.groups import group_of, grouped, rate_scales, trainable_paths
from solo.training.update_rules import rule_name, update_rule

# States of update rules that contain arrays for each parameter.
_STATES = (
    optax.ScaleByAdamState,
    optax.ScaleByLionState,
    optax.TraceState,
    optax.EmaState,
    optax.FactoredState,
    optax.contrib.MuonState,
)
# Fields of these states that contain one value for all parameters.
_OF_ALL = ("count", "ns_coeffs")


class Updated(NamedTuple):
    """How a parameter is updated.

    label  name of the parameters that one transformation updates together, also in the optimizer's state
    name   see `rule_name`
    rule   the keys of the update rule
    """

    label: str
    name: str
    rule: UpdateRuleConfig


def update_rules(config: OptimizerConfig, specs: Mapping[str, ParameterSpec]) -> dict[str, Updated]:
    """Returns the update rule of every parameter. Raises ConfigError if a group matches no parameter."""
    groups, found = group_of(config.groups, specs, "optimizer"), {}
    for path, spec in specs.items():
        number = groups.get(path)
        rule = config if number is None else config.groups[number].optimizer
        assert rule is not None
        name = rule_name(rule, spec)
        found[path] = Updated(name if number is None else f"{name}_{number}", name, rule)
    return found


def decays(spec: ParameterSpec, kind: Literal["matrices", "matrices_and_embeddings", "all"]) -> bool:
    """Returns whether weight decay applies to a parameter; see `OptimizerConfig.weight_decay_mask`."""
    if kind == "all":
        return spec.role != "constant"
    return spec.is_matrix or (kind == "matrices_and_embeddings" and spec.role == "embedding")


def make_optimizer(
    config: OptimizerConfig,
    specs: Mapping[str, ParameterSpec],
    model: ModelConfig,
    *,
    carries: bool = False,
    mesh: Mesh | None = None,
) -> optax.GradientTransformation:
    """Returns a transformation to update directions; the caller multiplies them by minus the learning rate.

    Gradients are first clipped by their global norm over the trainable parameters; gradients of a group with its own
    `clip_norm` are clipped by their norm over the group. Step sizes and eps follow the model's parametrisation. With
    `carries`, every parameter has its own step count, so that `carry_state` can mix parameters with different ones.
    `mesh` is the mesh of the parameters; default: one device.

    Raises:
        ConfigError: a group matches no parameter, or the parametrisation does not know the update rule.
    """
    rules = update_rules(config, specs)
    clip, update = _clip(config, specs), _by_rule(rules, specs, carries, mesh)
    if model.parametrisation.kind != "standard":
        # Adam on gradients divided by s is Adam with eps times s.
        eps = {path: eps_scale(spec, model) if rules[path].name == "adamw" else 1.0 for path, spec in specs.items()}
        clip = optax.chain(clip, _times({path: 1 / scale for path, scale in eps.items()}))
        steps = {path: step_scale(spec, model, rules[path].name, rules[path].rule) for path, spec in specs.items()}
        update = optax.chain(update, _times(steps))
    return optax.chain(clip, update, *_decay(config, specs))


def _times(factors: Mapping[str, float]) -> optax.GradientTransformation:
    return optax.stateless(lambda tree, _: {path: value * factors[path] for path, value in tree.items()})


def _clip(config: OptimizerConfig, specs: Mapping[str, ParameterSpec]) -> optax.GradientTransformation:
    groups = group_of(config.groups, specs, "clip_norm")
    if not groups:
        return optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()

    def clip(gradients: Parameters, _: Any) -> Parameters:
        found: Parameters = {}
        for number in {groups.get(path) for path in gradients}:
            own = {path: value for path, value in gradients.items() if groups.get(path) == number}
            norm = config.clip_norm if number is None else config.groups[number].clip_norm
            found |= optax.clip_by_global_norm(norm).update(own, optax.EmptyState())[0] if norm else own
        return {path: found[path] for path in gradients}

    return optax.stateless(clip)


def _decay(config: OptimizerConfig, specs: Mapping[str, ParameterSpec]) -> list[optax.GradientTransformation]:
    """Returns a transformation for each value of weight decay. The first is for the section's own value."""
    own = grouped(config.groups, specs, "weight_decay")
    found = []
    for decay in dict.fromkeys([config.weight_decay, *own.values()]):
        mask = {
            path: own[path] == decay and decays(spec, "all")
            if path in own
            else decay == config.weight_decay and decays(spec, config.weight_decay_mask)
            for path, spec in specs.items()
        }
        found.append(optax.add_decayed_weights(decay, lambda tree, mask=mask: {path: mask[path] for path in tree}))
    return found


def _by_rule(
    rules: Mapping[str, Updated], specs: Mapping[str, ParameterSpec], carries: bool, mesh: Mesh | None
) -> optax.GradientTransformation:
    """Returns the update rules, each applied to its parameters. If there are several, the state is keyed by label."""

    def made(updated: Updated) -> optax.GradientTransformation:
        parts = update_rule(updated.name, updated.rule, specs, mesh)
        parts = [_one_by_one(part) for part in parts] if carries else parts
        return parts[0] if len(parts) == 1 else optax.chain(*parts)

    every = {updated.label: made(updated) for updated in rules.values()}

    def labels(tree: Parameters) -> list[str]:
        return sorted({rules[path].label for path in tree})

    def of(label: str, tree: Parameters) -> Parameters:
        return {path: value for path, value in tree.items() if rules[path].label == label}

    def init(parameters: Parameters) -> Any:
        states = {label: every[label].init(of(label, parameters)) for label in labels(parameters)}
        return states if len(states) > 1 else next(iter(states.values()))

    def update(gradients: Parameters, state: Any, parameters: Parameters | None = None) -> tuple[Parameters, Any]:
        assert parameters is not None
        if len(found := labels(gradients)) == 1:
            return every[found[0]].update(gradients, state, parameters)
        done = {
            label: every[label].update(of(label, gradients), state[label], of(label, parameters)) for label in found
        }
        return (
            {path: done[rules[path].label][0][path] for path in gradients},
            {label: new for label, (_, new) in done.items()},
        )

    return optax.GradientTransformation(init, update)


def _one_by_one(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns the same transformation with a state, and thus a step count, for each parameter.

    Every field of its state holds a value for each path.
    """

    def init(parameters: Parameters) -> Any:
        return _by_field({path: rule.init({path: value}) for path, value in parameters.items()})

    def update(gradients: Parameters, state: Any, parameters: Parameters | None = None) -> tuple[Parameters, Any]:
        directions: Parameters = {}
        states = {}
        for path, gradient in gradients.items():
            own = type(state)(
                *(
                    value[path] if field in _OF_ALL else {path: value[path]}
                    for field, value in zip(state._fields, state, strict=True)
                )
            )
            one = None if parameters is None else {path: parameters[path]}
            direction, states[path] = rule.update({path: gradient}, own, one)
            directions |= direction
        return directions, _by_field(states)

    return optax.GradientTransformation(init, update)


def _by_field(states: Mapping[str, Any]) -> Any:
    """Returns a state each of whose fields maps paths to values, from the states of single parameters."""
    kind = type(next(iter(states.values())))
    return kind(
        *(
            {
                path: getattr(state, field) if field in _OF_ALL else getattr(state, field)[path]
                for path, state in states.items()
            }
            for field in kind._fields
        )
    )


def carry_state(fresh: optax.OptState, previous: optax.OptState) -> optax.OptState:
    """Carries moments and counts over to a new stage, for the parameters that the previous stage trained.

    Args:
        fresh: the new stage's initial state, of an optimizer made with `carries`.
        previous: the state that the previous stage ended with.

    Returns:
        `fresh`, with the previous moments and counts of all parameters except those of `begin_anew`. These start at
        zero with count 0, so their bias correction is that of a first step.
    """
    old, anew = _by_path(previous), begin_anew(fresh, previous)
    given: set[int] = set()

    def carried(kind: type, number: int, path: str, leaf: Any) -> Any:
        if path in anew:
            return leaf
        before = old[path][kind][number]
        # Values that parameters shared, such as a count, need one buffer per parameter, because a step donates them.
        shared = before.ndim == 0 or id(before) in given
        given.add(id(before))
        before = before.astype(leaf.dtype)
        return jax.device_put(jnp.copy(before) if shared else before, leaf.sharding)

    def carry(node: Any) -> Any:
        if not _is_state(node):
            return node
        fields = ({path: carried(type(node), n, path, leaf) for path, leaf in f.items()} for n, f in enumerate(node))
        return type(node)(*fields)

    return jax.tree.map(carry, fresh, is_leaf=_is_state)


def begin_anew(fresh: optax.OptState, previous: optax.OptState) -> set[str]:
    """Returns the parameters whose state `carry_state` does not carry over. A state is carried over completely or not.

    These parameters had no state, the state of another update rule, or state of other shapes. A count without its
    moments would correct and weight the new moments wrongly.
    """
    old = _by_path(previous)

    def fits(before: list[Any] | None, now: list[Any]) -> bool:
        return before is not None and [field.shape for field in before] == [field.shape for field in now]

    return {
        path
        for path, states in _by_path(fresh).items()
        if not all(fits(old.get(path, {}).get(kind), now) for kind, now in states.items())
    }


def _by_path(state: optax.OptState) -> dict[str, dict[type, list[Any]]]:
    """Returns path -> the fields of its states, by their type."""
    found: dict[str, dict[type, list[Any]]] = {}
    for node in filter(_is_state, jax.tree.leaves(state, is_leaf=_is_state)):
        for path in {path for field in node if isinstance(field, Mapping) for path in field}:
            fields = [field[path] if isinstance(field, Mapping) else field for field in node]
            found.setdefault(path, {})[type(node)] = fields
    return found


def _is_state(node: Any) -> bool:
    return isinstance(node, _STATES)


def check_stages(stages: Iterable[StageConfig], specs: Mapping[str, ParameterSpec], model: ModelConfig) -> None:
    """Checks the optimizers of all stages before the first one begins.

    Raises:
        ConfigError: a glob matches no parameter, the parametrisation does not know an update rule, or a stage would
            carry the state of another update rule.
    """
    before: dict[str, Updated] = {}
    for stage in stages:
        rate_scales(specs, stage)
        make_optimizer(stage.optimizer, specs, model)
        rules = update_rules(stage.optimizer, specs)
        trained = trainable_paths(specs, stage)
        if stage.optimizer_state == "carry":
            for path in trained:
                _check_carried(stage, path, before.get(path), rules[path])
        before = {path: rules[path] for path in trained}


def _check_carried(stage: StageConfig, path: str, before: Updated | None, now: Updated) -> None:
    if before is None:
        return
    what = f"stage {stage.name!r}: optimizer_state: carry cannot carry the state of {path}"
    if before.name != now.name:
        raise ConfigError(
            f"{what}: the stage before updates it by {before.name}, this one by {now.name}. Set optimizer_state=reset,"
            " or keep the update rule"
        )
    if before.rule.adafactor != now.rule.adafactor or (before.rule.beta1 is None) != (now.rule.beta1 is None):
        raise ConfigError(
            f"{what}: its shape follows adafactor's keys, which differ from those of the stage before. Set"
            " optimizer_state=reset, or keep the keys"
        )


def subset(parameters: Parameters, paths: Iterable[str]) -> Parameters:
    """Returns the parameters at these paths."""
    return {path: parameters[path] for path in paths}
