"""Digests by which answers are recognised as those of the same model to the same prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from solo.config import ConfigError
from solo.data.record import Image, Turn
from solo.inference.monolith import Monolith


def weights_digest(model: Monolith) -> str:
    """Returns a digest of the names, shapes and bits of all parameters, the same on every mesh.

    It is computed on the devices. Integers are added modulo 2^32, so the order of the sum does not matter.
    """
    sums = {path: np.asarray(found).tolist() for path, found in _all_sums(dict(model.parameters)).items()}
    parts = [[path, list(value.shape), str(value.dtype), sums[path]] for path, value in model.parameters.items()]
    return text_digest(json.dumps(sorted(parts)))


def check_finite(model: Monolith, name: str) -> None:
    """Refuses weights that are not finite. They would give the same answer to everything.

    Raises:
        ConfigError: a parameter has an element that is NaN or infinite.
    """
    fine = _all_finite(dict(model.parameters))
    wrong = sorted(path for path, value in fine.items() if not np.asarray(value))
    if wrong:
        raise ConfigError(
            f"{name}: {len(wrong)} of {len(fine)} parameters hold NaN or infinite values, the first is {wrong[0]}; the"
            " training has diverged, or the file is damaged. Take an earlier checkpoint"
        )


def config_digest(model: Monolith) -> str:
    """Returns a digest of the config that determines an answer: architecture, image geometry, template, tokenizer."""
    sections = [section.model_dump(mode="json") for section in (model.config.model, model.config.image)]
    probe = model.runs([Turn("user", ("a",)), Turn("assistant", ("b",)), Turn("user", ("c",))], open_turn=True)
    tokens = [int(token) for run in probe if not isinstance(run, Image) for token in run.tokens]
    sequence = model.config.sequence.model_dump(mode="json")
    parts: list[Any] = [*sections, sequence, model.tokenizer.fingerprint, tokens, list(model.template.stops)]
    return text_digest(json.dumps(parts, sort_keys=True))


def text_digest(text: str) -> str:
    """Returns a digest of a text, 16 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def image_digest(image: Image) -> str:
    """Returns a digest of an encoded image."""
    return hashlib.sha256(image.data).hexdigest()[:16]


def prompt_digest(turns: Sequence[Turn], images: dict[bytes, str]) -> str:
    """Returns a digest of a prompt: its roles, texts and encoded images.

    Args:
        turns: the prompt.
        images: digests that are known; those of other images are added.
    """
    parts = []
    for turn in turns:
        content = []
        for part in turn.content:
            if isinstance(part, Image):
                if part.data not in images:
                    images[part.data] = image_digest(part)
                content.append({"image": images[part.data]})
            else:
                content.append({"text": part})
        parts.append([turn.role, content])
    return text_digest(json.dumps(parts))


@jax.jit
def _all_finite(parameters: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {path: jnp.isfinite(value).all() for path, value in parameters.items()}


@jax.jit
def _all_sums(parameters: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {path: _sums(value) for path, value in parameters.items()}


def _sums(x: jax.Array) -> jax.Array:
    """Returns two sums of mixed bits, uint32 [2]. Each element is mixed with its place (MurmurHash3's finalizer)."""
    width = jnp.dtype(x.dtype).itemsize * 8
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{width}")).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    mixed = bits ^ (place * jnp.uint32(0x9E3779B9))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    mixed = mixed ^ (mixed >> 16)
    return jnp.stack([jnp.sum(mixed), jnp.sum(mixed * (2 * place + 1))])
