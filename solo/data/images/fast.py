"""The decoder `fast`: scaled decoding by libjpeg-turbo, and antialiased resizing by OpenCV.

Grey and YCbCr JPEG files are decoded at 1/8, 1/4 or 1/2 of their size if the result is not smaller than requested.
Pillow decodes other files, and JPEG files for which libjpeg-turbo reports warnings. All images are resized here. Import
this module through `solo.data.images.patches.require_decoder`, which says what to install.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import simplejpeg
from PIL import Image as PillowImage

from solo.config import ImageConfig
from solo.data.images.decoding import Header, decode, turn
from solo.data.images.reasons import ImageError
from solo.data.images.resizing import resize

# OpenCV would use all cores for each image, in every worker of the loader.
cv2.setNumThreads(1)

_EIGHTHS = (1, 2, 4, 8)  # of the size; libjpeg-turbo has no SIMD code for other scales, which are slower than 8
_MOST_BLURRED = 2.0  # largest factor at which a blur over three pixels replaces a wider filter


def decode_resized(
    data: bytes, header: Header, sizes: Sequence[tuple[int, int]], config: ImageConfig
) -> list[np.ndarray]:
    """Decodes an image file and resizes it.

    Args:
        data: content of the file.
        header: the file's header.
        sizes: (width, height) of each result in pixels, after the rotation of `config.exif`.
        config: exif, background and resample.

    Returns:
        For each size, uint8 [height, width, 3].

    Raises:
        ImageError: the image cannot be decoded.
    """
    orientation = header.orientation if config.exif == "apply" else 1
    stored = [(high, wide) if orientation > 4 else (wide, high) for wide, high in sizes]
    eighths = _scale(header, stored)
    pixels = _decode_jpeg(data, header, eighths)
    if pixels is None:
        pixels, orientation, stored, eighths = np.asarray(decode(data, config)), 1, list(sizes), 8
        covered = (float(pixels.shape[1]), float(pixels.shape[0]))
    else:
        covered = (header.width * eighths / 8, header.height * eighths / 8)
    found = [_resize(pixels, covered, size, config) for size in stored]
    if orientation == 1:
        return found
    return [np.asarray(turn(PillowImage.fromarray(image), orientation)) for image in found]


def _scale(header: Header, sizes: Sequence[tuple[int, int]]) -> int:
    """Returns the scale at which to decode the file, in eighths of its size."""
    wide, high = max(size[0] for size in sizes), max(size[1] for size in sizes)
    return next((n for n in _EIGHTHS if header.width * n >= 8 * wide and header.height * n >= 8 * high), 8)


def is_sound_jpeg(data: bytes, header: Header) -> bool:
    """Returns whether a file is a JPEG that decodes without warnings. Reads all of its data, but computes few pixels.

    Raises:
        ImageError: part of its data is missing.
    """
    if not _reads(header):
        return False
    try:
        simplejpeg.decode_jpeg(data, "GRAY", min_width=1, min_height=1)
    except ValueError as error:
        _refuse_missing_data(error)
        return False
    return True


def _reads(header: Header) -> bool:
    return header.format in ("JPEG", "MPO") and header.mode in ("L", "RGB")


def _refuse_missing_data(error: ValueError) -> None:
    # Other warnings are harmless, for example about bytes that no pixel needs.
    if "premature end of data segment" in str(error) or "bad Huffman code" in str(error):
        raise ImageError("it is a JPEG file of which a part is missing or damaged") from error


def _decode_jpeg(data: bytes, header: Header, eighths: int) -> np.ndarray | None:
    """Returns the pixels at a scale, with sides rounded up; None if Pillow should decode the file.

    Raises:
        ImageError: part of the data is missing.
    """
    if not _reads(header):
        return None
    wide, high = (-(-side * eighths // 8) for side in (header.width, header.height))
    try:
        pixels = simplejpeg.decode_jpeg(data, min_width=wide, min_height=high)
    except ValueError as error:
        _refuse_missing_data(error)
        return None
    return pixels if pixels.shape == (high, wide, 3) else None


def _resize(pixels: np.ndarray, covered: tuple[float, float], size: tuple[int, int], config: ImageConfig) -> np.ndarray:
    """Resizes pixels [h, w, 3]. The image covers `covered` = (width, height) of them, which may be fractional."""
    whole = covered == (pixels.shape[1], pixels.shape[0])
    if whole and covered == size:
        return pixels
    if config.resample == "bicubic":  # OpenCV's bicubic filter is a different one, and not antialiased
        return np.asarray(resize(PillowImage.fromarray(pixels), size, "bicubic", covered))
    factors = covered[0] / size[0], covered[1] / size[1]
    if max(factors) > _MOST_BLURRED:
        least = min(pixels.shape[1], size[0]), min(pixels.shape[0], size[1])
        shrunk = cv2.resize(pixels, least, interpolation=cv2.INTER_AREA)
        return shrunk if least == size else cv2.resize(shrunk, size, interpolation=cv2.INTER_LINEAR)
    if max(factors) > 1:
        pixels = cv2.GaussianBlur(pixels, (3, 3), sigmaX=_deviation(factors[0]), sigmaY=_deviation(factors[1]))
    if whole:
        return cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)
    x, y = factors
    to_source = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(pixels, to_source, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _deviation(factor: float) -> float:
    """Returns the standard deviation of the three-pixel blur to apply before linear interpolation.

    Pillow's filter is a triangle of half-width `factor`, with variance factor^2 / 6. Linear interpolation is a triangle
    of half-width 1, with variance 1 / 6. A blur [a, 1 - 2a, a] adds a variance of 2a, which makes up the difference.
    """
    a = max((factor**2 - 1) / 12, 1e-6)
    return math.sqrt(0.5 / math.log((1 - 2 * a) / a))
