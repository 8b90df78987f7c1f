"""Images of prompts that are too long are made as small as needed, in every geometry, and no smaller."""

import pytest
from PIL import Image as PillowImage

from solo.config import ImageConfig, SequenceConfig
from solo.data.record import Turn, encode_png
from solo.data.text.templates import make_template
from solo.evaluation.scoring.fitting import _smaller, fitted
from solo.inference.prompt import prompt_needs
from tests.data.fakes import CharacterTokenizer

TOKENIZER = CharacterTokenizer()
GEOMETRIES = {
    "native": {"max_side": 64},
    "area": {"geometry": "area", "min_pixels": 4000, "max_pixels": 4096, "rounding": "within"},
    "tiles": {"geometry": "tiles", "tile_size": 8, "max_tiles": 12, "thumbnail": True},
    "padded": {"geometry": "padded", "max_height": 40, "max_width": 80},
}


def prompt(*sizes: tuple[int, int], text: str = "why"):
    images = [encode_png(PillowImage.new("RGB", size)) for size in sizes]
    return make_template(TOKENIZER, SequenceConfig()).runs([Turn("user", (*images, text))], open_turn=True)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_images_are_as_large_as_fits(name) -> None:
    image = ImageConfig(patch_size=4, **GEOMETRIES[name])
    prompts = [prompt((64, 48)), prompt((8, 8), (60, 20)), prompt(), prompt(text="a" * 100)]
    whole = prompt_needs(prompts, image)
    assert fitted(prompts, image, None, 8).smaller == {}
    assert fitted(prompts, image, int(whole.sum(axis=1).max()) + 8, 8).smaller == {}
    context = int(whole[0].sum()) // 2 + 8
    found = fitted(prompts, image, context, 8)
    assert 0 in found.smaller
    assert 3 in found.too_long or found.needs[3].sum() + 8 <= context
    sizes = _smaller(image)
    for number, config in found.smaller.items():
        assert found.needs[number].tolist() == prompt_needs([prompts[number]], config)[0].tolist()
        assert found.needs[number].sum() + 8 <= context
        larger = sizes.index(config) + 1
        if larger < len(sizes):
            assert prompt_needs([prompts[number]], sizes[larger])[0].sum() + 8 > context
    assert found.needs[2].tolist() == whole[2].tolist()


def test_text_alone_may_be_too_long() -> None:
    found = fitted([prompt(text="a" * 50), prompt((64, 64), text="a" * 50), prompt()], ImageConfig(patch_size=4), 40, 8)
    assert (found.too_long, found.smaller) == ({0, 1}, {})
