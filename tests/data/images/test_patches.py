"""Pixels equal the references' preprocessing to the last bit."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image as PillowImage

from solo.batch import BEGIN_MARKER, ROW_MARKER
from solo.config import ImageConfig
from solo.data.images.patches import decode_patches
from solo.data.record import encode_png
from tests.data.images.files import as_pillow_12_1

NOISE = np.random.default_rng(0)


def noise(width: int, height: int, channels: int = 3) -> PillowImage.Image:
    return PillowImage.fromarray(NOISE.integers(0, 256, (height, width, channels), np.uint8))


def encoded(image: PillowImage.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated(image: PillowImage.Image, orientation: int, kind: str = "JPEG") -> bytes:
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    return encoded(image, kind, exif=exif)


FILES = {
    "odd": encoded(noise(501, 377), "PNG"),
    "photo": encoded(noise(500, 375), "JPEG"),
    "untouched": encoded(noise(64, 96), "PNG"),
    "wide": encoded(noise(3000, 20), "PNG"),
    "tall": encoded(noise(9, 1400), "PNG"),
    "dot": encoded(noise(1, 1), "PNG"),
    "grey": encoded(noise(90, 120).convert("L"), "PNG"),
    "grey and alpha": encoded(noise(90, 120).convert("LA"), "PNG"),
    "bits": encoded(noise(90, 120).convert("1"), "PNG"),
    "alpha": encoded(noise(130, 70, 4), "PNG"),
    "palette": encoded(noise(130, 70).convert("P"), "PNG"),
    "transparent palette": encoded(noise(130, 70).convert("P"), "PNG", transparency=3),
    "16 bits": encoded(PillowImage.fromarray(NOISE.integers(0, 65536, (70, 130)).astype(np.uint16)), "PNG"),
    "CMYK": encoded(noise(130, 70).convert("CMYK"), "JPEG"),
    "rotated": rotated(noise(130, 70), 6),
}


def opened(name: str) -> PillowImage.Image:
    """As all references do: no rotation, alpha dropped."""
    return PillowImage.open(io.BytesIO(FILES[name])).convert("RGB")


def normalised(pixels: np.ndarray, mean: list[float], std: list[float]) -> np.ndarray:
    """float32 [n, 3, p * p] of our patches, in torchvision's order of operations."""
    scaled = pixels.reshape(len(pixels), 3, -1).astype(np.float32) / np.float32(255)
    return (scaled - np.float32(mean)[:, None]) / np.float32(std)[:, None]


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.mark.parametrize("name", FILES)
def test_solo(name):
    """SOLO's image_utils.py: Pillow's bilinear, ToTensor, Normalize, unfold, float16, bfloat16."""
    torch = pytest.importorskip("torch")
    image = opened(name)
    longer, shorter = max(image.size), min(image.size)
    long_side = min(-(-longer // 32) * 32, 1024)
    short_side = max(-(-int(long_side * shorter / longer) // 32) * 32, 32)
    size = (long_side, short_side) if image.size[0] >= image.size[1] else (short_side, long_side)
    pixels = torch.from_numpy(np.array(as_pillow_12_1(image, size, "bilinear")))
    tensor = pixels.permute(2, 0, 1).to(torch.float32).div(255)
    tensor = (tensor - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    blocks = tensor.unfold(1, 32, 32).unfold(2, 32, 32).permute(1, 2, 0, 3, 4)
    expected = blocks.reshape(-1, 3072)

    found = decode_patches(FILES[name], ImageConfig(exif="ignore", background="published"))
    ours = torch.from_numpy(normalised(found.pixels, MEAN, STD).reshape(-1, 3072))
    assert torch.equal(ours, expected)
    assert torch.equal(ours.half().bfloat16(), expected.half().bfloat16())
    assert (found.grid.rows, found.grid.columns) == tuple(blocks.shape[:2])
    assert found.places.tolist() == [
        [row, column] for row in range(blocks.shape[0]) for column in range(blocks.shape[1])
    ]


def mono_internvl(image: PillowImage.Image, columns: int, rows: int, side: int) -> list[np.ndarray]:
    """Mono-InternVL's dataset.py: the whole image resized and cut into boxes, then a small one of all of it."""
    whole = as_pillow_12_1(image, (side * columns, side * rows), "bicubic")  # Pillow's default
    boxes = [
        (
            number % columns * side,
            number // columns * side,
            (number % columns + 1) * side,
            (number // columns + 1) * side,
        )
        for number in range(columns * rows)
    ]
    tiles = [whole.crop(box) for box in boxes]
    if len(tiles) != 1:
        tiles.append(as_pillow_12_1(image, (side, side), "bicubic"))
    return [np.asarray(tile) for tile in tiles]


@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("name", FILES)
def test_mono_internvl(name, order):
    config = ImageConfig(
        geometry="tiles",
        patch_size=28,
        tile_size=112,
        max_tiles=6,
        resample="bicubic",
        exif="ignore",
        background="published",
        patch_order=order,
    )
    image = opened(name)
    found = decode_patches(FILES[name], config)
    tiles = mono_internvl(image, *brute_force(*image.size, 6, 112), 112)
    assert found.grid == (len(tiles), 4, 4)
    # Token k of a tile is its patch (k // 4, k % 4); pixel shuffle v1 swaps the two.
    number = 0
    for tile in tiles:
        for outer in range(4):
            for inner in range(4):
                y, x = (outer, inner) if order == "rows" else (inner, outer)
                block = tile[28 * y : 28 * y + 28, 28 * x : 28 * x + 28]
                assert np.array_equal(found.pixels[number].reshape(3, 28, 28), block.transpose(2, 0, 1))
                assert found.places[number].tolist() == [y, x]
                number += 1
    assert number == len(found.pixels) == len(found.places)


def brute_force(width: int, height: int, most: int, side: int) -> tuple[int, int]:
    grids = sorted(
        ((i, j) for i in range(1, most + 1) for j in range(1, most + 1) if i * j <= most), key=lambda g: g[0] * g[1]
    )
    nearest = min(abs(width / height - i / j) for i, j in grids)
    tied = [grid for grid in grids if abs(width / height - grid[0] / grid[1]) == nearest]
    return [tied[0], *(grid for grid in tied if width * height > side * side * grid[0] * grid[1] / 2)][-1]


@pytest.mark.parametrize(
    "size", [(501, 377), (30, 60), (29, 61), (1, 1), (2500, 700), (1900, 2500), (1921, 50), (1919, 1079)]
)
def test_fuyu_equals_transformers(size):
    """Pixels, padding included, in Fuyu's order (y, x, C)."""
    pytest.importorskip("torch")
    fuyu = pytest.importorskip("transformers.models.fuyu.image_processing_pil_fuyu")
    image = noise(*size)
    processor = fuyu.FuyuImageProcessorPil()
    batch = processor.preprocess([image], return_tensors="pt")
    whole = np.asarray(batch["images"][0][0])
    height, width = int(batch["image_unpadded_heights"][0][0]), int(batch["image_unpadded_widths"][0][0])
    rows, columns = -(-height // 30), -(-width // 30)
    expected = processor.patchify_image(whole[:, : rows * 30, : columns * 30])

    found = decode_patches(encoded(image, "PNG"), ImageConfig(geometry="padded", patch_size=30))
    assert found.grid == (1, rows, columns)
    ours = normalised(found.pixels, [0.5] * 3, [0.5] * 3).transpose(0, 2, 1).reshape(len(found.pixels), -1)
    np.testing.assert_allclose(ours, np.asarray(expected), atol=1e-6)
    # To the last bit before normalisation, whose rounding is the library's: the raw values are whole numbers.
    raw = (np.asarray(expected).reshape(-1, 900, 3).transpose(0, 2, 1).reshape(len(found.pixels), -1) * 0.5 + 0.5) * 255
    assert np.array_equal(np.rint(raw).astype(np.uint8), found.pixels)
    assert np.abs(raw - found.pixels).max() < 1e-3


def test_padding_is_at_the_bottom_and_on_the_right():
    data = encoded(PillowImage.new("RGB", (31, 29), "white"), "PNG")
    found = decode_patches(data, ImageConfig(geometry="padded", patch_size=30))
    pixels = found.pixels.reshape(1, 2, 3, 30, 30).transpose(0, 3, 1, 4, 2).reshape(30, 60, 3)
    assert (pixels[:29, :31] == 255).all()
    assert (pixels[29:] == 1).all()
    assert (pixels[:, 31:] == 1).all()


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_an_area_is_resized_as_a_whole(resample):
    image = noise(300, 170)
    config = ImageConfig(geometry="area", patch_size=16, min_pixels=6400, max_pixels=6400, resample=resample)
    found = decode_patches(encoded(image, "PNG"), config)
    whole = np.asarray(as_pillow_12_1(image, (112, 64), resample))
    assert found.grid == (1, 4, 7)
    assert np.array_equal(found.pixels[9].reshape(3, 16, 16), whole[16:32, 32:48].transpose(2, 0, 1))


def test_patch_order():
    # Unique values need more than one byte; the three channels hold y, x and a constant.
    height, width, patch = 6, 9, 3
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([y, x, np.full_like(y, 200)], axis=-1).astype(np.uint8)
    config = ImageConfig(patch_size=patch, max_side=9)
    found = decode_patches(encode_png(PillowImage.fromarray(pixels)).data, config)
    assert found.grid == (1, 2, 3)
    assert (found.pixels.shape, found.pixels.dtype) == ((6, 27), np.uint8)
    assert (found.places.shape, found.places.dtype) == ((6, 2), np.int32)
    for row, column, channel, dy, dx in np.ndindex(2, 3, 3, patch, patch):
        value = found.pixels[row * 3 + column, channel * 9 + dy * 3 + dx]
        assert value == pixels[row * patch + dy, column * patch + dx, channel]


def test_tiles_are_shared_among_the_images_of_a_record():
    config = ImageConfig(geometry="tiles", patch_size=16, tile_size=32, max_tiles=6, share_tiles=True)
    data = encoded(noise(300, 200), "PNG")
    assert [len(decode_patches(data, config, images).pixels) for images in (1, 3, 9)] == [28, 12, 4]


def test_markers_stand_before_an_image_and_after_each_row() -> None:
    """EVEv2: a learned token first, and one after every row, the last one included."""
    plain = ImageConfig(geometry="area", patch_size=4, begin_token=None, end_token=None, row_token=None)
    marked = plain.model_copy(update={"markers": True})
    data = encode_png(PillowImage.fromarray(np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8))).data
    without, cut = decode_patches(data, plain), decode_patches(data, marked)
    first, row = [[BEGIN_MARKER, 0]], [[ROW_MARKER, 0]]
    places = without.places.tolist()
    assert cut.places.tolist() == first + places[:3] + row + places[3:] + row
    kept = cut.places[:, 0] >= 0
    np.testing.assert_array_equal(cut.pixels[kept], without.pixels)
    assert not cut.pixels[~kept].any()
