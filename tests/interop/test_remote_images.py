"""The exported image processor returns the same pixels as `solo.data`, bit for bit."""

import base64
import io

import httpx
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
    "area_shared": {
        "geometry": "area",
        "patch_size": 8,
        "min_pixels": 500,
        "max_pixels": 1500,
        "rounding": "within",
        "share_pixels": True,
    },
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


def tiff(values, **options):
    buffer = io.BytesIO()
    PillowImage.fromarray(values).save(buffer, "TIFF", **options)
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


OVERRIDES = {
    "native": ({"size": {"longest_edge": 32}}, {"max_side": 32}),
    "native_capped": ({"max_pixels": 640}, {"max_pixels": 640}),
    "tiles": ({"max_tiles": 2}, {"max_tiles": 2}),
    "area_up": ({"size": {"max_pixels": 512}}, {"min_pixels": 512, "max_pixels": 512}),
    "area_within": ({"min_pixels": 2000}, {"min_pixels": 2000, "max_pixels": 2000}),
    "area_nearest": ({"min_pixels": 100, "max_pixels": 900}, {"min_pixels": 100, "max_pixels": 900}),
    "padded": ({"size": {"height": 24, "width": 36}}, {"max_height": 24, "max_width": 36}),
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_limits_of_a_call_and_of_loading_are_those_of_a_config(name):
    given, wanted = OVERRIDES[name]
    images = [noise(200, 61), noise(40, 90)]
    plain = processor_of(ImageConfig(**GEOMETRIES[name]))
    expected = processor_of(ImageConfig(**GEOMETRIES[name] | wanted))(images, return_tensors="np")
    done = {"do_resize": True, "do_rescale": True, "do_normalize": True, "image_mean": list(plain.image["mean"])}
    loaded = SoloMonolithImageProcessor(image=plain.image, **given)
    assert SoloMonolithImageProcessor(**loaded.to_dict()).image == loaded.image
    for found in (plain(images, return_tensors="np", **given, **done), loaded(images, return_tensors="np")):
        assert found["image_grids_of"] == expected["image_grids_of"]
        np.testing.assert_array_equal(found["pixel_values"], expected["pixel_values"])
    assert plain(images)["image_grids_of"] != expected["image_grids_of"]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("tiles", {"max_pixels": 100}, "no max_pixels; their size is limited by max_tiles"),
        ("padded", {"min_pixels": 100}, "no min_pixels; their size is limited by max_height, max_width"),
        ("native", {"size": {"shortest_edge": 8}}, "no shortest_edge"),
        ("native", {"size": 224}, "size is 224; it must be a dictionary"),
        ("area_up", {"max_pixels": 0}, "max_pixels is 0"),
        ("native", {"do_resize": False}, r"images of \[\(33, 8\)\] \(width, height\) must be resized"),
        ("native", {"do_normalize": False}, "do_normalize=False is not what this model was trained with"),
        ("native", {"image_mean": [0.1, 0.1, 0.1]}, "image_mean"),
        ("native", {"resample": PillowImage.Resampling.NEAREST}, "resample"),
        ("native", {"crop_size": {"height": 8, "width": 8}}, "crop_size=.* has no meaning"),
    ],
)
def test_what_cannot_be_honoured_is_refused(name, given, message):
    processor = processor_of(ImageConfig(**GEOMETRIES[name]))
    with pytest.raises(ValueError, match=message):
        processor([noise(40, 8), noise(33, 8)], **given)


def test_images_that_need_no_resizing_and_no_images():
    processor = processor_of(ImageConfig(**GEOMETRIES["native"]))
    image = noise(40, 8)
    found = processor([image], do_resize=False, return_tensors="np")
    np.testing.assert_array_equal(found["pixel_values"], processor(image, return_tensors="np")["pixel_values"])
    with pytest.raises(ValueError, match="images is empty"):
        processor([])


def test_inner_patches_of_neo():
    """In the order of the published code: row by row of the whole image, image after image."""
    config = ImageConfig(**GEOMETRIES["area_within"])
    images = [noise(40, 24), noise(24, 48, seed=1)]
    processor = SoloMonolithImageProcessor(image=config.model_dump(mode="json"), form="grid_hw", inner_size=4)
    found = processor(images, return_tensors="np")
    assert found["image_grid_hw"].tolist() == [[6, 10], [12, 6]]
    wanted = []
    for image in images:
        pixels = decode_patches(png(image), config)
        rows, columns = int(pixels.grid.rows), int(pixels.grid.columns)
        blocks = (
            pixels.pixels.reshape(rows, columns, 3, 8, 8).transpose(2, 0, 3, 1, 4).reshape(3, 8 * rows, 8 * columns)
        )
        fine = blocks.reshape(3, 2 * rows, 4, 2 * columns, 4).transpose(1, 3, 0, 2, 4).reshape(-1, 48)
        wanted.append(processor.normalised(fine))
    np.testing.assert_array_equal(found["pixel_values"], np.concatenate(wanted))


@pytest.mark.parametrize("background", ["white", "#0080ff", "published", "neo", "neo_unify"])
def test_transparent_and_deep_images(background):
    config = ImageConfig(patch_size=8, max_side=64, background=background)
    deep = PillowImage.fromarray(np.random.default_rng(0).integers(0, 65536, (16, 24)).astype(np.uint16))
    files = [png(noise(24, 16, "RGBA")), png(noise(24, 16, "RGBA").convert("LA")), png(deep)]
    for alpha in (np.full((16, 24), 90), np.zeros((16, 24)), np.arange(384).reshape(16, 24) % 256):
        image = noise(24, 16, "RGBA")
        image.putalpha(PillowImage.fromarray(alpha.astype(np.uint8)))
        files.append(png(image))
    files.append(png(noise(24, 16).quantize(8), transparency=3))
    values = np.random.default_rng(1).random((16, 24))
    files += [tiff((most * values).astype(kind)) for most, kind in ((1, "f4"), (255, "f4"), (255, "i4"))]
    files.append(tiff((65_535 * values).astype("u2"), tiffinfo={262: 0}))  # white is zero
    files.append(b"P5 24 16 65535\n" + (65_535 * values).astype(">u2").tobytes())
    for data in files:
        with PillowImage.open(io.BytesIO(data)) as image:
            found = np.asarray(processor_of(config).open(image))
        np.testing.assert_array_equal(found, np.asarray(decode(data, config)))


@pytest.mark.parametrize("exif", ["apply", "ignore"])
def test_images_that_are_named_have_the_same_pixels(exif, tmp_path, monkeypatch):
    config = ImageConfig(patch_size=8, max_side=64, background="white", exif=exif)
    tags = PillowImage.Exif()
    tags[0x0112] = 6
    deep = PillowImage.fromarray(np.random.default_rng(0).integers(0, 65536, (16, 24)).astype(np.uint16))
    processor = processor_of(config)
    for data in (png(noise(24, 16, "RGBA")), png(deep), png(noise(24, 8), exif=tags)):
        (tmp_path / "a.png").write_bytes(data)
        text = base64.b64encode(data).decode()
        answer = httpx.Response(200, content=data, request=httpx.Request("GET", "http://host/a.png"))
        monkeypatch.setattr(httpx, "get", lambda *given, answer=answer, **options: answer)
        ours = decode_patches(data, config)
        for name in (str(tmp_path / "a.png"), f"data:image/png;base64,{text}", text, "http://host/a.png"):
            found = processor([[name]], return_tensors="np")
            np.testing.assert_array_equal(found["patches_grid"], ours.places)
            np.testing.assert_array_equal(found["pixel_values"], processor.normalised(ours.pixels))
    for name in ("missing.png", "data:image/png;base64,AAAA", str(tmp_path)):
        with pytest.raises(ValueError, match=r"is no file, no web address, and no image in base64"):
            processor(name)


def test_pixels_of_no_known_range_are_refused():
    processor = processor_of(ImageConfig(patch_size=8, max_side=64, background="white"))
    for pixel in (-1.0, 256.0, float("nan")):
        with pytest.raises(ValueError, match="none is known to be black or white"):
            processor.open(PillowImage.fromarray(np.full((8, 8), pixel, np.float32)))


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
