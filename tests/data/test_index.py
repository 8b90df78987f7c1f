import random
from pydoc_data.topics import topics

import numpy as np
import pytest
from PIL import Image as PillowImage

from solo.config import ImageConfig, TokenizerConfig
from solo.data.conversation import Image, Turn, encode_png
from solo.data.document import PATCH, TextRun, encode, runs
from solo.data.index import IMAGE, SUPERVISED_TEXT, TEXT, IndexBuilder, SourceIndex
from solo.data.tokenizer import train_tokenizer


def random_turns(draw: random.Random) -> list[Turn]:
    def part() -> str | Image:
        if draw.random() < 0.4:
            return encode_png(PillowImage.new("RGB", (draw.randint(1, 90), draw.randint(1, 90))))
        return "".join(draw.choices("ab c\n", k=draw.randint(0, 9)))

    roles = draw.choices(["system", "user", "assistant", "text"], k=draw.randint(0, 5))
    return [Turn(role, tuple(part() for _ in range(draw.randint(0, 3)))) for role in roles]


def test_counts_are_those_of_the_encoded_documents(tmp_path):
    tokenizer = train_tokenizer([topics["if"]], TokenizerConfig(vocab_size=330))
    draw, builder = random.Random(0), IndexBuilder()
    all_parts = [runs(random_turns(draw), tokenizer) for _ in range(60)]
    for parts in all_parts:
        builder.add(parts)
    builder.build().save(tmp_path / "index.npz")
    index = SourceIndex.load(tmp_path / "index.npz")
    assert len(index) == 60
    # Sizes are kept in pixels: the same index serves every geometry.
    for config in (ImageConfig(patch_size=8, max_side=64), ImageConfig(patch_size=5, max_side=30)):
        for parts, counts in zip(all_parts, index.counts(config), strict=True):
            document = encode(parts, tokenizer, config)
            is_patch = document.tokens == PATCH
            assert counts.tolist() == [is_patch.sum(), (~is_patch).sum(), document.supervised.sum()]


def test_kinds_and_types():
    builder = IndexBuilder()
    builder.add([TextRun((1, 2), False), encode_png(PillowImage.new("RGB", (3, 4))), TextRun((5,), True)])
    index = builder.build()
    assert index.run_kind.tolist() == [TEXT, IMAGE, SUPERVISED_TEXT]
    assert index.run_size.tolist() == [[2, 0], [3, 4], [1, 0]]
    assert index.record_run.tolist() == [0, 3]
    assert [a.dtype for a in (index.run_kind, index.run_size, index.record_run)] == [np.uint8, np.int32, np.int64]


def test_nothing_is_added_of_a_record_with_an_unreadable_image():
    builder = IndexBuilder()
    with pytest.raises(OSError, match=r".+"):
        builder.add([TextRun((1,), True), Image(b"no image")])
    builder.add([TextRun((2, 3), True)])
    assert builder.build().run_size.tolist() == [[2, 0]]


def test_empty():
    index = IndexBuilder().build()
    assert len(index) == 0
    assert index.counts(ImageConfig()).shape == (0, 3)
