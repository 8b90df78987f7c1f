"""Resizes with Pillow's antialiased filters, to the same pixels with every version of Pillow."""

from __future__ import annotations

from typing import Literal

from PIL import Image as PillowImage

Filter = Literal["bilinear", "bicubic", "lanczos"]

_FILTERS = {name: PillowImage.Resampling[name.upper()] for name in ("bilinear", "bicubic", "lanczos")}


def resize(
    image: PillowImage.Image, size: tuple[int, int], resample: Filter, covered: tuple[float, float] | None = None
) -> PillowImage.Image:
    """Resizes an image to the same pixels as Pillow up to 12.1, with which published models were trained.

    Those versions filter rows first and columns second, and round to 8 bits in between. Pillow 12.2 filters columns
    first if an image is a hundred times as tall as wide; Pillow 13 also does so if the height shrinks much more than
    the width. Values then differ by up to 24 of 255. Here, each axis is resized by a separate call.

    Args:
        image: an image in mode L or RGB.
        size: (width, height) in pixels of the result.
        resample: name of the filter.
        covered: (width, height) in pixels of the part to resize, from the upper left corner; default: all of it.

    Returns:
        The resized image, or the same image if there is nothing to do.
    """
    (width, height), (wide, high) = image.size, covered or image.size
    if (wide, size[0]) != (width, width):
        image = image.resize((size[0], height), _FILTERS[resample], box=(0, 0, wide, height))
    if (high, size[1]) != (height, height):
        image = image.resize(size, _FILTERS[resample], box=(0, 0, size[0], high))
    return image
