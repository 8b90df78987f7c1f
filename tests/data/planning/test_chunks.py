from __future__ import annotations

import numpy as np
import pytest

from solo.config import ImageConfig
from solo.data.planning.chunks import EMPTY, IMAGE_TOO_LARGE, TOO_LONG, make_chunks
from solo.data.planning.row_shape import RowShape, TextPerPatch
from solo.data.store.index import IMAGE, SUPERVISED_TEXT, TEXT, SourceIndex, make_index

CONFIG = ImageConfig(patch_size=10, max_side=1000)
SHAPE = RowShape(patch_slots=20, text_slots=10, target_slots=8)

Run = tuple[int, int, int]


def read(tokens: int) -> Run:
    return TEXT, tokens, 0


def learn(tokens: int) -> Run:
    return SUPERVISED_TEXT, tokens, 0


def picture(rows: int, columns: int) -> Run:
    """rows * columns patches, rows + 1 text tokens."""
    return IMAGE, columns * 10, rows * 10


def index(*records: list[Run]) -> SourceIndex:
    runs = [run for record in records for run in record]
    ends = np.cumsum([0, *(len(record) for record in records)])
    return make_index(
        np.asarray([run[0] for run in runs], np.uint8),
        np.asarray([run[1:] for run in runs], np.int32).reshape(-1, 2),
        ends.astype(np.int64),
    )


def rows_of(chunks) -> list[tuple[int, ...]]:  # type: ignore[no-untyped-def]
    table = chunks.bounds(np.arange(len(chunks)))
    assert chunks.needs(np.arange(len(chunks))).tolist() == table[:, 4:].tolist()
    assert chunks.totals.tolist() == table[:, 4:].sum(axis=0).tolist()
    return [tuple(row) for row in np.delete(table, 3, axis=1).tolist()]


def test_records_that_fit_are_one_chunk_each() -> None:
    chunks = make_chunks(index([read(1), picture(2, 3), learn(2)], [read(1), learn(8)]), CONFIG, SHAPE, "split")
    assert rows_of(chunks) == [(0, 0, 12, 6, 6, 2), (1, 0, 9, 0, 9, 8)]
    assert (chunks.documents, chunks.split, dict(chunks.dropped)) == (2, 0, {})


def test_a_supervised_token_without_predecessor_is_not_a_target() -> None:
    chunks = make_chunks(index([learn(5)], [read(1), learn(5)]), CONFIG, SHAPE, "split")
    assert [row[-1] for row in rows_of(chunks)] == [4, 5]


def test_long_text_is_split_between_tokens() -> None:
    shape = RowShape(patch_slots=20, text_slots=10, target_slots=10)
    chunks = make_chunks(index([read(1), learn(24)], [read(3)]), CONFIG, shape, "split")
    # 10 slots: 9 targets after the first; then chunks whose own first slot is not a target.
    assert rows_of(chunks) == [(0, 0, 10, 0, 10, 9), (0, 10, 20, 0, 10, 9), (0, 20, 25, 0, 5, 4), (1, 0, 3, 0, 3, 0)]
    assert chunks.split == 1


def test_targets_limit_a_chunk_as_well() -> None:
    shape = RowShape(patch_slots=0, text_slots=10, target_slots=3)
    chunks = make_chunks(index([read(2), learn(8), read(1)]), CONFIG, shape, "split")
    assert rows_of(chunks) == [(0, 0, 5, 0, 5, 3), (0, 5, 9, 0, 4, 3), (0, 9, 11, 0, 2, 0)]


def test_an_image_is_never_split_or_separated_from_its_delimiters() -> None:
    record = [read(1), learn(5), picture(4, 4), learn(1), picture(2, 5), read(2)]
    chunks = make_chunks(index(record), CONFIG, SHAPE, "split")
    # text 6 and the image's 5 exceed 10; then 16 patches and 10 exceed 20.
    assert rows_of(chunks) == [(0, 0, 6, 0, 6, 5), (0, 6, 28, 16, 6, 1), (0, 28, 43, 10, 5, 0)]


def test_an_image_that_never_fits_drops_its_record() -> None:
    large, tall = [read(1), picture(3, 7), learn(2)], [read(1), picture(10, 1), learn(2)]
    chunks = make_chunks(index(large, tall, [read(2)]), CONFIG, SHAPE, "split")
    assert rows_of(chunks) == [(2, 0, 2, 0, 2, 0)]
    assert dict(chunks.dropped) == {IMAGE_TOO_LARGE: 2}


def test_drop_leaves_long_records_out_and_counts_them() -> None:
    chunks = make_chunks(index([read(1), learn(24)], [], [read(3)], [picture(3, 7)]), CONFIG, SHAPE, "drop")
    assert rows_of(chunks) == [(2, 0, 3, 0, 3, 0)]
    assert dict(chunks.dropped) == {TOO_LONG: 2, EMPTY: 1}
    assert (chunks.documents, chunks.split) == (4, 0)


def test_chunks_leave_room_for_the_text_of_other_patches() -> None:
    shape = RowShape(patch_slots=20, text_slots=100, target_slots=100)
    source = index([read(250)], [read(90)], [read(91)], [read(90), picture(1, 5)])
    chunks = make_chunks(source, CONFIG, shape, "split", TextPerPatch(mean=1.5, low=0.5))
    # Chunks leave 1.5 * 20 text slots. A text that leaves 0.5 * 20 stays whole, and so does one with an image.
    assert [row[2] - row[1] for row in rows_of(chunks)] == [70, 70, 70, 40, 90, 70, 21, 97]
    assert chunks.split == 2


def test_text_that_fits_a_row_is_never_dropped() -> None:
    shape = RowShape(patch_slots=20, text_slots=100, target_slots=100)
    chunks = make_chunks(index([read(100)]), CONFIG, shape, "drop", TextPerPatch(mean=1.5, low=0.5))
    assert len(chunks) == 1


@pytest.mark.parametrize("seed", range(5))
def test_chunks_cover_every_record_exactly(seed: int) -> None:
    random = np.random.default_rng(seed)
    makers = [lambda: read(random.integers(1, 30)), lambda: learn(random.integers(1, 30))]
    makers.append(lambda: picture(random.integers(1, 5), random.integers(1, 5)))
    records = [[makers[random.integers(3)]() for _ in range(random.integers(1, 8))] for _ in range(100)]
    source = index(*records)
    chunks = make_chunks(source, CONFIG, SHAPE, "split", TextPerPatch(0.2, 0.1))
    total = source.counts(CONFIG)
    assert chunks.documents == 100
    assert not chunks.dropped
    record, start, stop, patches, text, targets = np.asarray(rows_of(chunks)).T
    assert (np.column_stack([patches, text, targets]) <= [20, 10, 8]).all()
    assert (patches + text == stop - start).all()
    for number in range(100):
        mine = record == number
        assert [0, *stop[mine]] == [*start[mine], total[number, :2].sum()], (
            "consecutive, from the first slot to the last"
        )
        assert [patches[mine].sum(), text[mine].sum()] == total[number, :2].tolist()
    assert chunks.split == len([number for number in range(100) if np.count_nonzero(record == number) > 1])


def test_blocks_give_what_a_whole_source_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [[read(1), learn(size)] if size else [] for size in (5, 0, 24, 3, 0, 40, 9, 2)]
    whole = rows_of(make_chunks(index(*records), CONFIG, SHAPE, "split"))
    monkeypatch.setattr("solo.data.planning.chunks._BLOCK", 3)
    blocks = make_chunks(index(*records), CONFIG, SHAPE, "split")
    assert rows_of(blocks) == whole
    assert dict(blocks.dropped) == {EMPTY: 2}
    assert [row[0] for row in whole] == [0, 2, 2, 2, 3, 5, 5, 5, 5, 5, 6, 6, 7]
