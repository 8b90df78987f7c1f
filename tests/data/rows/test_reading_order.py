"""Masks and positions, against their rules for one pair of elements at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from solo.config import ImageConfig, SequenceConfig
from solo.data.planning.row_shape import RowShape
from solo.data.record import encode_png
from solo.data.rows.assembly import assemble_row
from solo.data.rows.document import NO_IMAGE, PATCH, Document, TextRun, encode
from solo.data.rows.reading_order import join_documents, outline, positions, visible
from tests.data.fakes import CharacterTokenizer

PATTERNS = ["causal", "bidirectional", "prefix", "isolated"]
BEGIN, END, ROW = 5, 6, 7

Element = tuple[int, int, tuple[int, int]]  # token or PATCH, image, row and column


def config(pattern: str, delimiters: bool = True) -> ImageConfig:
    names = {} if delimiters else {"begin_token": None, "end_token": None}
    return ImageConfig(patch_size=1, max_side=8, mask=pattern, **names)  # type: ignore[arg-type]


def picture(rows: int, columns: int, number: int, delimiters: bool = True, separators: bool = True, tiles: int = 1):
    inside: list[Element] = []
    for _, row, column in np.ndindex(tiles, rows, columns):
        if separators and inside and column == 0 and row:
            inside.append((ROW, number, (0, 0)))
        inside.append((PATCH, number, (row, column)))
    return [(BEGIN, NO_IMAGE, (0, 0)), *inside, (END, NO_IMAGE, (0, 0))] if delimiters else inside


def text(count: int) -> list[Element]:
    return [(100 + number, NO_IMAGE, (0, 0)) for number in range(count)]


def document(elements: list[Element]) -> Document:
    tokens, image, grid = zip(*elements, strict=True)
    is_patch = np.asarray(tokens) == PATCH
    return Document(
        np.asarray(tokens, np.int32),
        np.zeros(len(tokens), bool),
        np.asarray(image, np.int32),
        np.zeros((is_patch.sum(), 3), np.uint8),
        np.asarray(grid, np.int32)[is_patch],
    )


@st.composite
def documents(draw: st.DrawFn, delimiters: bool) -> Document:
    elements: list[Element] = []
    for number in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            rows, columns, tiles = (draw(st.integers(1, most)) for most in (3, 3, 2))
            elements += picture(rows, columns, number, delimiters, separators=tiles == 1, tiles=tiles)
        else:
            elements += text(draw(st.integers(1, 5)))
    return document(elements)


def seen(one: Document, query: int, key: int, pattern: str, window: int | None) -> bool:
    """Returns whether an element sees another one of its document."""
    spans = {}
    for number in set(one.image.tolist()) - {NO_IMAGE}:
        inside = np.flatnonzero(one.image == number).tolist()
        if pattern == "prefix":
            before, after = inside[0] - 1, inside[-1] + 1
            begin = [before] if before >= 0 and one.tokens[before] == BEGIN else []
            end = [after] if after < len(one.tokens) and one.tokens[after] == END else []
            inside = [*begin, *inside, *end]
        spans[number] = inside
    if pattern == "isolated" and one.tokens[query] == PATCH:
        return query == key
    together = pattern in ("bidirectional", "prefix") and any(
        query in inside and key in inside for inside in spans.values()
    )
    near = window is None or query - key < window
    own_start = min((inside[0] for inside in spans.values() if query in inside), default=query)
    if pattern in ("bidirectional", "prefix"):
        # The whole span of an image is seen, even beyond the window.
        near = near or key >= own_start
    return together or (key <= query and near)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(PATTERNS), st.booleans(), st.one_of(st.none(), st.integers(1, 9)))
def test_intervals_are_the_mask(data: st.DataObject, pattern: str, delimiters: bool, window: int | None) -> None:
    found = data.draw(st.lists(documents(delimiters), max_size=3))
    order = join_documents([(one, 0) for one in found])
    intervals = visible(order, config(pattern, delimiters), SequenceConfig(sliding_window=window))
    is_patch = order.is_patch
    number = np.where(is_patch, np.cumsum(is_patch) - 1, np.cumsum(~is_patch) - 1)
    offset = 0
    for one in found:
        own = range(offset, offset + len(one.tokens))
        for query, key in itertools.product(own, range(len(is_patch))):
            a0, a1, a2, a3 = intervals[query]
            low, high = (a0, a1) if is_patch[key] else (a2, a3)
            expected = key in own and seen(one, query - offset, key - offset, pattern, window)
            assert (low <= number[key] < high) == expected
        offset += len(one.tokens)


def test_a_sliding_window_counts_the_slot_itself() -> None:
    # SOLO: 4,096 slots before a slot and itself, within its document.
    window = 4097
    long = document([*text(3000), *picture(20, 20, 0), *text(3000)])
    order = join_documents([(document(text(500)), 0), (long, 0)])
    intervals = visible(order, config("causal"), SequenceConfig(sliding_window=window))
    is_patch = order.is_patch
    place = np.arange(len(is_patch) - 500)
    mask = (place[None] <= place[:, None]) & (place[:, None] - place[None] < window)
    patches, others = (np.cumsum(mask[:, kind], axis=1)[:, -1] for kind in (is_patch[500:], ~is_patch[500:]))
    assert np.array_equal(intervals[500:, 1] - intervals[500:, 0], patches)
    assert np.array_equal(intervals[500:, 3] - intervals[500:, 2], others)
    first = np.where(mask, place, len(place)).min(axis=1)
    assert np.array_equal(intervals[500:, 0], np.concatenate([[0], np.cumsum(is_patch[500:])])[first])
    assert np.array_equal(intervals[500:, 2], 500 + np.concatenate([[0], np.cumsum(~is_patch[500:])])[first])
    assert (intervals[500:, 1::2] - intervals[500:, ::2]).sum(axis=1).max() == 4097
    assert np.array_equal(
        visible(order, config("causal"), SequenceConfig(sliding_window=10_000)),
        visible(order, config("causal"), SequenceConfig()),
    )


# ------------------------------------------------------------------------------------------ positions


SEPARATE = SequenceConfig(positions="separate")


def test_sail_positions_written_out() -> None:
    # <vision>, 2 x 3 patches, </vision>, two of text; then another document.
    image = document([*picture(2, 3, 0, separators=False), *text(2)])
    order = join_documents([(image, 0), (document(text(2)), 0)])
    found = positions(order, SequenceConfig(positions="grid"))
    patches = [(1, 1, 1), (1, 1, 2), (1, 1, 3), (1, 2, 1), (1, 2, 2), (1, 2, 3)]
    assert found.tolist() == [list(p) for p in [(0,) * 3, *patches, (4,) * 3, (5,) * 3, (6,) * 3, (0,) * 3, (1,) * 3]]


def grid_positions(one: Document) -> list[tuple[int, int, int]]:
    """Positions of one element after another, with a counter."""
    found: list[tuple[int, int, int]] = []
    grid = iter(one.patch_grid.tolist())
    following, start, tile, last = 0, 0, 0, (0, 0)
    for place, (token, image) in enumerate(zip(one.tokens.tolist(), one.image.tolist(), strict=True)):
        if image == NO_IMAGE:
            found.append((following,) * 3)
            following += 1
            continue
        if place == 0 or one.image[place - 1] != image:
            start, tile = following, -1
        if token == PATCH:
            last = tuple(next(grid))
            tile += last == (0, 0)
            found.append((start + tile, start + last[0], start + last[1]))
        else:
            found.append((start + tile, start + last[0], start + last[1] + 1))
        following = max(following, max(found[-1]) + 1)
    return found


@settings(max_examples=200, deadline=None)
@given(st.data(), st.booleans())
def test_grid_positions(data: st.DataObject, delimiters: bool) -> None:
    found = data.draw(st.lists(documents(delimiters), min_size=1, max_size=3))
    order = join_documents([(one, 0) for one in found])
    expected = [position for one in found for position in grid_positions(one)]
    assert positions(order, SequenceConfig(positions="grid")).tolist() == [list(position) for position in expected]
    counted = [place for one in found for place in range(len(one.tokens))]
    assert positions(order, SequenceConfig()).tolist() == counted


@settings(max_examples=200, deadline=None)
@given(st.data(), st.booleans())
def test_separate_positions(data: st.DataObject, delimiters: bool) -> None:
    found = data.draw(st.lists(documents(delimiters), min_size=1, max_size=3))
    expected = [position for one in found for position in separate_positions(one)]
    assert positions(join_documents([(one, 0) for one in found]), SEPARATE).tolist() == expected


def separate_positions(one: Document) -> list[list[int]]:
    """Time, row and column of one element after another, with a clock."""
    found: list[list[int]] = []
    grid, clock, row, column = iter(one.patch_grid.tolist()), -1, 0, 0
    for place, (token, image) in enumerate(zip(one.tokens.tolist(), one.image.tolist(), strict=True)):
        opens_image = image != NO_IMAGE and (place == 0 or one.image[place - 1] != image)
        if image == NO_IMAGE:
            row = column = 0
        elif token == PATCH:
            row, column = next(grid)
        else:
            column += 1
        opens_tile = token == PATCH and (row, column) == (0, 0)
        clock += image == NO_IMAGE or opens_image or opens_tile
        found.append([clock, row, column])
    return found


def test_neo_positions_written_out() -> None:
    # <img>, 2 x 3 patches, </img>, <img>, one patch, </img>, two of text; then another document.
    one = document([*picture(2, 3, 0, separators=False), *picture(1, 1, 1, separators=False), *text(2)])
    found = positions(join_documents([(one, 0), (document(text(2)), 0)]), SEPARATE).tolist()
    patches = [[1, 0, 0], [1, 0, 1], [1, 0, 2], [1, 1, 0], [1, 1, 1], [1, 1, 2]]
    after = [[2, 0, 0], [3, 0, 0], [4, 0, 0], [5, 0, 0], [6, 0, 0], [7, 0, 0]]
    assert found == [[0, 0, 0], *patches, *after, [0, 0, 0], [1, 0, 0]]


def test_rows_hold_three_positions_per_slot() -> None:
    one = document([*picture(2, 2, 0), *text(1)])
    sequence = SequenceConfig(positions="grid")
    row = assemble_row([(one, 0)], RowShape(6, 8, 2), config("causal"), 0, sequence)
    assert (row.positions.shape, row.positions.dtype) == ((14, 3), np.int32)
    # <vision> is at 0, the row token at 3 as a third column, </vision> at 4 and the text at 5.
    assert row.positions[:4].tolist() == [[1, 1, 1], [1, 1, 2], [1, 2, 1], [1, 2, 2]]
    assert row.positions[6:10].tolist() == [[0] * 3, [1, 1, 3], [4] * 3, [5] * 3]
    assert not row.positions[[4, 5, *range(10, 14)]].any()


LAYOUTS = {
    "delimiters": {},
    "a row token after the last row": {"row_token_after_last": True},
    "no row tokens": {"row_token": None},
    "no delimiters": {"begin_token": None, "end_token": None, "row_token": None},
    "tiles": {"geometry": "tiles", "tile_size": 6, "min_tiles": 1, "max_tiles": 1},
    "markers": {"row_token": None, "markers": True},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_outline_sees_what_a_document_with_a_square_image_sees(pattern: str, layout: str) -> None:
    image = ImageConfig(patch_size=2, max_side=8, mask=pattern, **LAYOUTS[layout])  # type: ignore[arg-type]
    parts = [encode_png(PillowImage.new("RGB", (6, 6))), TextRun((1, 2, 3), True)]
    full = encode(parts, CharacterTokenizer(), image)
    patches = len(full.patches)
    found = outline(patches, len(full.tokens) - patches, image)
    assert len(found.patches) == len(found.patch_grid) == patches
    for sequence in (SequenceConfig(), SequenceConfig(sliding_window=3)):
        expected = visible(join_documents([(full, 0)]), image, sequence)
        assert np.array_equal(visible(join_documents([(found, 0)]), image, sequence), expected)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_documents(pattern: str) -> None:
    order = join_documents([])
    assert visible(order, config(pattern), SequenceConfig(sliding_window=3)).shape == (0, 4)
    assert positions(order, SequenceConfig(positions="grid")).shape == (0, 3)
    assert positions(order, SEPARATE).shape == (0, 3)
