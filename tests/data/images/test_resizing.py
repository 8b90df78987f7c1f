"""Resizing gives the pixels of Pillow 12.1, whichever version is installed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from solo.config import ImageConfig
from solo.data.images.patches import decode_patches
from solo.data.images.resizing import resize

GOLDENS = Path(__file__).parents[2] / "goldens"
RESIZED = json.loads((GOLDENS / "pillow_12_1_resize.json").read_text())["cases"]
NEO = GOLDENS / "neo/preprocessing"
PUBLISHED = json.loads((NEO / "images.json").read_text())


def hashed(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def pixels(width: int, height: int) -> np.ndarray:
    """Values that depend on nothing but their place."""
    number = np.arange(width * height * 3, dtype=np.uint64)
    mixed = (number * np.uint64(2654435761) >> np.uint64(13)) & np.uint64(255)
    return mixed.astype(np.uint8).reshape(height, width, 3)


@pytest.mark.parametrize("name", ["bilinear", "bicubic", "lanczos"])
def test_pixels_are_those_of_pillow_12_1(name):
    """One side grows, the other shrinks; one side stays; a part is covered; very tall images."""
    cases = [case for case in RESIZED if case["filter"] == name]
    assert len(cases) == 10
    for case in cases:
        image = PillowImage.fromarray(pixels(*case["size"]))
        found = resize(image, tuple(case["target"]), name, case["covered"] and tuple(case["covered"]))
        assert (found.size, hashed(np.asarray(found))) == (tuple(case["target"]), case["sha256"]), case


def test_an_image_of_the_right_size_is_kept():
    image = PillowImage.fromarray(pixels(7, 5))
    assert resize(image, (7, 5), "bicubic") is image


def neo_patches(name: str, setting: dict, images: int = 1) -> np.ndarray:
    """float32 [P, 768], normalised patches of 16 pixels as NEO's training code makes them."""
    config = ImageConfig(
        geometry="area",
        patch_size=32,
        min_pixels=setting["min_pixels"],
        max_pixels=setting["max_pixels"],
        share_pixels=True,
        rounding="within",
        resample="bicubic",
        exif="ignore",
        background="published",
    )
    found = decode_patches((NEO / f"images/{name}.png").read_bytes(), config, images)
    rows, columns = int(found.grid.rows), int(found.grid.columns)
    blocks = found.pixels.reshape(rows, columns, 3, 2, 16, 2, 16).transpose(0, 3, 1, 5, 2, 4, 6).reshape(-1, 3, 256)
    mean, std = np.float32(config.mean)[:, None], np.float32(config.std)[:, None]
    return ((blocks.astype(np.float32) / np.float32(255) - mean) / std).reshape(-1, 768)


def test_the_published_pixels_of_neo():
    """Every mode of PNG, at both of NEO's limits: the tensors that its training code computed with Pillow 12.1."""
    assert len(PUBLISHED["one_image"]) == 24
    for case in PUBLISHED["one_image"]:
        assert hashed(neo_patches(case["image"], case)) == case["pixel_values_sha256"], case["image"]
    for case in PUBLISHED["several_images"]:
        joined = np.concatenate([neo_patches(name, case, len(case["images"])) for name in case["images"]])
        assert hashed(joined) == case["pixel_values_sha256"], case["sample"]
