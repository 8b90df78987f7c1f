"""Rotary position embeddings (RoFormer, arXiv 2104.09864): the angles and the rotation.

Letters besides those of solo/batch.py: R rotated dimensions of a head (`ModelConfig.rotary_dim`).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from solo.config import ModelConfig, RopeScalingConfig


def rotary_angles(positions: jax.Array, config: ModelConfig) -> jax.Array:
    """Returns the angles [B, S, R/2] in radians, float32: the position times the frequency of each pair.

    positions  int32 [B, S], or [B, S, 3] (time, row, column) with `rope_sections`, which assigns each pair to an axis,
               as M-RoPE does (arXiv 2409.12191)
    """
    frequency = frequencies(positions, config)
    if config.rope_sections is not None:
        axis_of_pair = np.repeat(np.arange(3), config.rope_sections)
        return positions[..., axis_of_pair].astype(jnp.float32) * frequency
    return positions[..., None].astype(jnp.float32) * frequency


def frequencies(positions: jax.Array, config: ModelConfig) -> jax.Array:
    """Returns the frequencies of the pairs, float32 [R/2], or [B, 1, R/2] if they depend on the row's length.

    A row's length is its largest position + 1. In a packed row, this is the length of the longest document. Dynamic NTK
    affects only rows longer than `trained_length`.
    """
    exponents = jnp.arange(0, config.rotary_dim, 2, dtype=jnp.float32) / config.rotary_dim
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "dynamic":
        length_B = positions.max(axis=tuple(range(1, positions.ndim))) + 1
        base_B = config.rope_theta * _growth(length_B.astype(jnp.float32), scaling, config.rotary_dim)
        return base_B[:, None, None] ** -exponents
    frequency = config.rope_theta**-exponents
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


def rotate(x_BSHC: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotate the pairs (i, i + R/2), the half-split convention of Hugging Face weights, in float32.

    Dimensions from R on are unchanged.
    """
    rotated, rest = jnp.split(x_BSHC, [2 * angles.shape[-1]], axis=-1)
    first, second = jnp.split(rotated.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([turned.astype(x_BSHC.dtype), rest], axis=-1)


def rotate_by_product(x_BSHC: jax.Array, angles: jax.Array) -> jax.Array:
    """`rotate` for TPUs: swaps the partners of each pair by multiplying by a permutation matrix, which is exact.

    Half a head fills half a register, so splitting and joining heads is expensive. By libtpu 0.0.42's cycle counts, a
    step takes 8% fewer cycles for a 2B model on v5e-16, 2% fewer for a 7B model on v5p-128, and the same for the 7B
    model on v5e-256.
    """
    C, R = x_BSHC.shape[-1], 2 * angles.shape[-1]
    partner = np.concatenate([(np.arange(R) + R // 2) % R, np.arange(R, C)])
    partners = jnp.einsum(
        "bshc,cd->bshd",
        x_BSHC,
        np.eye(C)[:, partner].astype(x_BSHC.dtype),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    cos, sin, rest = jnp.cos(angles), jnp.sin(angles), (*angles.shape[:-1], C - R)
    cos = jnp.concatenate([cos, cos, jnp.ones(rest)], axis=-1)[:, :, None]
    sin = jnp.concatenate([-sin, sin, jnp.zeros(rest)], axis=-1)[:, :, None]
    return (x_BSHC.astype(jnp.float32) * cos + partners * sin).astype(x_BSHC.dtype)
