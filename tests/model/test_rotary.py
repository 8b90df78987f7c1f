"""Rotary positions against the tables of transformers, and the sections of M-RoPE by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solo.config import ModelConfig, RopeScalingConfig
from solo.model.rotary import rotary_angles, rotate, rotate_by_product

BASE = {"width": 64, "layers": 1, "heads": 2, "kv_heads": 1, "ffn_width": 8, "rope_theta": 1e4}


def config(**switches) -> ModelConfig:
    return ModelConfig(**{**BASE, **switches})


def transformers_angles(length: int, **settings) -> np.ndarray:
    """Angles [N, C/2] of transformers' Llama with these rope settings, from its cosine and sine."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    llama = transformers.LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=16,
        rope_parameters={"rope_theta": 1e4, **settings},
    )
    cos, sin = LlamaRotaryEmbedding(llama)(torch.zeros(1, length, 64), torch.arange(length)[None])
    return np.arctan2(sin.numpy(), cos.numpy())[0, :, :16]


@pytest.mark.parametrize("length", [9, 16, 17, 40])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (None, {"rope_type": "default"}),
        ({"kind": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"kind": "dynamic", "factor": 2.0}, {"rope_type": "dynamic", "factor": 2.0}),
        (
            {"kind": "llama3", "factor": 8.0, "low_frequency_factor": 1.0, "high_frequency_factor": 4.0},
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        ),
    ],
)
def test_scaling_equals_that_of_transformers(length, ours, theirs) -> None:
    scaling = RopeScalingConfig(trained_length=16, **ours) if ours else None
    angles = rotary_angles(jnp.arange(length)[None], config(rope_scaling=scaling))[0]
    expected = transformers_angles(length, **theirs)
    np.testing.assert_allclose(np.sin(angles), np.sin(expected), atol=2e-5)
    np.testing.assert_allclose(np.cos(angles), np.cos(expected), atol=2e-5)


def test_dynamic_scaling_is_per_row() -> None:
    scaled = config(rope_scaling=RopeScalingConfig(kind="dynamic", factor=2.0, trained_length=16))
    positions = jnp.stack([jnp.arange(40), jnp.arange(40) % 16])
    both = rotary_angles(positions, scaled)
    np.testing.assert_array_equal(both[1], rotary_angles(positions[1:], config())[0])
    assert not np.allclose(both[0], rotary_angles(positions[:1], config())[0])


def test_sections_follow_their_axis() -> None:
    sections = config(rope_sections=(4, 6, 6))
    positions = jnp.asarray([[[5, 7, 11]]])
    plain = [rotary_angles(jnp.asarray([[value]]), config())[0, 0] for value in (5, 7, 11)]
    expected = np.concatenate([plain[0][:4], plain[1][4:10], plain[2][10:]])
    np.testing.assert_array_equal(rotary_angles(positions, sections)[0, 0], expected)


def test_a_part_of_a_head_may_be_left_unrotated() -> None:
    half = config(rope_fraction=0.5)
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 32)).astype(np.float32)
    angles = rotary_angles(jnp.arange(3)[None], half)
    turned = rotate(x, angles)
    np.testing.assert_array_equal(turned[..., 16:], x[..., 16:])
    pairs = (x[..., :8] + 1j * x[..., 8:16]) * np.exp(1j * np.asarray(angles))[:, :, None]
    np.testing.assert_allclose(turned[..., :8] + 1j * turned[..., 8:16], pairs, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rotated", [16, 32], ids=["half of a head", "all of it"])
def test_rotation_by_a_product_is_exact(rotated: int, dtype) -> None:
    """Equal bit by bit; the gradient is equal up to the order of a sum of two."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 5, 3, 32)), dtype)
    angles = jnp.asarray(rng.uniform(-30, 30, (2, 5, rotated // 2)), jnp.float32)
    found, expected = rotate_by_product(x, angles), rotate(x, angles)
    np.testing.assert_array_equal(found.astype(np.float32), expected.astype(np.float32))
    weights = jnp.asarray(rng.standard_normal(x.shape), jnp.float32)

    def gradient(function):
        return jax.grad(lambda x: jnp.sum(function(x, angles).astype(jnp.float32) * weights))(x).astype(np.float32)

    np.testing.assert_allclose(
        gradient(rotate_by_product), gradient(rotate), rtol=0, atol=2e-2 if dtype == jnp.bfloat16 else 1e-6
    )
