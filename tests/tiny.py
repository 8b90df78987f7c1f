"""A model small enough to be built anew in every test, with weights large enough to disagree about answers."""

import jax
import numpy as np
from PIL import Image as PillowImage

from solo.config import Config, MeshConfig, parse_config
from solo.data.tokenizer import Tokenizer
from solo.model.parameters import ModelDefinition
from solo.monolith import Monolith
from solo.sharding.mesh import make_mesh

MODEL = {
    "width": 32,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "ffn_width": 48,
    "experts": {"ffn": "modality", "qkv": "modality"},
    "init_std": 0.3,
    "attention": "dense",  # compiles in half the time
}


def tiny_config(attention: str = "causal", **sections) -> Config:
    """Visual experts, patches of 8 pixels; `sections` replace or add parts of the config."""
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
        "image": {"patch_size": 8, "max_side": 64, "attention": attention},
        "model": MODEL,
        "stages": [stage],
    }
    return parse_config({**config, **sections})


def tiny_monolith(tokenizer: Tokenizer, config: Config | None = None, devices: int = 1, seed: int = 0) -> Monolith:
    """Random weights, on one device unless told otherwise."""
    config = config or tiny_config()
    definition = ModelDefinition(config.model, config.image, tokenizer.vocab_size)
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    return Monolith(config, tokenizer, jax.jit(definition.initialise)(jax.random.key(seed)), mesh)


def picture(width: int, height: int, seed: int) -> PillowImage.Image:
    """Noise."""
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
