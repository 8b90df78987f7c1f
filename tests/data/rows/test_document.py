from pydoc_data.topics import topics

import numpy as np
import pytest
from PIL import Image as PillowImage

from solo.config import ImageConfig, TokenizerConfig
from solo.data.record import Image, encode_png
from solo.data.rows.document import NO_IMAGE, PATCH, TextRun, encode
from solo.data.text import Tokenizer, train_tokenizer

CONFIG = ImageConfig(patch_size=4, max_side=16)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([topics["if"]], TokenizerConfig(vocab_size=330))


def image(rows: int, columns: int, shade: int = 0) -> Image:
    return encode_png(PillowImage.new("RGB", (columns * 4, rows * 4), (shade,) * 3))


def test_image_layout(tokenizer):
    # SOLO: <vision> row <vrow_sep> row </vision>, row tokens between rows only.
    begin, end, row = (tokenizer.id(token) for token in ("<vision>", "</vision>", "<vrow_sep>"))
    parts = [TextRun((7, 8), True), image(2, 3, 50), TextRun((9,), False), image(1, 1, 60)]
    document = encode(parts, tokenizer, CONFIG)
    p = PATCH
    block = [begin, p, p, p, row, p, p, p, end]
    assert document.tokens.tolist() == [7, 8, *block, 9, begin, p, end]
    n = NO_IMAGE
    assert document.image.tolist() == [n, n, n, 0, 0, 0, 0, 0, 0, 0, n, n, n, 1, n]
    assert document.supervised.tolist() == [True, True] + [False] * 13
    assert document.patch_grid.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [0, 0]]
    assert document.patches.shape == (7, 48)
    assert document.patches[:, 0].tolist() == [50] * 6 + [60]
    assert [a.dtype for a in (document.tokens, document.supervised, document.image)] == [np.int32, bool, np.int32]
    assert (document.patches.dtype, document.patch_grid.dtype) == (np.uint8, np.int32)


def test_text_alone_and_unreadable_images(tokenizer):
    document = encode([TextRun((5,), True)], tokenizer, CONFIG)
    assert document.patches.shape == (0, 48)
    assert document.patch_grid.shape == (0, 2)
    with pytest.raises(OSError, match=r".+"):
        encode([Image(b"nothing")], tokenizer, CONFIG)


def test_chunks_join_to_the_whole(tokenizer):
    whole = encode([TextRun((7, 8), True), image(2, 2, 9), TextRun((9,), True), image(1, 2, 3)], tokenizer, CONFIG)
    for cut in range(len(whole.tokens) + 1):
        first, rest = whole.chunk(0, cut), whole.chunk(cut, len(whole.tokens))
        for name in ("tokens", "supervised", "image", "patches", "patch_grid"):
            assert np.array_equal(np.concatenate([getattr(first, name), getattr(rest, name)]), getattr(whole, name))
        assert len(rest.patches) == (rest.tokens == PATCH).sum()
