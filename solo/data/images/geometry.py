"""The rules of `ImageConfig.geometry`: sizes and patch counts of images, vectorized over whole sources.

Each rule matches published code bit for bit, including its floating-point arithmetic. `solo.data.images.patches`
applies the rule to pixels. If a rule rounds a side of a very thin image to zero, that side becomes one patch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from solo.config import ImageConfig
from solo.data.images.tiles import tile_grid

Sides = tuple[np.ndarray, np.ndarray]


class PatchGrid(NamedTuple):
    """The patches of images: `tiles` grids of `rows` x `columns` patches each, int64 arrays of one shape."""

    tiles: np.ndarray
    rows: np.ndarray
    columns: np.ndarray

    @property
    def patches(self) -> np.ndarray:
        """Number of patches in all tiles."""
        return self.tiles * self.rows * self.columns


def visual_tokens(grid: PatchGrid, config: ImageConfig) -> np.ndarray:
    """Returns the number of patch slots: patches and, with `markers`, one before the image and one after each row."""
    return grid.patches + (1 + grid.rows) * config.markers


def patch_grid(
    width: int | np.ndarray, height: int | np.ndarray, config: ImageConfig, images: int | np.ndarray = 1
) -> PatchGrid:
    """Returns the patch grids of images with these sizes in pixels.

    `images` is the number of images in the record of each image; see `ImageConfig.share_tiles` and `share_pixels`.
    """
    width, height = np.asarray(width, np.int64), np.asarray(height, np.int64)
    if config.geometry == "tiles":
        columns, rows = tile_grid(width, height, config, images)
        tiles = columns * rows
        side = np.full_like(tiles, config.tile_size // config.patch_size)
        return PatchGrid(tiles + (config.thumbnail & (tiles > 1)), side, side)
    columns, rows = (-(-side // config.patch_size) for side in resized(width, height, config, images))
    return PatchGrid(np.ones_like(rows), rows, columns)


def resized(width: np.ndarray, height: np.ndarray, config: ImageConfig, images: int | np.ndarray = 1) -> Sides:
    """Returns the (width, height) in pixels that images are resized to, int64. For all geometries except tiles.

    For `images`, see `patch_grid`.
    """
    if config.geometry == "padded":
        return _padded(width, height, config)
    sides = _native(width, height, config) if config.geometry == "native" else _area(width, height, config, images)
    wide, high = (np.maximum(side, config.patch_size) for side in sides)
    return wide, high


def too_thin(width: np.ndarray, height: np.ndarray, config: ImageConfig) -> np.ndarray:
    """Returns bool: whether the rule rounds a side of the image to zero. That side becomes one patch instead."""
    if config.geometry == "tiles":
        return np.zeros(np.shape(width), bool)
    rule = {"native": _native, "area": _area, "padded": _scaled_down}[config.geometry]
    wide, high = rule(np.asarray(width, np.int64), np.asarray(height, np.int64), config)
    return (wide == 0) | (high == 0)


def _native(width: np.ndarray, height: np.ndarray, config: ImageConfig) -> Sides:
    """Applies SOLO's rule (`image_utils.py` in Yangyi-Chen/SOLO), or SAIL's if `max_pixels` is set.

    The longer side is rounded up to whole patches and capped at `max_side`. The shorter side follows the aspect ratio,
    truncated to whole pixels, and is then rounded up. SAIL scales both sides down, rounding down, if their product is
    still above `max_pixels`.
    """
    patch = config.patch_size
    longer, shorter = np.maximum(width, height), np.minimum(width, height)
    long_side = np.minimum(_up(longer, patch), config.max_side)
    # Products stay far below 2^53, so this float64 division truncates exactly as in SOLO's Python code.
    short_side = _up((long_side * shorter / longer).astype(np.int64), patch)
    if config.max_pixels is not None:
        excess = long_side * short_side / config.max_pixels
        factor = np.sqrt(np.maximum(excess, 1.0))
        long_side, short_side = (
            np.where(excess > 1, (side / factor / patch).astype(np.int64) * patch, side)
            for side in (long_side, short_side)
        )
    landscape = width >= height
    return np.where(landscape, long_side, short_side), np.where(landscape, short_side, long_side)


def _area(width: np.ndarray, height: np.ndarray, config: ImageConfig, images: int | np.ndarray = 1) -> Sides:
    """Scales the area into [`min_pixels`, `max_pixels`], then rounds each side to whole patches.

    up       EVEv2's `process_images`, with both bounds equal
    nearest  EVEv2's training, without a lower bound; halves round to even
    within   `smart_resize` of Qwen2-VL and NEO: sides are rounded first, and scaled only if their product is out of
             bounds afterwards. The product may stay above the upper bound if one side is a single patch
    down     `get_aspect_ratio_preserving_size` of Gemma 4, with both bounds equal. If one side is rounded to zero, it
             becomes one patch, and the other as many as the rounded ratio of the sides
    """
    patch, pixels = config.patch_size, width * height
    least, most = config.min_pixels or 0, _most_pixels(config, images)
    if config.rounding == "within":
        sides = tuple(np.maximum(np.rint(side / patch).astype(np.int64), 1) * patch for side in (width, height))
        product = sides[0] * sides[1]
        down, up = np.sqrt(pixels / most), np.sqrt(least / pixels)
        small = (_floor(side / np.maximum(down, 1e-9), patch) for side in (width, height))
        large = (_ceil(side * up, patch) for side in (width, height))
        wide, high = (
            np.where(product > most, less, np.where(product < least, more, side))
            for side, less, more in zip(sides, small, large, strict=True)
        )
        return wide, high
    bound = np.where(pixels > most, most, np.maximum(pixels, least))
    if config.rounding == "down":
        factor = np.sqrt(bound / pixels)
        wide, high = (np.floor(factor * side / patch).astype(np.int64) for side in (width, height))
        longest = np.floor(bound / patch**2).astype(np.int64)
        return (
            np.where(wide == 0, 1, np.where(high == 0, np.minimum(width // height, longest), wide)) * patch,
            np.where(wide == 0, np.minimum(height // width, longest), np.where(high == 0, 1, high)) * patch,
        )
    factor = np.where(bound == pixels, 1.0, np.sqrt(pixels) / np.sqrt(bound))
    if config.rounding == "up":
        return _ceil(width / factor, patch), _ceil(height / factor, patch)
    wide, high = (np.rint(side / factor / patch).astype(np.int64) * patch for side in (width, height))
    return wide, high


def _most_pixels(config: ImageConfig, images: int | np.ndarray) -> float | np.ndarray:
    """Returns the upper bound on an image's pixels; see `ImageConfig.share_pixels`."""
    if config.max_pixels is None:
        return np.inf
    if not config.share_pixels:
        return config.max_pixels
    images = np.asarray(images)
    return np.where(images > 1, np.maximum(2 * config.max_pixels // images, config.min_pixels or 0), config.max_pixels)


def _padded(width: np.ndarray, height: np.ndarray, config: ImageConfig) -> Sides:
    wide, high = (np.maximum(side, 1) for side in _scaled_down(width, height, config))
    return wide, high


def _scaled_down(width: np.ndarray, height: np.ndarray, config: ImageConfig) -> Sides:
    """Applies Fuyu's rule: scales an image down to fit `max_width` x `max_height`, truncated to whole pixels."""
    scale = np.minimum(config.max_height / height, config.max_width / width)
    large = (width > config.max_width) | (height > config.max_height)
    wide, high = (np.where(large, (side * scale).astype(np.int64), side) for side in (width, height))
    return wide, high


def _up(side: np.ndarray, patch: int) -> np.ndarray:
    """Rounds integers up to a multiple of `patch`, int64."""
    return -(-side // patch) * patch


def _ceil(side: np.ndarray, patch: int) -> np.ndarray:
    return np.ceil(side / patch).astype(np.int64) * patch


def _floor(side: np.ndarray, patch: int) -> np.ndarray:
    return np.floor(side / patch).astype(np.int64) * patch
