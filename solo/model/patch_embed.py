"""Patch embeddings, which map the pixels of a patch to the model's width: one module per `PatchEmbedConfig.kind`.

Every kind is local to the patch: a visual token depends only on its own pixels and its position in the image or tile.

Letters besides those of solo/batch.py: a patch has n x n inner patches of i x i pixels, with I channels each; G is the
side of the table of positions.
"""

from __future__ import annotations

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from solo.batch import BEGIN_MARKER, ROW_MARKER
from solo.config import ImageConfig, ModelConfig, PatchEmbedConfig
from solo.model.declare import Role, normal, zeros
from solo.model.dense import add_bias
from solo.model.norms import LayerNorm, rms_normalised

# PyTorch's default, which published embedders use regardless of the decoder's eps.
_PYTORCH_EPS = 1e-5
# The parameter of PyTorch's bicubic kernel; Pillow and jax.image have -0.5.
_BICUBIC_A = -0.75


class Linear(nnx.Module):
    """x @ kernel + bias."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        shape: tuple[int, int],
        axes: tuple[str, str],
        std: float,
        *,
        role: Role = "input",
        uses: int = 1,
        bias: bool = True,
    ):
        self.kernel = normal(rngs, shape, axes, std, "patch_embed", role, uses=Fraction(uses))
        self.bias = zeros(shape[1:], ("norm",), "patch_embed") if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., out]."""
        return add_bias(x @ self.kernel[...].astype(x.dtype), self.bias)


class LinearEmbed(Linear):
    """A linear projection of the pixels of a patch."""

    def __init__(self, config: ModelConfig, image: ImageConfig, rngs: nnx.Rngs):
        shape = image.patch_size**2 * 3, config.width
        super().__init__(rngs, shape, ("pixels", "embed"), config.init_std, bias=config.patch_embed.bias)

    def __call__(self, pixels: jax.Array, grid_BP2: jax.Array | None = None) -> jax.Array:
        """Maps normalised pixels [B, P, p*p*3], channel-major, to [B, P, D]."""
        return super().__call__(pixels)


class ConvEmbed(nnx.Module):
    """A convolution of stride i, GELU, and a linear projection of the n x n inner patches (EVEv2, NEO).

    With `rotation_theta`, the channels of each inner patch are rotated by its place before the projection (NEO).
    """

    def __init__(self, config: ModelConfig, image: ImageConfig, rngs: nnx.Rngs):
        inner, std = _Inner(config.patch_embed, image), config.init_std
        self.geometry, self.rotation_theta = inner, config.patch_embed.rotation_theta
        self.inner = inner.embed(rngs, std)
        self.merge = Linear(rngs, (inner.count * inner.channels, config.width), ("inner", "embed"), std)
        self.begin_marker = _vector(rngs, config.width, std) if image.markers else None
        self.row_marker = _vector(rngs, config.width, std) if image.markers else None

    def __call__(self, pixels: jax.Array, grid_BP2: jax.Array) -> jax.Array:
        """Maps normalised pixels [B, P, p*p*3], channel-major, at grid places [B, P, 2] to [B, P, D]."""
        x = jax.nn.gelu(self.inner(self.geometry.cut(pixels)), approximate=False)
        if self.rotation_theta is not None:
            x = rotate_by_place(x, *self.geometry.rows_and_columns(grid_BP2), self.rotation_theta)
        x = self.merge(x.reshape(*x.shape[:2], x.shape[2] * x.shape[3]))  # not -1: P may be 0
        for marker, place in ((self.begin_marker, BEGIN_MARKER), (self.row_marker, ROW_MARKER)):
            if marker is not None:
                x = jnp.where(grid_BP2[..., :1] == place, marker[...].astype(x.dtype), x)
        return x


class GridEmbed(nnx.Module):
    """A convolution of stride i, learned positions, then LayerNorm and an MLP over the inner patches (InternVL)."""

    def __init__(self, config: ModelConfig, image: ImageConfig, rngs: nnx.Rngs):
        embed, std, width = config.patch_embed, config.init_std, config.width
        inner = _Inner(embed, image)
        self.geometry, self.class_slot, self.grid_side = inner, embed.class_slot, embed.grid_side or 0
        self.tile_side = image.tile_size // inner.size
        self.inner = inner.embed(rngs, std)
        places = embed.class_slot + self.grid_side**2
        self.positions = normal(rngs, (places, inner.channels), ("places", "inner"), std, "patch_embed", "embedding")
        self.class_token = _vector(rngs, inner.channels, std) if embed.class_slot else None
        joined = inner.count * inner.channels
        self.norm = LayerNorm(joined, _PYTORCH_EPS, "patch_embed")
        self.hidden = Linear(rngs, (joined, width), ("inner", "embed"), std)
        # The same axes as `hidden`, so that both are sharded in the same way.
        self.out = Linear(rngs, (width, width), ("inner", "embed"), std, role="hidden")

    def __call__(self, pixels: jax.Array, grid_BP2: jax.Array) -> jax.Array:
        """Maps normalised pixels [B, P, p*p*3] at places in the tile [B, P, 2] to [B, P, D]."""
        x = self.inner(self.geometry.cut(pixels))
        x = x + self.table()[self.geometry.places(grid_BP2, self.tile_side)].astype(x.dtype)
        x = self.norm(x.reshape(*x.shape[:2], x.shape[2] * x.shape[3]))  # not -1: P may be 0
        return self.out(jax.nn.gelu(self.hidden(x), approximate=False))

    def table(self) -> jax.Array:
        """Returns the position embeddings of a tile, float32 [side^2, I], resampled unless the tile is G x G."""
        table = self.positions[...][int(self.class_slot) :]
        if self.tile_side == self.grid_side:
            return table
        weights = jnp.asarray(bicubic_weights(self.grid_side, self.tile_side))
        square = table.reshape(self.grid_side, self.grid_side, -1)
        return jnp.einsum("yg,xh,ghi->yxi", weights, weights, square).reshape(self.tile_side**2, -1)


class NormedEmbed(nnx.Module):
    """LayerNorm, one matrix, LayerNorm, a learned place, LayerNorm, an RMS norm, and one matrix (Gemma 4 unified).

    The embedding of a place is the sum of one for the column and one for the row, from tables of G entries each.
    """

    def __init__(self, config: ModelConfig, image: ImageConfig, rngs: nnx.Rngs):
        embed, std, pixels = config.patch_embed, config.init_std, image.patch_size**2 * 3
        assert embed.inner_width is not None
        assert embed.grid_side is not None
        width, table = embed.inner_width, (embed.grid_side, embed.inner_width)
        self.eps = config.norm_eps
        self.norm_in = LayerNorm(pixels, _PYTORCH_EPS, "patch_embed")
        self.hidden = Linear(rngs, (pixels, width), ("pixels", "embed"), std)
        self.norm_hidden = LayerNorm(width, _PYTORCH_EPS, "patch_embed")
        self.columns = normal(rngs, table, ("places", "inner"), std, "patch_embed", "embedding")
        self.rows = normal(rngs, table, ("places", "inner"), std, "patch_embed", "embedding")
        self.norm_out = LayerNorm(width, _PYTORCH_EPS, "patch_embed")
        # The same axes as `hidden`, so that both are sharded in the same way.
        self.out = Linear(rngs, (width, config.width), ("inner", "embed"), std, role="hidden", bias=False)

    def __call__(self, pixels: jax.Array, grid_BP2: jax.Array) -> jax.Array:
        """Maps normalised pixels [B, P, p*p*3], channel-major, at grid places [B, P, 2] to [B, P, D]."""
        x = self.norm_hidden(self.hidden(self.norm_in(pixels)))
        place = self.columns[...][grid_BP2[..., 1]] + self.rows[...][grid_BP2[..., 0]]
        return self.out(rms_normalised(self.norm_out(x + place.astype(x.dtype)), self.eps))


def _vector(rngs: nnx.Rngs, size: int, std: float) -> nnx.Param:
    return normal(rngs, (size,), ("norm",), std, "patch_embed", "vector")


EMBEDDERS = {"linear": LinearEmbed, "conv": ConvEmbed, "grid": GridEmbed, "normed": NormedEmbed}


class _Inner:
    """The geometry of the n x n inner patches of a patch. Static numbers only."""

    def __init__(self, config: PatchEmbedConfig, image: ImageConfig):
        assert config.inner_size is not None
        assert config.inner_width is not None
        self.size, self.channels = config.inner_size, config.inner_width
        self.side = image.patch_size // config.inner_size
        self.count = self.side**2

    def embed(self, rngs: nnx.Rngs, std: float) -> Linear:
        """Returns the linear projection of the pixels of an inner patch."""
        shape = 3 * self.size**2, self.channels
        return Linear(rngs, shape, ("pixels", "inner"), std, uses=self.count)

    def cut(self, pixels: jax.Array) -> jax.Array:
        """Cuts [B, P, p*p*3] into inner patches [B, P, n*n, i*i*3], row by row, each channel-major."""
        n, i = self.side, self.size
        x = pixels.reshape(*pixels.shape[:2], 3, n, i, n, i)
        return x.transpose(0, 1, 3, 5, 2, 4, 6).reshape(*pixels.shape[:2], n * n, 3 * i * i)

    def places(self, grid_BP2: jax.Array, tile_side: int) -> jax.Array:
        """Returns int32 [B, P, n*n]: row-major places of the inner patches in a tile of tile_side x tile_side."""
        rows, columns = self.rows_and_columns(grid_BP2)
        return rows * tile_side + columns

    def rows_and_columns(self, grid_BP2: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the row and the column of each inner patch in its image or tile, int32 [B, P, n*n] each."""
        offset = np.arange(self.side)
        rows = grid_BP2[..., 0, None] * self.side + np.repeat(offset, self.side)
        columns = grid_BP2[..., 1, None] * self.side + np.tile(offset, self.side)
        return rows, columns


def rotate_by_place(x_BPNI: jax.Array, rows_BPN: jax.Array, columns_BPN: jax.Array, theta: float) -> jax.Array:
    """Rotates the channels of N inner patches by their column (first half of I) and row (second half), in float32.

    Within a half, pair j is the channels (2j, 2j + 1). Its angle in radians is the column or row times
    theta^(-2j / (I/2)). This is the 2-D rotation of NEO's patch embedder (arXiv 2510.14979).
    """
    channels = x_BPNI.shape[-1]
    half = channels // 2
    frequency = theta ** -(jnp.arange(0, half, 2, dtype=jnp.float32) / half)
    places = jnp.stack([columns_BPN, rows_BPN], axis=-1).astype(jnp.float32)
    angles = jnp.repeat(places[..., None] * frequency, 2, axis=-1).reshape(x_BPNI.shape)
    x = x_BPNI.astype(jnp.float32)
    is_first = np.arange(channels) % 2 == 0
    partner = jnp.where(is_first, -jnp.roll(x, -1, axis=-1), jnp.roll(x, 1, axis=-1))
    return (x * jnp.cos(angles) + partner * jnp.sin(angles)).astype(x_BPNI.dtype)


def bicubic_weights(source: int, target: int) -> np.ndarray:
    """Returns float32 [target, source]: PyTorch's `interpolate(mode="bicubic", align_corners=False)` along one axis.

    There is no antialiasing, and the four neighbours are clamped at the border.
    """
    centre = (np.arange(target) + 0.5) * source / target - 0.5
    first = np.floor(centre).astype(int)
    weights = np.zeros((target, source))
    for neighbour in range(-1, 3):
        distance = np.abs(centre - (first + neighbour))
        near = ((_BICUBIC_A + 2) * distance - (_BICUBIC_A + 3)) * distance**2 + 1
        far = _BICUBIC_A * (((distance - 5) * distance + 8) * distance - 4)
        column = np.clip(first + neighbour, 0, source - 1)
        np.add.at(weights, (np.arange(target), column), np.where(distance <= 1, near, far))
    return weights.astype(np.float32)
