"""Rows of prompts: a chunk has the positions and intervals that it has in the whole document."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image as PillowImage

from solo.config import ImageConfig, SequenceConfig
from solo.data.planning.row_shape import RowShape
from solo.data.record import Turn, encode_png
from solo.data.rows.assembly import assemble_row
from solo.data.rows.document import encode
from solo.data.text.templates import make_template
from solo.inference.decoding import allowed_tokens, answer_length
from solo.inference.prompt import by_length, chunk_ends, chunks_of, in_order, prompt_batches, row_of, slots
from tests.data.fakes import CharacterTokenizer

TOKENIZER = CharacterTokenizer()
TURNS = [
    Turn("user", (encode_png(PillowImage.new("RGB", (8, 12))), "why", encode_png(PillowImage.new("RGB", (12, 4))))),
    Turn("assistant", ("so",)),
    Turn("user", (encode_png(PillowImage.new("RGB", (8, 8))), "and then")),
]


@pytest.mark.parametrize("sequence", [{}, {"sliding_window": 6}, {"positions": "grid"}])
@pytest.mark.parametrize("attention", ["causal", "bidirectional", "prefix"])
def test_a_chunk_agrees_with_the_whole_document(attention, sequence) -> None:
    image = ImageConfig(patch_size=4, max_side=32, mask=attention)
    config = SequenceConfig(**sequence)
    template = make_template(TOKENIZER, config)
    first = encode(template.runs(TURNS[:2]), TOKENIZER, image)
    whole = encode(template.runs(TURNS, open_turn=True), TOKENIZER, image)
    patches, text = slots(whole)
    row = assemble_row([(whole, 0)], RowShape(patches, text, 10), image, 4, config)
    start = slots(first)
    chunk = row_of(whole, (patches - start[0] + 3, text - start[1] + 2), image, 4, start, config)
    new_patches, new_text = patches - start[0], text - start[1]
    for part, expected, count in (
        (chunk.patches, row.patches[start[0] :], new_patches),
        (chunk.patch_grid, row.patch_grid[start[0] :], new_patches),
        (chunk.text, row.text[start[1] :], new_text),
        (chunk.positions, row.positions[start[0] : patches], new_patches),
        (chunk.attend, row.attend[start[0] : patches], new_patches),
        (chunk.positions[new_patches + 3 :], row.positions[patches + start[1] :], new_text),
        (chunk.attend[new_patches + 3 :], row.attend[patches + start[1] :], new_text),
    ):
        assert np.array_equal(part[:count], expected[:count])
        assert (part[count : count + 2] == (4 if part is chunk.text else 0)).all()


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize(
    ("mask", "sequence"), [("causal", {}), ("causal", {"sliding_window": 6}), ("bidirectional", {}), ("prefix", {})]
)
def test_chunks_hold_every_slot_and_split_an_image_only_if_the_mask_allows(mask, sequence, start) -> None:
    image, config = ImageConfig(patch_size=4, max_side=32, mask=mask), SequenceConfig(**sequence)
    template = make_template(TOKENIZER, config)
    document = encode(template.runs(TURNS, open_turn=True), TOKENIZER, image)
    begun = slots(encode(template.runs(TURNS[:2]), TOKENIZER, image)) if start else (0, 0)
    needs = [all_ - before for all_, before in zip(slots(document), begun, strict=True)]
    row = row_of(document, (needs[0] + 3, needs[1] + 1), image, 4, begun, config)
    inside = np.flatnonzero((document.image[:-1] == document.image[1:]) & (document.image[:-1] >= 0)) + 1
    split = set()
    for size in (1, 3, 7, 11):
        ends = chunk_ends(row, document, size, begun)
        np.testing.assert_array_equal(ends[-1], needs)
        places = ends.sum(axis=1) + sum(begun)
        split |= set(places.tolist()) & set(inside.tolist())
        lengths = np.diff(places, prepend=sum(begun))
        whole_image = max(np.bincount(document.image[document.image >= 0]).tolist())
        assert (lengths > 0).all()
        assert mask == "prefix" or lengths.max() <= max(size, 0 if mask == "causal" else whole_image)
        chunks = chunks_of([row, row], [ends, ends[-1:]], 4)
        assert sum(counts for _, counts in chunks).tolist() == [needs, needs]
        for place, field in ((0, "patches"), (1, "text")):
            parts = [getattr(chunk, field)[0, : counts[0, place]] for chunk, counts in chunks]
            assert np.array_equal(np.concatenate(parts), getattr(row, field)[: needs[place]])
    assert bool(split) == (mask == "causal"), "an image may only be split under a causal mask"
    assert chunk_ends(row, document, None, begun).tolist() == [needs]


def test_batches_have_room_for_images_after_exif_rotation() -> None:
    exif, buffer = PillowImage.Exif(), io.BytesIO()
    exif[0x0112] = 6
    PillowImage.new("RGB", (4, 64)).save(buffer, "JPEG", exif=exif)
    template = make_template(TOKENIZER, SequenceConfig())
    prompt = template.runs([Turn("user", (encode_png(PillowImage.open(buffer), orientation=6), "why"))], open_turn=True)
    for mode, rows in (("apply", 1), ("ignore", 16)):
        image = ImageConfig(patch_size=4, max_side=64, exif=mode)
        (((_, counts),),) = prompt_batches([prompt], 1, TOKENIZER, image)
        # <s>, <|user|>, the image, three letters, <|assistant|>
        assert counts.tolist() == [[16, 2 + rows + 1 + 3 + 1]]


def test_an_answer_holds_text_and_a_stop_token() -> None:
    allowed = allowed_tokens(TOKENIZER, TOKENIZER.vocab_size + 5, stops=(2, 12))
    assert np.flatnonzero(allowed[:100]).tolist() == [0, 2, 12, *range(15, 100)]
    assert not allowed[TOKENIZER.vocab_size :].any()
    tokens = np.array([7, 12, 2, 12])
    assert [answer_length(tokens, stops) for stops in ((2,), (2, 12), (3,), (7,))] == [3, 2, 4, 1]


def test_batches_by_length_hold_every_prompt_once_and_waste_at_most_half() -> None:
    rng = np.random.default_rng(0)
    needs = np.stack([rng.choice([0, 64, 300, 1024, 4096], 501), rng.integers(9, 400, 501)], axis=1)
    plan = by_length(needs, rows=8, multiple=2)
    assert sorted(number for batch in plan for number in batch.numbers) == list(range(501))
    assert len(plan) == 63
    own = [by_length(needs[list(batch.numbers)], rows=8, multiple=2)[0].room for batch in plan]
    for batch, least in zip(plan, own, strict=True):
        assert (needs[list(batch.numbers)] <= batch.room).all()
        assert sum(batch.room) < 2 * sum(least) or batch.room == least
    # Every shape is compiled: each of them at least halves, or does not fit the one before.
    assert len({batch.room for batch in plan}) < 12
    one_shape = in_order(needs, 8)
    assert sum(sum(batch.room) for batch in plan) < 0.5 * sum(sum(batch.room) for batch in one_shape)
    assert sum(plan[0].room) == max(sum(batch.room) for batch in plan)
    assert by_length(needs, rows=8, multiple=2) == plan
    assert by_length(needs[:0], rows=8) == in_order(needs[:0], rows=8) == []
