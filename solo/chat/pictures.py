"""Pictures of a model's input: an image with its patches, and the attention weight of each patch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image as PillowImage

from solo.config import ImageConfig
from solo.data.rows.document import PATCH, Document

_LEAST_SIDE = 320  # smaller pictures are enlarged by whole factors
_LINE = (255, 255, 255)
_HOT = np.array([255, 80, 0], np.float32)


@dataclass(frozen=True)
class CutImage:
    """An image as the model reads it.

    pixels  uint8 [height, width, 3], put together from the patches; several tiles lie side by side
    slots   int64 [n], the patch slots of its patches; those of learned markers are left out
    boxes   int64 [n, 2], upper edge and left edge of each patch in `pixels`
    side    side length of a patch in pixels
    tiles   number of tiles; 1 if the image was not cut into tiles
    """

    pixels: np.ndarray
    slots: np.ndarray
    boxes: np.ndarray
    side: int
    tiles: int

    @property
    def caption(self) -> str:
        """Rows, columns, side and number of its patches, for display."""
        rows, columns = (self.boxes[: len(self.boxes) // self.tiles].max(axis=0) // self.side + 1).tolist()
        tiles = f"{self.tiles} tiles of " if self.tiles > 1 else ""
        return f"{tiles}{rows} x {columns} patches of {self.side} pixels: {len(self.slots):,} visual tokens"

    def with_grid(self) -> PillowImage.Image:
        """Returns the picture with lines between the patches."""
        return self._enlarged(self.pixels)

    def with_weights(self, weights_P: np.ndarray) -> PillowImage.Image:
        """Returns the picture, darkened where weights are small. The patch with the largest weight is the brightest."""
        weights = weights_P[self.slots]
        most = weights.max(initial=0)
        share = weights / most if most > 0 else weights
        found = self.pixels.astype(np.float32) * 0.35
        for (top, left), each in zip(self.boxes.tolist(), share.tolist(), strict=True):
            area = np.s_[top : top + self.side, left : left + self.side]
            bright = 0.6 * self.pixels[area] + 0.4 * _HOT
            found[area] += each * (bright - found[area])
        return self._enlarged(found.astype(np.uint8))

    def _enlarged(self, pixels: np.ndarray) -> PillowImage.Image:
        factor = max(1, math.ceil(_LEAST_SIDE / max(pixels.shape[:2])))
        found = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
        for top, left in (self.boxes * factor).tolist():
            side = self.side * factor
            found[top, left : left + side] = _LINE
            found[top : top + side, left] = _LINE
        return PillowImage.fromarray(found)


def cut_images(document: Document, config: ImageConfig) -> list[CutImage]:
    """Returns the images of a document, in reading order, from its patches."""
    numbers = document.image[document.tokens == PATCH]
    return [_cut(document, np.flatnonzero(numbers == number), config) for number in np.unique(numbers)]


def _cut(document: Document, slots: np.ndarray, config: ImageConfig) -> CutImage:
    slots = slots[document.patch_grid[slots, 0] >= 0]  # learned markers have negative rows
    places, side = document.patch_grid[slots].astype(np.int64), config.patch_size
    rows, columns = (places.max(axis=0) + 1).tolist()
    tiles = len(slots) // (rows * columns)
    across = math.ceil(math.sqrt(tiles))
    tile = np.arange(len(slots)) // (rows * columns)
    gap = side // 2 if tiles > 1 else 0
    height, width = rows * side + gap, columns * side + gap
    corners = np.stack([tile // across * height, tile % across * width], axis=-1)
    boxes = corners + places * side
    pixels = np.zeros((-(-tiles // across) * height - gap, across * width - gap, 3), np.uint8)
    blocks = document.patches[slots].reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
    for (top, left), block in zip(boxes.tolist(), blocks, strict=True):
        pixels[top : top + side, left : left + side] = block
    return CutImage(pixels, slots, boxes, side, tiles)
