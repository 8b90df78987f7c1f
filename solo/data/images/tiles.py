"""InternVL's dynamic tiling: an image is stretched to a grid of square tiles.

The rule is the one in `internvl/train/dataset.py` of OpenGVLab/Mono-InternVL.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from solo.config import ImageConfig


def tile_grid(
    width: np.ndarray, height: np.ndarray, config: ImageConfig, images: int | np.ndarray = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (columns, rows) of tiles for images of these sizes, int64 arrays of the same shape.

    The grid has `min_tiles` to `max_tiles` tiles, and the aspect ratio closest to the image's. Ties go to the last grid
    with less than twice the image's pixels, or else to the first one by (tiles, columns).

    Args:
        width: integers, in pixels.
        height: integers, in pixels.
        config: side and number of tiles.
        images: number of images in the record of each image. With `share_tiles`, they share its tiles evenly.
    """
    budget = np.maximum(config.max_tiles // np.asarray(images), 1) if config.share_tiles else config.max_tiles
    width, height, budgets = np.broadcast_arrays(width, height, budget)
    found = np.empty((*width.shape, 2), np.int64)
    for most in np.unique(budgets).tolist():
        chosen = budgets == most
        found[chosen] = _nearest(width[chosen], height[chosen], config, most)
    return found[..., 0], found[..., 1]


def _nearest(width: np.ndarray, height: np.ndarray, config: ImageConfig, most: int) -> np.ndarray:
    """Returns (columns, rows) with at most `most` tiles, int64 [n, 2]."""
    # The search is slow and sizes repeat, so it runs once for each distinct size.
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
    """Returns (columns, rows) of all grids, int64 [grids, 2], fewest tiles first; [(1, 1)] if no grid fits."""
    pairs = [(i, j) for i in range(1, most + 1) for j in range(1, most // i + 1) if i * j >= least]
    return np.asarray(sorted(pairs, key=lambda pair: (pair[0] * pair[1], pair)) or [(1, 1)], np.int64)
