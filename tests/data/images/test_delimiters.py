from __future__ import annotations

import numpy as np
import pytest

from solo.config import ConfigError, ImageConfig
from solo.data.images.delimiters import delimiter_tokens, image_span, image_text, image_tokens
from solo.data.images.geometry import PatchGrid
from solo.data.rows.document import PATCH
from tests.data.fakes import CharacterTokenizer

TOKENIZER = CharacterTokenizer()


def span(rows: int, columns: int, tiles: int = 1, **settings) -> list[int]:
    image = ImageConfig(**settings)
    grid = PatchGrid(*(np.asarray(count) for count in (tiles, rows, columns)))
    return image_span(grid, image_tokens(image, TOKENIZER), image, PATCH).tolist()


def test_delimiters_of_each_layout():
    begin, end, row, p = (*(TOKENIZER.id(token) for token in ("<vision>", "</vision>", "<vrow_sep>")), PATCH)
    assert span(2, 3) == [begin, p, p, p, row, p, p, p, end]
    assert span(1, 1) == [begin, p, end]
    fuyu = {"begin_token": None, "end_token": None, "row_token_after_last": True}
    assert span(2, 2, **fuyu) == [p, p, row, p, p, row]
    assert span(2, 2, begin_token=None, end_token=None, row_token=None) == [p] * 4
    assert span(2, 2, end_token="<vision>", row_token=None) == [begin, p, p, p, p, begin]
    internvl = {"geometry": "tiles", "patch_size": 28, "begin_token": "<img>", "end_token": "</img>"}
    img = TOKENIZER.id("<img>")
    assert span(2, 2, tiles=3, **internvl) == [img, *[p] * 12, img + 1]


def test_text_tokens_follow_from_the_rows_alone():
    rows = np.array([1, 2, 7])
    fuyu = ImageConfig(begin_token=None, end_token=None, row_token_after_last=True)
    assert image_text(rows, ImageConfig()).tolist() == [2, 3, 8]
    assert image_text(rows, fuyu).tolist() == [1, 2, 7]
    assert image_text(rows, ImageConfig(row_token=None, end_token=None)).tolist() == [1, 1, 1]
    assert image_text(rows, ImageConfig(geometry="tiles", patch_size=28)).tolist() == [2, 2, 2]


def test_a_missing_token_is_named():
    with pytest.raises(ConfigError, match=r"image\.row_token needs the token '<newline>', which the tokenizer"):
        image_tokens(ImageConfig(row_token="<newline>"), TOKENIZER)
    # Tiles have no row tokens.
    tiles = ImageConfig(geometry="tiles", patch_size=28, row_token="<newline>")
    assert image_tokens(tiles, TOKENIZER).row is None
    assert "image.row_token" not in delimiter_tokens(tiles)
