import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage

from solo.config import ImageConfig
from solo.data.conversation import encode_png
from solo.data.geometry import decode_patches, grid_shape, native_size

SOLO = ImageConfig(patch_size=32, max_side=1024)

# (width, height) -> (width, height) after resizing, from SOLO's image_utils; the first two are also the patch
# shapes its notebook prints. The last is where SOLO's rule gives no row at all.
GOLDEN = {
    (1503, 1499): (1024, 1024),
    (2268, 1022): (1024, 480),
    (640, 480): (640, 480),
    (1, 1): (32, 32),
    (31, 33): (64, 64),
    (32, 32): (32, 32),
    (33, 32): (64, 64),
    (224, 224): (224, 224),
    (1920, 1080): (1024, 576),
    (4000, 10): (1024, 32),
    (10, 4000): (32, 1024),
    (336, 336): (352, 352),
    (500, 375): (512, 384),
    (100, 3): (128, 32),
    (540, 32): (544, 32),
    (1024, 768): (1024, 768),
    (2000, 1): (1024, 32),
}


def solo_size(width: int, height: int, patch: int, most: int) -> tuple[int, int]:
    """SOLO's rule in plain Python, with its float division, and one patch where it gives none."""
    longer, shorter = max(width, height), min(width, height)
    long_side = min(math.ceil(longer / patch) * patch, most)
    short_side = max(math.ceil(int(long_side * shorter / longer) / patch) * patch, patch)
    return (long_side, short_side) if width >= height else (short_side, long_side)


@pytest.mark.parametrize(("size", "resized"), GOLDEN.items())
def test_golden_sizes(size, resized):
    assert native_size(*size, SOLO) == resized
    assert native_size(*size[::-1], SOLO) == resized[::-1]


sides = st.integers(1, 20_000)


@given(st.lists(st.tuples(sides, sides), min_size=1), st.sampled_from([(32, 1024), (8, 64), (14, 448), (1, 7)]))
def test_vectorised_rule_is_the_scalar_rule(sizes, rule):
    patch, most = rule
    config = ImageConfig(patch_size=patch, max_side=most)
    widths, heights = np.array(sizes).T
    rows, columns = grid_shape(widths, heights, config)
    expected = [solo_size(width, height, patch, most) for width, height in sizes]
    assert list(zip((columns * patch).tolist(), (rows * patch).tolist(), strict=True)) == expected
    assert [native_size(width, height, config) for width, height in sizes] == expected


def test_vectorised_rule_on_all_small_sizes():
    config = ImageConfig(patch_size=8, max_side=96)
    heights, widths = np.mgrid[1:120, 1:120]
    rows, columns = grid_shape(widths, heights, config)
    for height, width in np.ndindex(119, 119):
        expected = solo_size(width + 1, height + 1, 8, 96)
        assert (columns[height, width] * 8, rows[height, width] * 8) == expected


def test_no_sizes():
    rows, columns = grid_shape(np.zeros(0, int), np.zeros(0, int), SOLO)
    assert rows.shape == columns.shape == (0,)


def png(pixels: np.ndarray) -> bytes:
    return encode_png(PillowImage.fromarray(pixels)).data


def test_patch_order():
    # Unique values need more than one byte; the three channels hold y, x and a constant.
    height, width, patch = 6, 9, 3
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([y, x, np.full_like(y, 200)], axis=-1).astype(np.uint8)
    patches, rows, columns = decode_patches(png(pixels), ImageConfig(patch_size=patch, max_side=9))
    assert (rows, columns) == (2, 3)
    assert patches.shape == (6, 27)
    assert patches.dtype == np.uint8
    for row, column, channel, dy, dx in np.ndindex(2, 3, 3, patch, patch):
        value = patches[row * 3 + column, channel * 9 + dy * 3 + dx]
        assert value == pixels[row * patch + dy, column * patch + dx, channel]


def test_resizing_is_pillows_antialiased_bilinear():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    config = ImageConfig(patch_size=8, max_side=32)
    patches, rows, columns = decode_patches(png(pixels), config)
    assert (rows, columns) == (3, 4)
    resized = np.asarray(PillowImage.fromarray(pixels).resize((32, 24), PillowImage.Resampling.BILINEAR))
    assert np.array_equal(patches[5].reshape(3, 8, 8), resized[8:16, 8:16].transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    buffer = io.BytesIO()
    PillowImage.new("RGB", (16, 8), (255, 255, 255)).convert(mode).save(buffer, "TIFF")
    patches, rows, columns = decode_patches(buffer.getvalue(), ImageConfig(patch_size=8, max_side=16))
    assert (rows, columns) == (1, 2)
    assert patches.min() >= 254


def test_alpha_is_dropped_not_blended():
    data = png(np.full((8, 8, 4), (10, 20, 30, 0), np.uint8))
    patches, _, _ = decode_patches(data, ImageConfig(patch_size=8, max_side=8))
    assert patches.reshape(3, 64)[:, 0].tolist() == [10, 20, 30]


def test_unreadable_images_are_os_errors(monkeypatch):
    config = ImageConfig(patch_size=8, max_side=64)
    good = png(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    for data in (b"", b"no image", good[:60], good[:-60], good[:100] + b"\0" * 50 + good[150:]):
        with pytest.raises(OSError, match=r".+"):
            decode_patches(data, config)
    monkeypatch.setattr(PillowImage, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(OSError, match="DecompressionBomb"):
        decode_patches(good, config)
