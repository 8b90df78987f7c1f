from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solo.config import ImageConfig, SequenceConfig
from solo.data.planning.row_shape import RowShape
from solo.data.rows.assembly import assemble_row, stack
from solo.data.rows.document import NO_IMAGE, PATCH, Document

PAD = 99


def config(mode: str = "causal") -> ImageConfig:
    return ImageConfig(patch_size=1, max_side=8, mask=mode)  # type: ignore[arg-type]


def document(elements: list[tuple[int, bool, int]], first_pixel: int = 0) -> Document:
    """Makes a document of (token or PATCH, supervised, image) in reading order; pixels count from `first_pixel`."""
    tokens, supervised, image = (np.asarray(column) for column in zip(*elements, strict=True))
    count = int((tokens == PATCH).sum())
    pixels = first_pixel + np.arange(count)
    return Document(
        tokens.astype(np.int32),
        supervised.astype(bool),
        image.astype(np.int32),
        np.repeat(pixels[:, None], 3, axis=1).astype(np.uint8),
        np.stack([pixels, pixels + 1], axis=1).astype(np.int32),
    )


def picture(rows: int, columns: int, number: int) -> list[tuple[int, bool, int]]:
    """<vision> = 5, </vision> = 6, row token = 7."""
    inside = [(7, False, number) if column == 0 and row else None for row in range(rows) for column in range(columns)]
    span = [element for place in inside for element in ([place] if place else []) + [(PATCH, False, number)]]
    return [(5, False, NO_IMAGE), *span, (6, False, NO_IMAGE)]


# `1` opens, then a 2 x 2 image, a question `11`, the answer `21 22`, and `2` closes.
QUESTION = document(
    [(1, False, -1), *picture(2, 2, 0), (11, False, -1), (21, True, -1), (22, True, -1), (2, True, -1)], first_pixel=50
)
CAPTION = document([(31, True, -1), (32, True, -1)])
SHAPE = RowShape(patch_slots=6, text_slots=12, target_slots=5)


def test_a_row_written_out() -> None:
    row = assemble_row([(QUESTION, 3), (CAPTION, 1)], SHAPE, config(), PAD)
    # Reading order of the question: 1 <vision> p p sep p p </vision> 11 21 22 2
    assert row.text.tolist() == [1, 5, 7, 6, 11, 21, 22, 2, 31, 32, PAD, PAD]
    assert row.patches[:, 0].tolist() == [50, 51, 52, 53, 0, 0]
    assert row.patch_grid.tolist() == [[50, 51], [51, 52], [52, 53], [53, 54], [0, 0], [0, 0]]
    assert row.positions.tolist() == [2, 3, 5, 6, 0, 0, *[0, 1, 4, 7, 8, 9, 10, 11], *[0, 1], 0, 0]
    assert row.attend.tolist() == [
        [0, 1, 0, 2],
        [0, 2, 0, 2],
        [0, 3, 0, 3],
        [0, 4, 0, 3],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 0, 2],
        [0, 2, 0, 3],
        [0, 4, 0, 4],
        [0, 4, 0, 5],
        [0, 4, 0, 6],
        [0, 4, 0, 7],
        [0, 4, 0, 8],
        [4, 4, 8, 9],
        [4, 4, 8, 10],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    # 21 follows `11` in slot 6 + 4, and so on; 32 follows 31. Nothing precedes 31, so it is not a target.
    assert row.target_slots.tolist() == [10, 11, 12, 14, 0]
    assert row.target_ids.tolist() == [21, 22, 2, 32, 0]
    assert row.target_weights.tolist() == [1, 1, 1, 1, 0]
    assert row.target_source.tolist() == [3, 3, 3, 1, 0]


def test_targets_are_shifted_once() -> None:
    """A target is the next token after its slot in reading order."""
    row = assemble_row([(QUESTION, 0)], SHAPE, config(), PAD)
    for slot, token in zip(row.target_slots[:3], row.target_ids[:3], strict=True):
        place = row.positions[slot]
        assert QUESTION.tokens[place + 1] == token
        assert QUESTION.tokens[place] != token
        assert QUESTION.supervised[place + 1]


def test_the_last_element_of_an_image_predicts_what_follows() -> None:
    elements = [*picture(1, 2, 0)[:-1], (40, True, -1), (41, True, -1)]  # no </vision>: a patch comes last
    row = assemble_row([(document(elements), 0)], SHAPE, config(), PAD)
    assert row.target_slots.tolist() == [1, 6 + 1, 0, 0, 0]
    assert row.target_ids.tolist() == [40, 41, 0, 0, 0]


def test_the_first_element_of_a_chunk_is_not_a_target() -> None:
    row = assemble_row([(CAPTION, 0), (QUESTION.chunk(10, 12), 2)], SHAPE, config(), PAD)
    assert row.text[:4].tolist() == [31, 32, 22, 2]
    assert row.positions[6:10].tolist() == [0, 1, 0, 1]
    assert row.target_ids.tolist() == [32, 2, 0, 0, 0]
    assert row.target_slots.tolist() == [6, 8, 0, 0, 0]


def test_dtypes_and_shapes() -> None:
    row = assemble_row([(QUESTION, 0)], SHAPE, config(), PAD)
    empty = assemble_row([], SHAPE, config(), PAD)
    for built in (row, empty):
        assert [(field.dtype.name, field.shape) for field in built] == [
            ("uint8", (6, 3)),
            ("int32", (6, 2)),
            ("int32", (12,)),
            ("int32", (18,)),
            ("int32", (18, 4)),
            ("int32", (5,)),
            ("int32", (5,)),
            ("float32", (5,)),
            ("int32", (5,)),
        ]
    assert (empty.text == PAD).all()
    assert all(not field.any() for name, field in empty._asdict().items() if name != "text")
    assert [field.shape[0] for field in stack([row, empty, row])] == [3] * 9
    assert np.array_equal(stack([row, empty]).attend[0], row.attend)


@pytest.mark.parametrize(
    ("shape", "what"), [((3, 12, 5), "4 patches"), ((4, 7, 5), "8 text"), ((4, 8, 2), "3 targets")]
)
def test_documents_that_do_not_fit_are_refused(shape: tuple[int, int, int], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        assemble_row([(QUESTION, 0)], RowShape(*shape), config(), PAD)


def test_images_of_neighbouring_documents_do_not_see_each_other() -> None:
    bare = document(picture(1, 2, 0)[1:-1])  # no delimiters; both documents number their image 0
    row = assemble_row([(bare, 0), (bare, 0)], SHAPE, config("bidirectional"), PAD)
    assert row.attend[:4].tolist() == [[0, 2, 0, 0], [0, 2, 0, 0], [2, 4, 0, 0], [2, 4, 0, 0]]


@st.composite
def documents(draw: st.DrawFn) -> Document:
    """Draws interleaved texts and images; sometimes a chunk of them, sometimes an image at either end."""
    elements: list[tuple[int, bool, int]] = []
    images = 0
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            span = picture(draw(st.integers(1, 3)), draw(st.integers(1, 3)), images)
            elements += span if draw(st.booleans()) else span[1:-1]  # images of other families have no delimiters
            images += 1
        else:
            supervised = draw(st.booleans())
            elements += [(100 + number, supervised, NO_IMAGE) for number in range(draw(st.integers(1, 4)))]
    return document(elements)


def slots_in_reading_order(found: list[Document], patch_slots: int) -> list[int]:
    slots, patch, text = [], 0, patch_slots
    for one in found:
        for token in one.tokens:
            if token == PATCH:
                slots.append(patch)
                patch += 1
            else:
                slots.append(text)
                text += 1
    return slots


@settings(max_examples=100, deadline=None)
@given(st.lists(documents(), min_size=1, max_size=4))
def test_targets_are_the_supervised_tokens_that_follow_something(found: list[Document]) -> None:
    shape = RowShape(144, 300, 300)
    row = assemble_row([(one, number) for number, one in enumerate(found)], shape, config(), PAD)
    slots = iter(slots_in_reading_order(found, 144))
    expected = []
    for number, one in enumerate(found):
        own = [next(slots) for _ in one.tokens]
        expected += [
            (own[place - 1], int(one.tokens[place]), number) for place in range(1, len(own)) if one.supervised[place]
        ]
    count = int(row.target_weights.sum())
    columns = (row.target_slots, row.target_ids, row.target_source)
    assert list(zip(*(column[:count].tolist() for column in columns), strict=True)) == expected
    assert not any(column[count:].any() for column in (*columns, row.target_weights))


@pytest.mark.parametrize(("average", "power"), [("token", 0), ("row", 0), ("document", 1), ("document_root", 0.5)])
def test_targets_are_weighted_by_document(average, power) -> None:
    alone = [assemble_row([(one, 0)], SHAPE, config(), PAD) for one in (QUESTION, CAPTION)]
    counts = [int((row.target_weights > 0).sum()) for row in alone]
    assert counts[0] != counts[1]
    row = assemble_row([(QUESTION, 0), (CAPTION, 0)], SHAPE, config(), PAD, SequenceConfig(), average)
    expected = np.repeat(np.asarray(counts, float) ** -power, counts)
    np.testing.assert_allclose(row.target_weights[: sum(counts)], expected, rtol=1e-6)
    assert not row.target_weights[sum(counts) :].any()
