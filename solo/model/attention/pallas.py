"""Code that all Pallas kernels share: sizes, padding to whole blocks, products, scores, gradients.

Letters besides those of solo/batch.py: R key slots; of a tile: Q queries, J keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from math import e, log2
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from solo.model.attention.tiles import HIDDEN, SAVED, Tiles, pad_slots, round_up, tiles

# Contracted axes of a product of matrices.
NN, NT, TN = ((1,), (0,)), ((1,), (1,)), ((0,), (0,))


class Sizes(NamedTuple):
    """The static sizes of a call."""

    rows: int
    queries: int
    patches: int
    text: int
    query_block: int
    key_block: int
    dim: int  # of queries and keys
    value_dim: int
    scale: float  # the factor on the scores
    interpret: bool

    @property
    def padded_queries(self) -> int:
        """The number of queries, padded to whole blocks."""
        return round_up(self.queries, self.query_block)

    @property
    def padded_patches(self) -> int:
        """The number of patches, padded to whole blocks; the text starts there."""
        return round_up(self.patches, self.key_block)

    @property
    def padded_text(self) -> int:
        """The number of text slots, padded to whole blocks."""
        return round_up(self.text, self.key_block)

    @property
    def padded_keys(self) -> int:
        """The number of keys of both regions, padded to whole blocks."""
        return self.padded_patches + self.padded_text


def check_dtypes(q: Array, k: Array, v: Array) -> None:
    """Raise ValueError if the dtypes differ, or are neither float32 nor bfloat16."""
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(
            f"the pallas kernels take queries, keys and values all float32 or all bfloat16, not {q.dtype}, {k.dtype} "
            f"and {v.dtype}; cast them, or choose implementation='blocks'"
        )


def pad_regions(sizes: Sizes, x_BR: Array) -> Array:
    """Pad each region of the keys [B, R, ...] to whole blocks."""
    patches = pad_slots(x_BR[:, : sizes.patches], sizes.padded_patches)
    return jnp.concatenate([patches, pad_slots(x_BR[:, sizes.patches :], sizes.padded_text)], axis=1)


def pad_bounds(sizes: Sizes, intervals_BS4: Array) -> Array:
    """Returns the intervals, int32 [B, 4, S], padded to whole query blocks. Text counts from the row's start."""
    bounds_BS4 = intervals_BS4 + jnp.array([0, 0, sizes.padded_patches, sizes.padded_patches])
    return pad_slots(bounds_BS4, sizes.padded_queries).swapaxes(1, 2)


def seen_tiles(sizes: Sizes, intervals_BS4: Array) -> Tiles:
    """Returns which keys of each tile its queries attend to."""
    return tiles(
        intervals_BS4,
        num_patches=sizes.patches,
        num_text=sizes.text,
        block=sizes.query_block,
        key_block=sizes.key_block,
    )


def product(a: Array, b: Array, contracted: tuple[tuple[int], tuple[int]]) -> Array:
    """Returns the product of two matrices, in float32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(a, b, (contracted, ((), ())), precision=precision, preferred_element_type=jnp.float32)


def scores(sizes: Sizes, first: Array, second: Array, visible: Array | None) -> Array:
    """Returns the float32 scores of queries [Q, C] and keys [J, C], or the other way round; HIDDEN where not `visible`.

    The scores are exponents of 2, so that the softmax needs no other factor.
    """
    found = product(first, second, NT) * (log2(e) * sizes.scale)
    return found if visible is None else jnp.where(visible, found, HIDDEN)


def differentiable(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Array]:
    """Returns attention with a custom gradient: (sizes, q, k, v, bounds, visits) -> out.

    forward   the same arguments -> out, and the log of each query's total weight
    backward  the same arguments, then (out, log of the total weight, d_out) -> d_q, d_k, d_v
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def attend(sizes: Sizes, q: Array, k: Array, v: Array, bounds: Array, visits: Any) -> Array:
        return attend_and_keep(sizes, q, k, v, bounds, visits)[0]

    def attend_and_keep(sizes: Sizes, *arguments: Any) -> tuple:
        out, log_total = checkpoint_name(forward(sizes, *arguments), SAVED)
        return out, (*arguments, out, log_total)

    def gradients(sizes: Sizes, kept: tuple, d_out: Array) -> tuple:
        *arguments, out, log_total = kept
        return *backward(sizes, *arguments, (out, log_total, d_out)), None, None

    attend.defvjp(attend_and_keep, gradients)
    return attend
