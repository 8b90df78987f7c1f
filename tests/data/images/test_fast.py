"""The fast decoder comes close to Pillow's antialiased pixels, and uses Pillow where it has no better way."""

from __future__ import annotations

import builtins
import sys

import cv2
import numpy as np
import pytest
from PIL import Image as PillowImage

from solo.config import ConfigError, ImageConfig
from solo.data.images import fast
from solo.data.images.check import ImageCheck
from solo.data.images.decoding import read_header
from solo.data.images.patches import decode_patches
from tests.data.images.files import encoded, jpeg, photograph


def both(data: bytes, **options) -> tuple[np.ndarray, np.ndarray]:
    """Returns the patches of Pillow and of the fast decoder, as integers."""
    found = [decode_patches(data, ImageConfig(decoder=name, **options)) for name in ("pillow", "fast")]
    assert found[0].grid == found[1].grid
    np.testing.assert_array_equal(found[0].places, found[1].places)
    slow, quick = (patches.pixels.astype(int) for patches in found)
    return slow, quick


def difference(data: bytes, **options) -> float:
    """Returns the mean absolute difference, in levels of 255."""
    slow, quick = both(data, **options)
    return float(np.abs(slow - quick).mean())


# Sizes that are decoded at 8/8 to 1/8, whole and odd, kept, enlarged and reduced.
@pytest.mark.parametrize(
    ("size", "max_side", "most"),
    [
        ((500, 375), 1024, 0.3),
        ((640, 480), 1024, 0.0),
        ((1280, 960), 1024, 0.6),
        ((1280, 960), 640, 1.3),  # decoded at half the size, and not resized
        ((1281, 963), 448, 0.8),
        ((963, 1281), 448, 0.8),
        ((2001, 1499), 448, 0.9),
        ((2001, 1499), 224, 1.5),
        ((60, 2000), 512, 0.7),
    ],
)
def test_photographs_are_close_to_pillows(size, max_side, most):
    assert difference(jpeg(*size), max_side=max_side) <= most


def test_the_grid_of_pixels_is_not_shifted():
    """A scaled image of odd size covers a part of its last pixel. A ramp shows a shift anywhere."""
    ramp = np.linspace(0, 255, 2001)[None, :, None].repeat(1499, 0).repeat(3, 2)
    data = encoded(PillowImage.fromarray(ramp.astype(np.uint8)), "JPEG", quality=95)
    assert difference(data, max_side=224) < 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("exif", ["apply", "ignore"])
def test_rotation(orientation, exif):
    tags = PillowImage.Exif()
    tags[0x0112] = orientation
    data = encoded(PillowImage.fromarray(photograph(130, 70)), "JPEG", exif=tags)
    assert difference(data, max_side=96, exif=exif) < 1.0


@pytest.mark.parametrize("kind", ["grey", "CMYK", "RGB", "progressive"])
def test_every_kind_of_jpeg(kind):
    image = PillowImage.fromarray(photograph(300, 200))
    options = {"keep_rgb": True} if kind == "RGB" else {"progressive": kind == "progressive"}
    image = image.convert({"grey": "L", "CMYK": "CMYK"}.get(kind, "RGB"))
    assert difference(encoded(image, "JPEG", **options), max_side=160) < 0.6


def test_other_files_keep_their_pixels_if_their_size_is_kept():
    image = PillowImage.fromarray(photograph(64, 64, channels=4))
    for kind in ("PNG", "WEBP", "TIFF"):
        slow, quick = both(encoded(image, kind), max_side=64, background="#0080ff")
        np.testing.assert_array_equal(slow, quick)


@pytest.mark.parametrize("size", [(90, 60), (300, 200), (1000, 667)])
def test_other_files_are_resized_alike(size):
    assert difference(encoded(PillowImage.fromarray(photograph(*size)), "PNG"), max_side=256) < 1.0


def test_tiles_and_their_thumbnail():
    options = {"geometry": "tiles", "patch_size": 28, "tile_size": 112, "max_tiles": 6}
    for size in ((1200, 800), (301, 207)):
        assert difference(jpeg(*size), **options) < 1.0
        assert difference(jpeg(*size), resample="bicubic", **options) < 1.0


def test_bicubic_is_pillows():
    data = encoded(PillowImage.fromarray(photograph(300, 200)), "PNG")
    slow, quick = both(data, max_side=128, resample="bicubic")
    np.testing.assert_array_equal(slow, quick)


def test_reducing_does_not_alias():
    """Stripes too fine for the result are as faint as after a mean over areas, which is antialiased but slower."""
    stripes = np.zeros((1024, 1024, 3), np.uint8)
    stripes[:, ::2] = 255
    for side in (896, 768, 640, 512, 320):
        quick = fast._resize(stripes, (1024.0, 1024.0), (side, side), ImageConfig())
        area = cv2.resize(stripes, (side, side), interpolation=cv2.INTER_AREA)
        aliased = cv2.resize(stripes, (side, side), interpolation=cv2.INTER_LINEAR)
        assert quick.std() <= area.std() + 7, side
        assert quick.std() <= 0.9 * aliased.std()


def test_a_file_with_warnings_is_left_to_pillow():
    data = jpeg(64, 48)
    odd = data[:-2] + b"\0\0\0\0" + data[-2:]  # libjpeg-turbo: extraneous bytes before the last marker
    slow, quick = both(odd, max_side=64)
    assert np.abs(slow - quick).mean() < 0.3
    with pytest.raises(OSError, match="cut off"):
        decode_patches(data[:-200], ImageConfig(decoder="fast", max_side=64))


def test_missing_data_is_found_even_before_an_end_marker():
    """Pillow fills up such a file with grey, without a word."""
    whole, check = jpeg(160, 120), ImageCheck(True, "white", 10**6, strict=True)
    start = whole.index(b"\xff\xda") + 20
    assert check.header(whole)[:2] == (160, 120)
    for end in range(start, len(whole) - 40, 97):
        cut = whole[:end] + b"\xff\xd9"
        with pytest.raises(OSError, match=r"a part is missing or damaged|was cut off"):
            check.header(cut)
        with pytest.raises(OSError, match=r"a part is missing or damaged|was cut off"):
            decode_patches(cut, ImageConfig(decoder="fast"))
    for harmless in (whole + b"trailing", whole[:-2] + bytes(4) + whole[-2:]):
        check.header(harmless)


def test_the_scale_is_the_smallest_that_is_large_enough():
    header = read_header(jpeg(1600, 1200))
    scales = [fast._scale(header, [size]) for size in ((1600, 1200), (801, 600), (800, 600), (400, 300), (10, 10))]
    assert scales == [8, 8, 4, 2, 1]
    assert fast._scale(header, [(100, 100), (1024, 768)]) == 8


def test_without_the_extra_the_config_is_refused(monkeypatch):
    real = builtins.__import__

    def importing(name, *arguments, **options):
        if name == "simplejpeg":
            raise ModuleNotFoundError("No module named 'simplejpeg'", name="simplejpeg")
        return real(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "solo.data.images.fast")
    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(ConfigError, match=r"image.decoder: fast needs simplejpeg.*solo-vlm\[fast\]"):
        decode_patches(jpeg(64, 48), ImageConfig(decoder="fast"))
