"""Rotary position embeddings (RoFormer, arXiv 2104.09864): the angles and the rotation.

Letters besides those of solo/batch.py: R rotated dimensions of a head.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from solo.config import ModelConfig, RopeScalingConfig

AXES = ("time", "row", "column")


class Span(NamedTuple):
    """Neighbouring dimensions of a head that are rotated together: dimension i with dimension i + width / 2.

    width     number of dimensions
    theta     base of the frequencies, theta^(-2 i / width)
    sections  number of pairs that turn with the time, the row and the column, one axis after another
    turning   number of pairs that turn at all, the first ones; None: all of them
    """

    width: int
    theta: float
    sections: tuple[int, int, int]
    turning: int | None = None


def spans(config: ModelConfig) -> tuple[Span, ...]:
    """Returns the rotated spans of a head; they come first.

    A head in parts (NEO) has a span for each, which turns with one axis. Any other head has one span, which turns with
    the time, or with all axes in sections (M-RoPE, arXiv 2409.12191).
    """
    if config.rope_pairs == "head":
        dim = config.dim_per_head
        return (Span(dim, config.rope_theta, (dim // 2, 0, 0), config.rotary_dim // 2),)
    if config.head_parts is None:
        sections = config.rope_sections or (config.rotary_dim // 2, 0, 0)
        return (Span(config.rotary_dim, config.rope_theta, sections),)

    def pairs(width: int, axis: str) -> tuple[int, int, int]:
        time, row, column = (width // 2 * (axis == each) for each in AXES)
        return time, row, column

    return tuple(
        Span(part.width, part.theta or config.rope_theta, pairs(part.width, part.axis)) for part in config.head_parts
    )


def rotary_angles(positions: jax.Array, config: ModelConfig) -> jax.Array:
    """Returns the angles [B, S, R/2] in radians, float32: the position times the frequency of each pair of all spans.

    positions  int32 [B, S], or [B, S, 3]: time, row and column
    """
    return jnp.concatenate([_angles(positions, span, config.rope_scaling) for span in spans(config)], axis=-1)


def _angles(positions: jax.Array, span: Span, scaling: RopeScalingConfig | None) -> jax.Array:
    if positions.ndim == 2:
        position_of_pair = positions[..., None]
    else:
        position_of_pair = positions[..., np.repeat(np.arange(len(AXES)), span.sections)]
    return position_of_pair.astype(jnp.float32) * frequencies(positions, span, scaling)


def frequencies(positions: jax.Array, span: Span, scaling: RopeScalingConfig | None) -> jax.Array:
    """Returns the frequencies of the pairs, float32 [R/2], or [B, 1, R/2] if they depend on the row's length.

    A row's length is its largest position + 1. In a packed row, this is the length of the longest document. Dynamic NTK
    affects only rows longer than `trained_length`.
    """
    exponents = jnp.arange(0, span.width, 2, dtype=jnp.float32) / span.width
    if scaling is not None and scaling.kind == "dynamic":
        length_B = positions.max(axis=tuple(range(1, positions.ndim))) + 1
        base_B = span.theta * _growth(length_B.astype(jnp.float32), scaling, span.width)
        return base_B[:, None, None] ** -exponents
    frequency = span.theta**-exponents
    if span.turning is not None:
        frequency = jnp.where(np.arange(len(frequency)) < span.turning, frequency, 0.0)
    if scaling is None:
        return frequency
    return frequency / scaling.factor if scaling.kind == "linear" else _llama3(frequency, scaling)


def _growth(length: jax.Array, scaling: RopeScalingConfig, dim: int) -> jax.Array:
    """Returns the factor on the base: (f L / trained - (f - 1))^(R / (R - 2)) beyond the trained length; 1 up to it."""
    beyond = jnp.maximum(length, scaling.trained_length) / scaling.trained_length
    return (scaling.factor * beyond - (scaling.factor - 1)) ** (dim / (dim - 2))


def _llama3(frequency: jax.Array, scaling: RopeScalingConfig) -> jax.Array:
    """Applies the scaling of Llama 3.1, which lowers the frequency of pairs with few turns in the trained length."""
    turns = scaling.trained_length * frequency / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequency * (kept + (1 - kept) / scaling.factor)


def rotate(x_BSHC: jax.Array, angles: jax.Array, widths: tuple[int, ...] | None = None) -> jax.Array:
    """Rotate the pairs (i, i + R/2) of each span, the half-split convention of Hugging Face weights, in float32.

    Dimensions after the last span are unchanged.

    x_BSHC  queries or keys
    angles  float32 [B, S, R/2], as from `rotary_angles`
    widths  the width of each span; default: one span
    """
    widths = widths or (2 * angles.shape[-1],)
    *parts, rest = jnp.split(x_BSHC, np.cumsum(widths), axis=-1)
    places = np.cumsum(widths)[:-1] // 2
    cosines, sines = (jnp.split(table[:, :, None], places, axis=-1) for table in (jnp.cos(angles), jnp.sin(angles)))

    def turned(part: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        first, second = jnp.split(part.astype(jnp.float32), 2, axis=-1)
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(part.dtype)

    return jnp.concatenate([*map(turned, parts, cosines, sines), rest], axis=-1)


def rotate_by_product(x_BSHC: jax.Array, angles: jax.Array, widths: tuple[int, ...] | None = None) -> jax.Array:
    """`rotate` for TPUs: swaps the partners of each pair by multiplying by a permutation matrix, which is exact.

    Half a head fills half a register, so splitting and joining heads is expensive. By libtpu 0.0.42's cycle counts, a
    step takes 8% fewer cycles for a 2B model on v5e-16, 2% fewer for a 7B model on v5p-128, and the same for the 7B
    model on v5e-256.
    """
    C, R = x_BSHC.shape[-1], 2 * angles.shape[-1]
    widths = widths or (R,)
    starts = np.cumsum(widths) - widths
    swapped = [start + (np.arange(width) + width // 2) % width for start, width in zip(starts, widths, strict=True)]
    partner = np.concatenate([*swapped, np.arange(R, C)])
    partners = jnp.einsum(
        "bshc,cd->bshd",
        x_BSHC,
        np.eye(C)[:, partner].astype(x_BSHC.dtype),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )

    def table(first: jax.Array, second: jax.Array, rest: jax.Array) -> jax.Array:
        places = starts[1:] // 2
        halves = zip(jnp.split(first, places, axis=-1), jnp.split(second, places, axis=-1), strict=True)
        return jnp.concatenate([each for pair in halves for each in pair] + [rest], axis=-1)[:, :, None]

    cos, sin, shape = jnp.cos(angles), jnp.sin(angles), (*angles.shape[:-1], C - R)
    cos, sin = table(cos, cos, jnp.ones(shape)), table(-sin, sin, jnp.zeros(shape))
    return (x_BSHC.astype(jnp.float32) * cos + partners * sin).astype(x_BSHC.dtype)
