"""Converts pixels of every kind to 8-bit RGB: high bit depths, floating point, palettes, transparency, CMYK."""

from __future__ import annotations

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageColor

from solo.data.images.reasons import ImageError

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # TIFF tags
_WHITE_IS_ZERO = 0

# Backgrounds with which images are converted by Pillow's `convert`, as published processors do.
AS_PUBLISHED = ("published", "neo", "neo_unify")


def to_rgb(image: PillowImage.Image, background: str) -> PillowImage.Image:
    """Converts an open image to RGB, decoding it if needed.

    Grey values of 9 to 16 bits are reduced to their 8 highest bits, as Pillow does with 16-bit colour. 32-bit pixels,
    integer or floating point, have no defined range: values up to 255 are used as they are, and floating-point images
    whose values are all between 0 and 1 are multiplied by 255. Transparent pixels are composited on `background`.
    CMYK is converted without a colour profile, and embedded profiles are not applied.

    Args:
        image: an image that Pillow opened.
        background: "white" or "#rrggbb"; "published" returns `image.convert("RGB")`, whatever the image; "neo" and
            "neo_unify" composite some RGBA images on white, and are otherwise as "published".

    Raises:
        ImageError: pixels are NaN or infinite, or their range is unknown.
    """
    if background in AS_PUBLISHED:
        if not _is_on_white(image, background):
            return image.convert("RGB")
        background = "white"
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = _eight_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    # Pillow can convert La only to LA.
    layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    found = PillowImage.new("RGB", layer.size, ImageColor.getrgb(background))
    found.paste(layer, mask=layer.getchannel("A"))
    return found


def _is_on_white(image: PillowImage.Image, background: str) -> bool:
    """Returns whether the published code puts an image on white: `load_image_native` of NEO and of SenseNova-U1.

    NEO's would put images with a mean above 382.5 on black, but no mean is above 255.
    """
    if image.mode != "RGBA" or background == "published":
        return False
    least, most = image.getchannel("A").getextrema()
    return background == "neo_unify" or (least == 0 and most != 0)


def _eight_bits(image: PillowImage.Image) -> PillowImage.Image:
    """Converts a grey image of more than 8 bits to L, or to LA if one of its values means transparent."""
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        found = values >> (tags.get(_BITS_PER_SAMPLE, (16,))[0] - 8)
    elif image.format == "PPM" and image.mode == "I":  # Pillow has already scaled it to 16 bits
        found = values >> 8
    else:
        found = np.rint(values * _scale(values))
    found = found.astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        found = 255 - found
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
        return PillowImage.merge("LA", [PillowImage.fromarray(found), PillowImage.fromarray(alpha)])
    return PillowImage.fromarray(found)


def _scale(values: np.ndarray) -> float:
    """Returns the factor that maps 32-bit values to 0..255."""
    least, most = values.min(), values.max()
    if not np.isfinite([least, most]).all():
        raise ImageError("its pixels include NaN or infinity")
    if least < 0 or most > 255:
        raise ImageError(
            f"its pixels are numbers from {least:g} to {most:g}, of which none is known to be black or white;"
            " 0 to 1 and 0 to 255 can be read"
        )
    return 255.0 if values.dtype.kind == "f" and most <= 1 else 1.0
