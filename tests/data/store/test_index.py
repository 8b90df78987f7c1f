import random

import numpy as np
import pytest
from PIL import Image as PillowImage

from solo.config import ImageConfig, SequenceConfig
from solo.data.planning.row_shape import RowShape
from solo.data.record import Image, Turn, encode_png
from solo.data.rows.assembly import assemble_row
from solo.data.rows.document import PATCH, TextRun, encode, runs
from solo.data.store import index as module
from solo.data.store.index import IMAGE, SUPERVISED_TEXT, TEXT, IndexBuilder
from tests.data.fakes import CharacterTokenizer


def random_turns(draw: random.Random) -> list[Turn]:
    def part() -> str | Image:
        if draw.random() < 0.4:
            picture = PillowImage.new("RGB", (draw.randint(1, 90), draw.randint(1, 90)))
            return encode_png(picture, orientation=draw.choice([1, 1, 3, 6]))
        return "".join(draw.choices("ab c\n", k=draw.randint(0, 9)))

    roles = draw.choices(["user", "assistant", "text"], k=draw.randint(0, 5))
    return [Turn(role, tuple(part() for _ in range(draw.randint(0, 3)))) for role in roles]


def random_image(draw: random.Random) -> ImageConfig:
    patch = draw.choice([5, 8])
    found = ImageConfig(
        geometry=draw.choice(["native", "area", "tiles", "padded"]),
        patch_size=patch,
        max_side=8 * patch,
        min_pixels=draw.choice([None, 900]),
        max_pixels=draw.choice([None, 2000]),
        rounding=draw.choice(["up", "nearest", "within"]),
        tile_size=3 * patch,
        max_tiles=draw.choice([1, 4, 6]),
        share_tiles=draw.random() < 0.5,
        thumbnail=draw.random() < 0.5,
        max_height=7 * patch,
        max_width=6 * patch,
        exif=draw.choice(["apply", "ignore"]),
        begin_token=draw.choice([None, "<vision>", "<img>"]),
        end_token=draw.choice([None, "<vision>", "</img>"]),
        row_token=draw.choice([None, "<vrow_sep>"]),
        row_token_after_last=draw.random() < 0.5,
    )
    if found.geometry == "tiles" or found.row_token:
        return found
    return found.model_copy(update={"markers": draw.random() < 0.5})


@pytest.mark.parametrize("seed", range(60))
def test_counts_are_those_of_the_encoded_documents(seed):
    draw, tokenizer = random.Random(seed), CharacterTokenizer()
    config, builder = random_image(draw), IndexBuilder()
    sequence = SequenceConfig(template=draw.choice(["roles", "solo_pretrain", "solo_chat", "internlm2_chat", "chatml"]))
    all_parts = [runs(random_turns(draw), tokenizer, config=sequence) for _ in range(12)]
    for parts in all_parts:
        builder.add(parts)
    index = builder.build()
    assert len(index) == 12
    # Sizes are in pixels, so one index serves every geometry and both EXIF rules.
    other = {"patch_size": 1, "row_token": None, "exif": "ignore"}
    for image in (config, config.model_copy(update=other)):
        for parts, counts in zip(all_parts, index.counts(image), strict=True):
            document = encode(parts, tokenizer, image)
            is_patch = document.tokens == PATCH
            assert counts.tolist() == [is_patch.sum(), (~is_patch).sum(), document.supervised.sum()]
            assert len(document.patches) == len(document.patch_grid) == is_patch.sum()
    # A row of exactly the slots in the index is enough, and one slot less is not.
    for parts, counts in zip(all_parts, index.counts(config), strict=True):
        document, shape = encode(parts, tokenizer, config), RowShape(*counts.tolist())
        row = assemble_row([(document, 0)], shape, config, 4, sequence)
        assert (row.attend[:, 1::2] > row.attend[:, ::2]).any(axis=1).all()
        if counts[1]:
            with pytest.raises(ValueError, match="do not fit"):
                assemble_row([(document, 0)], RowShape(counts[0], counts[1] - 1, counts[2]), config, 4, sequence)


def test_neighbouring_texts_of_a_kind_are_one_run():
    builder, turned = IndexBuilder(), encode_png(PillowImage.new("RGB", (3, 4)), orientation=6)
    builder.add([TextRun((1, 2), False), TextRun((3,), False), turned, TextRun((5,), True), TextRun((6,), False)])
    builder.add([TextRun((1,), False), TextRun((2,), True), TextRun((3, 4), True)])
    index = builder.build()
    assert index.run_kinds().tolist() == [TEXT, IMAGE, SUPERVISED_TEXT, TEXT, TEXT, SUPERVISED_TEXT]
    assert index.run_values().tolist() == [3, 0, 1, 1, 1, 3]
    assert index.record_run.tolist() == [0, 4, 6]
    assert index.image_sizes("ignore").tolist() == [[3, 4]]
    assert index.image_sizes("apply").tolist() == [[4, 3]]
    assert [a.dtype for a in (index.runs, index.image_size)] == [np.uint32, np.uint16]


@pytest.mark.parametrize("config", [ImageConfig(), ImageConfig(geometry="tiles", tile_size=32, share_tiles=True)])
def test_counts_of_some_records_are_those_of_all(monkeypatch, config):
    draw, builder = random.Random(0), IndexBuilder()
    for _ in range(50):
        builder.add(runs(random_turns(draw), CharacterTokenizer()))
    index = builder.build()
    whole, run_counts = index.counts(config), index.run_counts(config)
    monkeypatch.setattr(module, "_BLOCK", 7)
    assert index.counts(config).tolist() == whole.tolist()
    assert index.counts(config, 5, 33).tolist() == whole[5:33].tolist()
    first, last = index.span(5, 33)
    assert index.run_counts(config, 5, 33).tolist() == run_counts[first:last].tolist()
    chosen = np.asarray([40, 3, 3, 49])
    for records in (chosen, range(9, 20)):
        assert index.select(records).counts(config).tolist() == whole[list(records)].tolist()
        assert index.select(records).first_kinds().tolist() == index.first_kinds()[list(records)].tolist()
    assert list(index.blocks(20)) == [(0, 20), (20, 40), (40, 50)]


def test_images_that_the_index_cannot_hold_are_refused():
    with pytest.raises(OSError, match=r"it has 70,000 x 1 pixels; a side may have at most 65,535"):
        IndexBuilder().add([encode_png(PillowImage.new("1", (70_000, 1)))])


def test_a_record_with_an_unreadable_image_adds_nothing():
    builder = IndexBuilder()
    with pytest.raises(OSError, match=r".+"):
        builder.add([TextRun((1,), True), Image(b"no image")])
    builder.add([TextRun((2, 3), True)])
    assert builder.build().run_values().tolist() == [2]


def test_empty():
    index = IndexBuilder().build()
    assert len(index) == 0
    assert index.counts(ImageConfig()).shape == (0, 3)
