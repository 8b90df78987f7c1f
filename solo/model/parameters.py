"""Parameters as a plain mapping, path -> array, and the model as a pure function of them.

A path looks like `layers/ffn/patches/gate`. Layers are stacked along the first axis. Globs in configs, checkpoints and
shardings refer to parameters by these paths. The `ParameterSpec` of a parameter has its shape and metadata.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import jax
from flax import nnx

from solo.config import Config, ConfigError, ImageConfig, ModelConfig
from solo.model.declare import ParameterSpec
from solo.model.layer import Layer
from solo.model.parametrisation import initial_scale
from solo.model.transformer import Transformer

Parameters = dict[str, jax.Array]


@dataclass(frozen=True)
class ModelDefinition:
    """A model without its parameter values. `vocab_size` is the number of vocabulary rows without padding."""

    config: ModelConfig
    image: ImageConfig
    vocab_size: int

    @cached_property
    def _split(self) -> tuple[Any, dict[tuple[Any, ...], Any]]:
        # The key is an argument, because a key in a closure would make `eval_shape` draw real values.
        abstract = nnx.eval_shape(self._build, jax.random.key(0))
        graph, state = nnx.split(abstract)
        return graph, dict(nnx.to_flat_state(state))

    def _build(self, key: jax.Array) -> Transformer:
        return Transformer(self.config, self.image, self.vocab_size, nnx.Rngs(params=key))

    @cached_property
    def specs(self) -> dict[str, ParameterSpec]:
        """Path -> spec of every parameter, sorted by path."""
        found = {}
        for path, variable in self._split[1].items():
            stacked = ("layers",) if path[0] == "layers" else ()
            found["/".join(map(str, path))] = ParameterSpec(
                tuple(variable.shape),
                stacked + tuple(variable.axes),
                variable.component,
                variable.role,
                variable.region,
                variable.inputs,
                variable.uses,
            )
        return dict(sorted(found.items()))

    def initialise(self, key: jax.Array) -> Parameters:
        """Draw all parameters. A pure function of the key; jit it with the desired output shardings."""
        state = nnx.to_flat_state(nnx.state(self._build(key), nnx.Param))
        found = {"/".join(map(str, path)): variable[...] for path, variable in state}
        scales = {path: initial_scale(spec, self.config) for path, spec in self.specs.items()}
        return {path: found[path] * scale if scale != 1 else found[path] for path, scale in scales.items()}

    def bind(self, parameters: Parameters) -> Transformer:
        """Returns the model with these parameter values. Call it inside the jitted function."""
        graph, state = self._split
        flat = [(path, variable.replace(parameters["/".join(map(str, path))])) for path, variable in state.items()]
        return nnx.merge(graph, nnx.from_flat_state(flat))

    @cached_property
    def _layer(self) -> dict[str | None, tuple[Any, dict[tuple[Any, ...], Any]]]:
        return {kind: self._one_layer(self.config.of_type(kind)) for kind in self.config.layers_by_type}

    def _one_layer(self, config: ModelConfig) -> tuple[Any, dict[tuple[Any, ...], Any]]:
        abstract = nnx.eval_shape(lambda key: Layer(config, nnx.Rngs(params=key)), jax.random.key(0))
        graph, state = nnx.split(abstract)
        return graph, dict(nnx.to_flat_state(state))

    def bind_layer(self, parameters: Parameters, kind: str | None = None) -> Layer:
        """Returns one layer of a type with these parameter values, named as in `solo.model.by_layer.split_layers`."""
        graph, state = self._layer[kind]
        flat = [(path, variable.replace(parameters["/".join(map(str, path))])) for path, variable in state.items()]
        return nnx.merge(graph, nnx.from_flat_state(flat))

    def num_parameters(self) -> int:
        """Returns the number of parameters, including padding rows of the vocabulary."""
        return sum(prod(spec.shape) for spec in self.specs.values())


def define(config: Config, vocab_size: int | None) -> ModelDefinition:
    """Returns the model of a config.

    Args:
        config: the run; `model.vocab_size` defaults to the size of the tokenizer.
        vocab_size: number of tokens of the tokenizer; None without a tokenizer.

    Raises:
        ConfigError: the vocabulary has fewer rows than the tokenizer has tokens, or its size is not known.
    """
    rows = config.model.vocab_size or vocab_size
    if rows is None:
        raise ConfigError("model.vocab_size is needed: there is no tokenizer to take it from")
    if vocab_size is not None and vocab_size > rows:
        raise ConfigError(
            f"model.vocab_size is {rows}, but the tokenizer has {vocab_size} tokens; raise it to at least that"
        )
    return ModelDefinition(config.model, config.image, rows)
