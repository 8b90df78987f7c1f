"""The feed-forward network of a layer."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from solo.config import ModelConfig
from solo.model.declare import normal, zeros
from solo.model.dense import Dense, add_bias


class FFN(nnx.Module):
    """A feed-forward network.

    swiglu  down(silu(gate(x)) * up(x)) (arXiv 2002.05202)
    geglu   down(gelu(gate(x)) * up(x)), with the tanh form of GELU, as in Gemma
    relu2   down(relu(up(x))^2), as in Persimmon
    """

    def __init__(self, config: ModelConfig, down_std: float, rngs: nnx.Rngs):
        width, hidden, std, biased = config.width, config.ffn_width, config.init_std, config.bias == "all"
        gated = config.ffn != "relu2"
        self.activation = partial(jax.nn.gelu, approximate=True) if config.ffn == "geglu" else jax.nn.silu
        self.gate = normal(rngs, (width, hidden), ("embed", "ffn"), std, "ffn", "hidden") if gated else None
        self.up = normal(rngs, (width, hidden), ("embed", "ffn"), std, "ffn", "hidden")
        self.down = normal(rngs, (hidden, width), ("ffn", "embed"), down_std, "ffn", "residual")
        self.gate_bias = zeros((hidden,), ("ffn",), "ffn") if biased and gated else None
        self.up_bias = zeros((hidden,), ("ffn",), "ffn") if biased else None
        self.down_bias = zeros((width,), ("norm",), "ffn") if biased else None

    def __call__(self, x: Any, dense: Dense) -> Any:
        """Maps [B, ., D] to [B, ., D]."""
        if self.gate is None:
            up = add_bias(dense(x, self.up), self.up_bias)
            inner = jax.tree.map(lambda u: jnp.square(jax.nn.relu(u)), up)
        else:
            gate, up = dense(x, self.gate, self.up)
            gate, up = add_bias(gate, self.gate_bias), add_bias(up, self.up_bias)
            inner = jax.tree.map(lambda g, u: self.activation(g) * u, gate, up)
        return add_bias(dense(inner, self.down), self.down_bias)
