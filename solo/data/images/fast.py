"""The decoder `fast`: scaled decoding by libjpeg-turbo, and antialiased resizing by OpenCV.

JPEG files in grey or YCbCr are decoded at 1/8, 1/4 or 1/2 of their size if that is still no smaller than what is asked
for. Other files, and JPEG files for which libjpeg-turbo reports warnings, are decoded by Pillow. All are resized here.
Import it through `solo.data.images.patches.require_decoder`, which says what to install.
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

# OpenCV would use all cores for each image, in each of the loader's workers.
cv2.setNumThreads(1)

_EIGHTHS = (1, 2, 4, 8)  # of the size; libjpeg-turbo has no vector code for other scales, which take longer than 8
_MOST_BLURRED = 2.0  # a blur over three pixels replaces a wider filter up to this factor


def decode_resized(
    data: bytes, header: Header, sizes: Sequence[tuple[int, int]], config: ImageConfig
) -> list[np.ndarray]:
    """Decodes an image file and resizes it.

    Args:
        data: content of the file.
        header: the file's header.
        sizes: (width, height) in pixels of the results, after the rotation of `config.exif`.
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
    """Returns the eighths of the file's size at which to decode it."""
    wide, high = max(size[0] for size in sizes), max(size[1] for size in sizes)
    return next((n for n in _EIGHTHS if header.width * n >= 8 * wide and header.height * n >= 8 * high), 8)


def is_sound_jpeg(data: bytes, header: Header) -> bool:
    """Returns whether a file is a JPEG that decodes without a warning. All of its data is read, few pixels computed.

    Raises:
        ImageError: a part of its data is missing.
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
    # Other warnings are harmless, such as those of bytes that no pixel needs.
    if "premature end of data segment" in str(error) or "bad Huffman code" in str(error):
        raise ImageError("it is a JPEG file of which a part is missing or damaged") from error


def _decode_jpeg(data: bytes, header: Header, eighths: int) -> np.ndarray | None:
    """Returns the pixels at a scale, rounded up to whole ones; None if Pillow should decode the file.

    Raises:
        ImageError: a part of the data is missing.
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
    """Resizes pixels [h, w, 3], of which the image covers `covered` = (width, height), not always whole numbers."""
    whole = covered == (pixels.shape[1], pixels.shape[0])
    if whole and covered == size:
        return pixels
    if config.resample == "bicubic":  # OpenCV's bicubic filter is another one, and not antialiased
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
    """Returns the standard deviation of a blur over three pixels before linear interpolation.

    Pillow's filter is a triangle of half-width `factor`, whose variance is factor^2 / 6; interpolation has that of a
    triangle of half-width 1. A blur [a, 1 - 2a, a] adds 2a, which makes them equal.
    """
    a = max((factor**2 - 1) / 12, 1e-6)
    return math.sqrt(0.5 / math.log((1 - 2 * a) / a))
