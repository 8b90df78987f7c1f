"""The exported image processor returns the same pixels as `solo.data`, bit for bit."""

import io

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from solo.config import ImageConfig
from solo.data.images.decoding import decode
from solo.data.images.geometry import patch_grid
from solo.data.images.patches import decode_patches

pytest.importorskip("transformers")

from solo.interop.remote.image_processing_solo import SoloMonolithImageProcessor

GEOMETRIES = {
    "native": {"patch_size": 8, "max_side": 64},
    "native_capped": {"patch_size": 8, "max_side": 64, "max_pixels": 2048, "resample": "bicubic"},
    "tiles": {"geometry": "tiles", "patch_size": 8, "tile_size": 16, "max_tiles": 6, "patch_order": "columns"},
    "tiles_shared": {"geometry": "tiles", "patch_size": 8, "tile_size": 16, "share_tiles": True, "thumbnail": False},
    "area_up": {"geometry": "area", "patch_size": 8, "min_pixels": 1024, "max_pixels": 1024},
    "area_nearest": {"geometry": "area", "patch_size": 8, "max_pixels": 1500, "rounding": "nearest"},
    "area_within": {"geometry": "area", "patch_size": 8, "min_pixels": 500, "max_pixels": 1500, "rounding": "within"},
    "markers": {
        "geometry": "area",
        "patch_size": 8,
        "max_pixels": 1500,
        "begin_token": None,
        "end_token": None,
        "row_token": None,
        "markers": True,
    },
    "padded": {"geometry": "padded", "patch_size": 6, "max_height": 48, "max_width": 60, "mean": (0.5, 0.5, 0.5)},
}


def processor_of(config):
    return SoloMonolithImageProcessor(image=config.model_dump(mode="json"))


def noise(width, height, mode="RGB", seed=0):
    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels)).astype(np.uint8)
    return PillowImage.fromarray(pixels.squeeze(-1) if channels == 1 else pixels)


def png(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("name", GEOMETRIES)
@settings(max_examples=300, deadline=None)
@given(width=st.integers(1, 3000), height=st.integers(1, 3000), images=st.integers(1, 5))
@example(width=1, height=3000, images=1)
@example(width=3000, height=1, images=1)
def test_every_size_is_cut_into_the_same_patches(name, width, height, images):
    config = ImageConfig(**GEOMETRIES[name])
    ours = patch_grid(width, height, config, images)
    assert processor_of(config).grid(width, height, images) == tuple(int(count) for count in ours)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_pixels_and_places_are_the_same(name):
    config = ImageConfig(**GEOMETRIES[name], stored_as_float16=name == "native")
    images = [noise(37, 90), noise(64, 16, "RGBA"), noise(200, 61, "L"), noise(3, 3)]
    ours = [decode_patches(png(image), config, 2) for image in images]
    processor = processor_of(config)
    found = processor(images, images_per_text=[2, 2], return_tensors="np")
    assert [tuple(grid) for grid in found["image_grids_of"]] == [tuple(map(int, cut.grid)) for cut in ours]
    np.testing.assert_array_equal(found["patches_grid"], np.concatenate([cut.places for cut in ours]))
    raw = np.concatenate([cut.pixels for cut in ours])
    np.testing.assert_array_equal(found["pixel_values"], processor.normalised(raw))
    # Invertible, so that equal normalised pixels mean equal raw ones.
    per_channel = config.patch_size**2
    again = found["pixel_values"] * np.repeat(config.std, per_channel) + np.repeat(config.mean, per_channel)
    np.testing.assert_allclose(again * 255, raw, atol=0.2)


@pytest.mark.parametrize("background", ["white", "#0080ff", "published"])
def test_transparent_and_deep_images(background):
    config = ImageConfig(patch_size=8, max_side=64, background=background)
    deep = PillowImage.fromarray(np.random.default_rng(0).integers(0, 65536, (16, 24)).astype(np.uint16))
    files = [png(noise(24, 16, "RGBA")), png(noise(24, 16, "RGBA").convert("LA")), png(deep)]
    files.append(png(noise(24, 16).quantize(8), transparency=3))
    for data in files:
        with PillowImage.open(io.BytesIO(data)) as image:
            found = np.asarray(processor_of(config).open(image))
        np.testing.assert_array_equal(found, np.asarray(decode(data, config)))


@pytest.mark.parametrize("exif", ["apply", "ignore"])
def test_rotation_in_the_file(exif):
    turned = noise(24, 8)
    tags = PillowImage.Exif()
    tags[0x0112] = 6
    data = png(turned, exif=tags)
    config = ImageConfig(patch_size=8, max_side=64, exif=exif)
    ours = decode_patches(data, config)
    with PillowImage.open(io.BytesIO(data)) as image:
        found = processor_of(config)(image, return_tensors="np")
    np.testing.assert_array_equal(found["patches_grid"], ours.places)
    assert tuple(found["image_grids_of"][0]) == ((1, 3, 1) if exif == "apply" else (1, 1, 3))
