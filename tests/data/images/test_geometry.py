"""The sizes of every geometry, against its rule in plain Python."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from solo.config import FilterConfig, ImageConfig
from solo.data.filters.conditions import Conditions
from solo.data.images.geometry import patch_grid, resized, too_thin
from solo.data.record import Image, Record, Turn

NEO = Path(__file__).parents[2] / "goldens/neo/preprocessing"

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


def size(width: int, height: int, config: ImageConfig) -> tuple[int, int]:
    wide, high = resized(np.asarray(width), np.asarray(height), config)
    return int(wide), int(high)


def solo_size(width: int, height: int, patch: int, most: int) -> tuple[int, int]:
    """SOLO's rule in plain Python, with its float division, and one patch where it gives zero."""
    longer, shorter = max(width, height), min(width, height)
    long_side = min(math.ceil(longer / patch) * patch, most)
    short_side = max(math.ceil(int(long_side * shorter / longer) / patch) * patch, patch)
    return (long_side, short_side) if width >= height else (short_side, long_side)


@pytest.mark.parametrize(("before", "after"), GOLDEN.items())
def test_solo_golden_sizes(before, after):
    assert size(*before, SOLO) == after
    assert size(*before[::-1], SOLO) == after[::-1]


def test_solo_rule_on_dense_sizes():
    others = sorted({*range(1, 70), *range(70, 2501, 61), *range(992, 1060, 3), *range(2033, 2060), 2500})
    for width in range(1, 2501):
        wide, high = resized(np.asarray(width), np.asarray(others), SOLO)
        expected = [solo_size(width, other, 32, 1024) for other in others]
        assert list(zip(wide.tolist(), high.tolist(), strict=True)) == expected
        wide, high = resized(np.asarray(others), np.asarray(width), SOLO)
        assert list(zip(wide.tolist(), high.tolist(), strict=True)) == [
            solo_size(other, width, 32, 1024) for other in others
        ]


sides = st.integers(1, 20_000)
sizes = st.lists(st.tuples(sides, sides), min_size=1)


@given(sizes, st.sampled_from([(32, 1024), (8, 64), (14, 448), (1, 7)]))
def test_solo_rule_with_other_patches(sizes, rule):
    patch, most = rule
    config = ImageConfig(patch_size=patch, max_side=most)
    grid = patch_grid(*np.array(sizes).T, config)
    expected = [solo_size(width, height, patch, most) for width, height in sizes]
    assert list(zip((grid.columns * patch).tolist(), (grid.rows * patch).tolist(), strict=True)) == expected
    assert grid.patches.tolist() == [wide * high // patch**2 for wide, high in expected]


def sail_size(width: int, height: int, patch: int, most: int) -> tuple[int, int]:
    longer, shorter = max(width, height), min(width, height)
    long_side = math.ceil(longer / patch) * patch
    short_side = math.ceil(int(long_side * shorter / longer) / patch) * patch
    count = long_side * short_side / patch**2
    if count > most:
        factor = math.sqrt(count / most)
        long_side, short_side = (int(side / factor / patch) * patch for side in (long_side, short_side))
    long_side, short_side = max(long_side, patch), max(short_side, patch)
    return (long_side, short_side) if width >= height else (short_side, long_side)


@given(sizes, st.sampled_from([(32, 4096), (14, 4096), (32, 9)]))
def test_sail_rule(sizes, rule):
    patch, most = rule
    config = ImageConfig(patch_size=patch, max_side=1 << 20 if patch == 32 else 14 << 16, max_pixels=most * patch**2)
    for width, height in sizes:
        assert size(width, height, config) == sail_size(width, height, patch, most)


def evev2_size(width: int, height: int, max_size: int, training: bool) -> tuple[int, int]:
    factor = math.sqrt(width * height) / max_size
    if training:
        wide, high = (width / factor, height / factor) if factor > 1 else (width, height)
        return tuple(max(round(side / 32), 1) * 32 for side in (wide, high))
    return tuple(max(math.ceil(side / factor / 32) * 32, 32) for side in (width, height))


@given(sizes, st.sampled_from([1600, 800, 100]))
def test_evev2_rules(sizes, max_size):
    most = max_size**2
    used = ImageConfig(geometry="area", min_pixels=most, max_pixels=most)
    trained = ImageConfig(geometry="area", max_pixels=most, rounding="nearest")
    for width, height in [*sizes, (max_size, max_size), (2 * max_size, max_size // 2), (48, 80), (16, 1)]:
        assert size(width, height, used) == evev2_size(width, height, max_size, training=False)
        assert size(width, height, trained) == evev2_size(width, height, max_size, training=True)


def neo_size(width: int, height: int, least: int, most: int) -> tuple[int, int]:
    """`smart_resize` with factor 32."""
    wide, high = (max(32, round(side / 32) * 32) for side in (width, height))
    if high * wide > most:
        beta = math.sqrt(height * width / most)
        wide, high = (max(32, math.floor(side / beta / 32) * 32) for side in (width, height))
    elif high * wide < least:
        beta = math.sqrt(least / (height * width))
        wide, high = (math.ceil(side * beta / 32) * 32 for side in (width, height))
    return wide, high


@pytest.mark.parametrize("factor", [16, 32])
def test_neo_rule_gives_the_published_sizes(factor):
    """All cases of the published `smart_resize`. It refuses sides over 200:1, and so does a filter of a source."""
    cases = json.loads((NEO / "smart_resize.json").read_text())[f"factor_{factor}"]
    assert len(cases) == {16: 306, 32: 2016}[factor]
    narrow = Conditions(FilterConfig(max_aspect_ratio=200))
    record = Record("a", (Turn("user", (Image(b""),)),))
    for height, width, least, most, published in cases:
        assert (narrow.refusal(record, [(width, height)]) is None) == (published is not None)
        if published is not None:
            config = ImageConfig(
                geometry="area", patch_size=factor, min_pixels=least, max_pixels=most, rounding="within"
            )
            assert size(width, height, config)[::-1] == tuple(published), (width, height, least, most)


@given(sizes, st.sampled_from([(65_536, 4_194_304), (1_310_720, 4_194_304), (1024, 9216)]))
def test_neo_rule(sizes, bounds):
    config = ImageConfig(geometry="area", min_pixels=bounds[0], max_pixels=bounds[1], rounding="within")
    for width, height in [*sizes, (2048, 2048), (256, 256), (48, 80), (16, 16)]:
        assert size(width, height, config) == neo_size(width, height, *bounds)


def test_an_upper_bound_is_shared_by_the_images_of_a_record():
    def limited(most: int, **settings) -> ImageConfig:
        return ImageConfig(geometry="area", min_pixels=9216, max_pixels=most, rounding="within", **settings)

    shared, images = limited(40_960, share_pixels=True), np.array([1, 2, 3, 5, 100])
    sides = resized(np.full(5, 304), np.full(5, 272), shared, images)
    alone = [size(304, 272, limited(most)) for most in (40_960, 40_960, 27_306, 16_384, 9216)]
    assert np.stack(sides, axis=1).tolist() == [list(each) for each in alone]
    assert len(set(alone)) == 4
    assert patch_grid(304, 272, shared, 5).patches == alone[3][0] * alone[3][1] // 32**2
    assert patch_grid(304, 272, limited(40_960), 5) == patch_grid(304, 272, shared, 1)


def test_an_area_without_bounds_is_only_rounded():
    for rounding, expected in (("up", (64, 96)), ("nearest", (32, 96)), ("within", (32, 96))):
        assert size(40, 81, ImageConfig(geometry="area", rounding=rounding)) == expected


def fuyu_size(width: int, height: int) -> tuple[int, int]:
    if width > 1920 or height > 1080:
        scale = min(1080 / height, 1920 / width)
        width, height = int(width * scale), int(height * scale)
    return max(width, 1), max(height, 1)


@given(sizes)
def test_fuyu_rule(sizes):
    config = ImageConfig(geometry="padded", patch_size=30)
    for width, height in [*sizes, (1920, 1080), (1921, 1080), (1920, 1081), (7, 5000)]:
        wide, high = fuyu_size(width, height)
        assert size(width, height, config) == (wide, high)
        grid = patch_grid(width, height, config)
        assert (grid.tiles, grid.rows, grid.columns) == (1, math.ceil(high / 30), math.ceil(wide / 30))


def internvl_tiles(width: int, height: int, most: int, tile: int = 448, least: int = 1) -> tuple[int, int]:
    """`find_closest_aspect_ratio` over a Python set sorted by area alone, as the reference has it."""
    ratios = {(i, j) for n in range(least, most + 1) for i in range(1, n + 1) for j in range(1, n + 1)}
    ratios = {(i, j) for i, j in ratios if least <= i * j <= most}
    best, best_difference = (1, 1), float("inf")
    for i, j in sorted(ratios, key=lambda pair: pair[0] * pair[1]):
        difference = abs(width / height - i / j)
        if difference < best_difference:
            best, best_difference = (i, j), difference
        elif difference == best_difference and width * height > 0.5 * tile * tile * i * j:
            best = (i, j)
    return best


def some_sizes() -> np.ndarray:
    """Random sizes, exact ratios (where grids tie) at several scales, sizes midway between two ratios, and extremes."""
    random = np.random.default_rng(0).integers(1, 5000, (120, 2)).tolist()
    ties = [
        (448 * i * k // 4, 448 * j * k // 4) for i, j in itertools.product((1, 2, 3, 5), repeat=2) for k in (1, 3, 9)
    ]
    midway = [(5 * k, 4 * k) for k in (1, 90, 300)] + [(7 * k, 12 * k) for k in (1, 90, 300)]
    return np.asarray([*random, *ties, *midway, (1, 9000), (9000, 1), (1, 1), (448, 448), (634, 634), (633, 633)])


@pytest.mark.parametrize("most", [6, 12, 24, 40])
def test_internvl_tiles(most):
    pairs = some_sizes()
    config = ImageConfig(geometry="tiles", patch_size=28, max_tiles=most)
    grid = patch_grid(*pairs.T, config)
    for (width, height), tiles, rows, columns in zip(pairs.tolist(), *grid, strict=True):
        i, j = internvl_tiles(width, height, most)
        assert tiles == i * j + (i * j > 1)
        assert (rows, columns) == (16, 16)
    # internvl/train/dataset.py in OpenGVLab/Mono-InternVL
    named = {6: {(800, 600): 6, (1920, 1080): 2}, 12: {(800, 600): 12, (1920, 1080): 8}}
    named[24] = {(800, 600): 12, (1920, 1080): 15}
    for (width, height), tiles in named.get(most, {}).items():
        assert patch_grid(width, height, config).patches == 256 * (tiles + 1)
    assert patch_grid(300, 300, config).patches == 256


def test_other_tiles():
    few = ImageConfig(geometry="tiles", patch_size=16, tile_size=32, min_tiles=4, max_tiles=6, thumbnail=False)
    for width, height in some_sizes()[:40].tolist():
        i, j = internvl_tiles(width, height, 6, tile=32, least=4)
        assert patch_grid(width, height, few)[:] == (i * j, 2, 2)
    assert patch_grid(np.zeros(0, int), np.zeros(0, int), few).patches.shape == (0,)


def test_tiles_are_shared_among_the_images_of_a_record():
    config = ImageConfig(geometry="tiles", patch_size=28, max_tiles=12, share_tiles=True)
    images = np.array([1, 2, 3, 5, 13])
    for width, height in ((800, 600), (1920, 1080)):
        budgets = [12, 6, 4, 2, 1]
        expected = [
            patch_grid(width, height, ImageConfig(**config.model_dump() | {"max_tiles": b})).tiles for b in budgets
        ]
        assert patch_grid(width, height, config, images).tiles.tolist() == expected
    alone = config.model_copy(update={"share_tiles": False})
    assert len(set(patch_grid(np.full(5, 800), np.full(5, 600), alone, images).tiles.tolist())) == 1


def test_thin_images_keep_one_patch_and_are_reported():
    wide, high = np.array([2000, 1025, 1024, 640]), np.array([1, 1, 1, 480])
    assert too_thin(wide, high, SOLO).tolist() == [True, True, False, False]
    assert (patch_grid(wide, high, SOLO).rows > 0).all()
    cases = [
        (ImageConfig(max_side=1 << 20, max_pixels=4096 * 1024), (500_000, 32), True),
        (ImageConfig(geometry="area", max_pixels=100, rounding="within"), (40, 40), True),
        (ImageConfig(geometry="area", max_pixels=100), (40, 40), False),
        (ImageConfig(geometry="area", rounding="nearest"), (16, 40), True),
        (ImageConfig(geometry="padded", patch_size=30), (100_000, 10), True),
        (ImageConfig(geometry="tiles", patch_size=28), (100_000, 1), False),
    ]
    for config, (width, height), thin in cases:
        assert too_thin(np.asarray(width), np.asarray(height), config) == thin
        assert patch_grid(width, height, config).patches > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_side": 1000}, "max_side 1000 is not a multiple"),
        ({"geometry": "tiles", "patch_size": 30}, "tile_size 448 is not a multiple"),
        ({"geometry": "padded"}, "max_height 1080 is not a multiple"),
        ({"geometry": "area", "patch_order": "columns"}, "goes with geometry: tiles"),
        ({"max_pixels": 4096, "share_pixels": True}, "share_pixels divides the max_pixels of geometry: area"),
        ({"geometry": "area", "share_pixels": True}, "share_pixels divides the max_pixels of geometry: area"),
    ],
)
def test_contradictory_geometries_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        ImageConfig(**settings)
