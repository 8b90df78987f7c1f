from pydoc_data.topics import topics

import numpy as np
import pytest
from PIL import Image as PillowImage

from solo.config import ImageConfig, TokenizerConfig
from solo.data.conversation import Image, Turn, encode_png
from solo.data.document import NO_IMAGE, PATCH, TextRun, encode, runs
from solo.data.tokenizer import Tokenizer, train_tokenizer

CONFIG = ImageConfig(patch_size=4, max_side=16)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([topics["if"]], TokenizerConfig(vocab_size=330))


def image(rows: int, columns: int, shade: int = 0) -> Image:
    return encode_png(PillowImage.new("RGB", (columns * 4, rows * 4), (shade,) * 3))


def text(tokenizer: Tokenizer, words: str, supervised: bool) -> TextRun:
    return TextRun(tuple(tokenizer.encode(words)), supervised)


def test_runs_of_a_conversation(tokenizer):
    ids, picture = tokenizer.special, image(1, 1)
    turns = [Turn("system", ("be",)), Turn("user", (picture, "why")), Turn("assistant", ("so", "it")), Turn("user", ())]
    assert runs(turns, tokenizer) == [
        TextRun((ids.bos,), False),
        TextRun((ids.system,), False),
        text(tokenizer, "be", False),
        TextRun((ids.user,), False),
        picture,
        text(tokenizer, "why", False),
        TextRun((ids.assistant,), False),
        text(tokenizer, "so", True),
        text(tokenizer, "it", True),
        TextRun((ids.eos,), True),
        TextRun((ids.user,), False),
    ]


def test_runs_of_a_text_turn(tokenizer):
    ids, picture = tokenizer.special, image(1, 1)
    assert runs([Turn("text", (picture, "</s>", ""))], tokenizer) == [
        TextRun((ids.bos,), False),
        picture,
        text(tokenizer, "</s>", True),
        TextRun((ids.eos,), True),
    ]


@pytest.mark.parametrize(
    ("turns", "last"),
    [
        ([Turn("user", ("why",))], "assistant"),
        ([Turn("user", ("why",)), Turn("assistant", ())], "assistant"),
        ([Turn("system", ())], "assistant"),
    ],
)
def test_an_open_turn_waits_for_the_assistant(tokenizer, turns, last):
    found = runs(turns, tokenizer, open_turn=True)
    assert found[-1] == TextRun((tokenizer.special.role(last),), False)
    assert TextRun((tokenizer.special.eos,), True) not in found


def test_an_open_text_is_left_open(tokenizer):
    assert runs([Turn("text", ("so",))], tokenizer, open_turn=True)[-1] == text(tokenizer, "so", True)
    begun = [Turn("user", ("why",)), Turn("assistant", ("so",))]
    assert runs(begun, tokenizer, open_turn=True)[-1] == text(tokenizer, "so", True)


def test_image_layout(tokenizer):
    # SOLO: <vision> row <vrow_sep> row </vision>, separators between rows only.
    ids = tokenizer.special
    parts = [TextRun((7, 8), True), image(2, 3, 50), TextRun((9,), False), image(1, 1, 60)]
    document = encode(parts, tokenizer, CONFIG)
    p = PATCH
    block = [ids.vision, p, p, p, ids.row_separator, p, p, p, ids.vision_end]
    assert document.tokens.tolist() == [7, 8, *block, 9, ids.vision, p, ids.vision_end]
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


def test_pieces_join_to_the_whole(tokenizer):
    whole = encode([TextRun((7, 8), True), image(2, 2, 9), TextRun((9,), True), image(1, 2, 3)], tokenizer, CONFIG)
    for cut in range(len(whole.tokens) + 1):
        first, rest = whole.piece(0, cut), whole.piece(cut, len(whole.tokens))
        for name in ("tokens", "supervised", "image", "patches", "patch_grid"):
            assert np.array_equal(np.concatenate([getattr(first, name), getattr(rest, name)]), getattr(whole, name))
        assert len(rest.patches) == (rest.tokens == PATCH).sum()
