"""Encodes pixel arrays as image files."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image as PillowImage

from solo.config import ConfigError
from solo.data.record import Image, encode_png

_RANGES = {"uint8": (0, 255), "uint16": (0, 65535), "bool": (0, 1)}


def check_pixels(dtype: Any, value_range: tuple[float, float] | None, what: str) -> None:
    """Raises ConfigError if the value range of the pixels is unknown."""
    name = np.dtype(dtype).name
    if value_range is None and name not in _RANGES:
        raise ConfigError(
            f"{what} holds {name} values, whose range is unknown; set option value_range, as in [0.0, 1.0]"
        )
    if value_range is not None and not value_range[0] < value_range[1]:
        raise ConfigError(f"{what}: value_range must increase, not {list(value_range)}")


def encode_pixels(values: Any, value_range: tuple[float, float] | None = None) -> Image:
    """Returns pixels as an 8-bit PNG file.

    Args:
        values: [H, W] or [H, W, C] with C of 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA).
        value_range: the values that become 0 and 255; by default the range of uint8, uint16 or bool. Values outside
            the range are clipped.

    Raises:
        ValueError: the shape is not that of an image, a value is not a number, or the range is unknown.
    """
    pixels = np.asarray(values)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim not in (2, 3) or 0 in pixels.shape or (pixels.ndim == 3 and pixels.shape[-1] not in (2, 3, 4)):
        raise ValueError(f"its pixels have shape {list(pixels.shape)}, not [height, width, 1, 3 or 4]")
    if value_range is None and pixels.dtype.name not in _RANGES:
        raise ValueError(f"the range of {pixels.dtype.name} pixels is unknown")
    if not np.isfinite(pixels).all():
        raise ValueError("its pixels hold NaN or infinity")
    if pixels.dtype != np.uint8 or value_range is not None:
        low, high = value_range or _RANGES[pixels.dtype.name]
        scaled = (pixels.astype(np.float64) - low) * (255 / (high - low))
        pixels = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    return encode_png(PillowImage.fromarray(pixels))
