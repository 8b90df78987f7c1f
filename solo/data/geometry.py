"""How an image becomes patches: the resizing rule, the grid it gives, and the cutting.

`ImageConfig.geometry` names the rule. There is one, "native": the image keeps its own resolution and shape.
"""

from __future__ import annotations

import numpy as np
from PIL import Image as PillowImage

from solo.config import ImageConfig
from solo.data.conversation import Image


def grid_shape(width: int | np.ndarray, height: int | np.ndarray, config: ImageConfig) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of patches that images of these sizes in pixels are cut into, int64, of the sizes' shape.

    The rule of SOLO's `image_utils.get_resize_output_image_size`: the longer side is rounded up to a multiple of
    the patch size and capped at `max_side`; the shorter side follows the aspect ratio, truncated to whole pixels
    and then rounded up to a multiple of the patch size. An image is never cropped or padded, and enlarged only by
    the rounding. Where an image is so thin that nothing is left of its shorter side, SOLO's rule gives no row at
    all and its resizing fails; here one patch is left.
    """
    patch = config.patch_size
    width, height = np.asarray(width, np.int64), np.asarray(height, np.int64)
    longer, shorter = np.maximum(width, height), np.minimum(width, height)
    long_side = np.minimum(-(-longer // patch) * patch, config.max_side)
    # Products stay far below 2^53, so this float64 division truncates exactly as Python's does in SOLO's code.
    short_side = (long_side * shorter / longer).astype(np.int64)
    long_patches = long_side // patch
    short_patches = np.maximum(-(-short_side // patch), 1)
    landscape = width >= height
    return np.where(landscape, short_patches, long_patches), np.where(landscape, long_patches, short_patches)


def native_size(width: int, height: int, config: ImageConfig) -> tuple[int, int]:
    """(width, height) in pixels to which an image is resized before it is cut: `grid_shape` in pixels."""
    rows, columns = grid_shape(width, height, config)
    return int(columns) * config.patch_size, int(rows) * config.patch_size


def decode_patches(data: bytes, config: ImageConfig) -> tuple[np.ndarray, int, int]:
    """Decode an image file and cut it: (uint8 [rows * columns, p * p * 3], rows, columns), p the patch size.

    Pixels are RGB (alpha dropped, no EXIF rotation, as in SOLO), resized by Pillow's antialiased bilinear filter
    only where the size changes. Patches stand row by row; inside a patch pixels are channel-major: value
    c * p * p + y * p + x.

    Raises:
        OSError: the bytes are no image that can be decoded.
    """
    image = Image(data).decode()
    size = native_size(*image.size, config)
    if size != image.size:
        image = image.resize(size, PillowImage.Resampling.BILINEAR)
    patch = config.patch_size
    columns, rows = size[0] // patch, size[1] // patch
    pixels = np.asarray(image).reshape(rows, patch, columns, patch, 3)
    return pixels.transpose(0, 2, 4, 1, 3).reshape(rows * columns, -1), rows, columns
