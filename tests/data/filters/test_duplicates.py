import io

import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import ImageFilter

from solo.data.filters.duplicates import choose_duplicates, choose_similar, perceptual_hash
from solo.data.record import Image, encode_png


def keys(*values: int) -> np.ndarray:
    return np.asarray(values, np.uint64)


def test_the_first_of_equal_keys_stays():
    assert choose_duplicates(keys(5, 7, 5, 1, 7, 5)).tolist() == [2, 4, 5]
    assert choose_duplicates(keys()).tolist() == []
    assert choose_duplicates(keys(2**64 - 1, 0, 2**64 - 1)).tolist() == [2]


def test_a_record_that_cannot_stay_does_not_stand_for_others():
    usable = np.asarray([False, True, True])
    assert choose_duplicates(keys(5, 5, 5), usable).tolist() == [2]


@pytest.mark.parametrize("bits", [0, 1, 3, 7])
def test_similar_keys_equal_a_comparison_of_all_pairs(bits):
    random = np.random.default_rng(bits)
    found = random.integers(0, 2**64, 40, np.uint64)
    for _ in range(300):  # neighbours of neighbours, 0 to 3 bits away
        flips = [np.uint64(1 << int(bit)) for bit in random.integers(0, 64, random.integers(0, 4))]
        key = random.choice(found)
        for flip in flips:
            key ^= flip
        found = np.append(found, key)
    comparable = found % np.uint64(5) > 0  # equal keys are both comparable, or both not
    expected: list[int] = []
    for place, key in enumerate(found):
        for before in set(range(place)) - set(expected):
            near = comparable[place] and comparable[before] and int(key ^ found[before]).bit_count() <= bits
            if near or key == found[before]:
                expected.append(place)
                break
    assert choose_similar(found, comparable, bits).tolist() == expected
    assert 0 < len(expected) < 300


def test_similar_images_have_near_hashes():
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = PillowImage.fromarray(small).resize((256, 192), PillowImage.Resampling.BICUBIC)
    jpeg = io.BytesIO()
    picture.resize((200, 150)).filter(ImageFilter.GaussianBlur(1)).save(jpeg, "JPEG", quality=60)
    other = PillowImage.fromarray(small[::-1, ::-1]).resize((256, 192), PillowImage.Resampling.BICUBIC)
    first, again, different = map(perceptual_hash, (encode_png(picture), Image(jpeg.getvalue()), encode_png(other)))
    assert (first ^ again).bit_count() <= 4
    assert (first ^ different).bit_count() > 10


def test_hashes_are_those_of_pillow_12_1():
    """Later versions resize very tall images otherwise: they give 0xd07bc058f252fcb8."""
    number = np.arange(9 * 1400 * 3, dtype=np.uint64)
    pixels = ((number * np.uint64(2654435761) >> np.uint64(13)) & np.uint64(255)).astype(np.uint8)
    image = encode_png(PillowImage.fromarray(pixels.reshape(1400, 9, 3)))
    assert perceptual_hash(image) == 0xD178C25BD052F678
