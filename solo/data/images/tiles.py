"""InternVL's tiles: which grid of squares an image is stretched onto (mono_internvl.md 1.2)."""

from __future__ import annotations

from functools import cache

import numpy as np

from solo.config import ImageConfig


def tile_grid(
    width: np.ndarray, height: np.ndarray, config: ImageConfig, images: int | np.ndarray = 1
) -> tuple[np.ndarray, np.ndarray]:
    """(columns, rows) of tiles for images of these sizes, int64, of the sizes' shape.

    Of all grids of `min_tiles` to `max_tiles` tiles, the one whose aspect ratio is nearest to the image's. Where
    several are equally near, the first by (tiles, columns) is taken, unless a later one would have less than twice
    as many pixels as the image: then the last such.

    Args:
        width: integers, in pixels.
        height: integers, in pixels.
        config: side and number of tiles.
        images: of the record that each image is from; with `share_tiles` they share the tiles evenly.
    """
    budget = np.maximum(config.max_tiles // np.asarray(images), 1) if config.share_tiles else config.max_tiles
    width, height, budgets = np.broadcast_arrays(width, height, budget)
    found = np.empty((*width.shape, 2), np.int64)
    for most in np.unique(budgets).tolist():
        chosen = budgets == most
        found[chosen] = _nearest(width[chosen], height[chosen], config, most)
    return found[..., 0], found[..., 1]


def _nearest(width: np.ndarray, height: np.ndarray, config: ImageConfig, most: int) -> np.ndarray:
    """int64 [n, 2]: columns and rows, for at most `most` tiles."""
    # Sources repeat sizes, and the search is long.
    sizes, inverse = np.unique(width.astype(np.int64) << 32 | height, return_inverse=True)
    width, height = sizes >> 32, sizes & 0xFFFFFFFF
    grids = _grids(config.min_tiles, most)
    aspect, pixels = width / height, width * height
    best = np.zeros(len(sizes), np.int64)
    least = np.full(len(sizes), np.inf)
    for number, (columns, rows) in enumerate(grids.tolist()):
        difference = np.abs(aspect - columns / rows)
        large = pixels > 0.5 * config.tile_size**2 * columns * rows
        best[(difference < least) | ((difference == least) & large)] = number
        least = np.minimum(least, difference)
    return grids[best][inverse]


@cache
def _grids(least: int, most: int) -> np.ndarray:
    """int64 [grids, 2]: (columns, rows), fewest tiles first; (1, 1) alone where none has so many."""
    pairs = [(i, j) for i in range(1, most + 1) for j in range(1, most // i + 1) if i * j >= least]
    return np.asarray(sorted(pairs, key=lambda pair: (pair[0] * pair[1], pair)) or [(1, 1)], np.int64)
