"""A model small enough to build in every test, with weights large enough for distinct answers."""

from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image as PillowImage

from solo.config import Config, MeshConfig, dump_config, parse_config
from solo.data.text import Tokenizer
from solo.inference.monolith import Monolith
from solo.model.parameters import ModelDefinition
from solo.sharding.mesh import make_mesh
from solo.training.averages import Average
from solo.training.checkpoint import Checkpoints, Progress
from solo.training.step import Health, TrainState

MODEL = {
    "width": 32,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "ffn_width": 48,
    "experts": {"ffn": "modality", "qkv": "modality"},
    "attention_implementation": "dense",  # compiles in half the time
}


def tiny_config(attention: str = "causal", **sections) -> Config:
    """A config with visual experts and patches of 8 pixels; `sections` replace or add parts of it."""
    stage = {
        "name": "only",
        "mixture": {"digits": 1.0},
        "steps": 1,
        "batch_rows": 1,
        "optimizer": {"learning_rate": 0.1},
    }
    config = {
        "name": "tiny",
        "data": {"sources": {"digits": {"reader": "digits"}}},
        "image": {"patch_size": 8, "max_side": 64, "mask": attention},
        "model": MODEL,
        "stages": [stage],
    }
    return parse_config({**config, **sections})


@cache
def _weights(vocab_size: int) -> dict:
    config, rng = tiny_config(), np.random.default_rng(0)
    specs = ModelDefinition(config.model, config.image, vocab_size).specs
    matrices = {path: rng.normal(0, 0.3, spec.shape) for path, spec in specs.items()}
    return {path: np.float32(1.0 + value if "norm" in path else value) for path, value in matrices.items()}


def tiny_monolith(tokenizer: Tokenizer, config: Config | None = None, devices: int = 1) -> Monolith:
    """A model with fixed random weights, by default on one device."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    return Monolith(config or tiny_config(), tokenizer, _weights(tokenizer.vocab_size), mesh)


def save_run(model: Monolith, folder: Path, *steps: int, ema: float | None = None) -> Path:
    """Writes a run's folder with a checkpoint per step; the parameters of step n are the model's times n.

    With `ema`, the checkpoints have an average of that name: of all but the head, times this number.
    """
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(dump_config(model.config))
    model.tokenizer.save(folder)
    checkpoints = Checkpoints(folder / "checkpoints", model.config.checkpoint)
    zero = jnp.zeros((), jnp.int32)
    for step in steps:
        parameters = jax.tree.map(lambda value, step=step: value * step, model.parameters)
        averages = {}
        if ema is not None:
            means = {path: value * ema for path, value in parameters.items() if path != "head"}
            averages = {"ema": Average(means, zero, zero)}
        state = TrainState(parameters, {}, (), Health(jnp.zeros(()), zero, zero), zero, averages=averages)
        checkpoints.save(state, Progress(step, 0, step, {}))
    checkpoints.close()
    return folder


def picture(width: int, height: int, seed: int) -> PillowImage.Image:
    """An image of noise."""
    return PillowImage.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


def image(width: int, height: int, seed: int) -> dict:
    """An image part of a message."""
    return {"type": "image", "image": picture(width, height, seed)}


def user(*content) -> dict:
    """A message."""
    return {"role": "user", "content": list(content)}


def assistant(*content) -> dict:
    """A message."""
    return {"role": "assistant", "content": list(content)}
