"""Batches of a published model's tensors: who sees whom, and results in the order of `input_ids`."""

from __future__ import annotations

import numpy as np
import pytest

from solo.inference.hf_batch import check_tensors, hf_batch
from tests.tiny import MODEL, tiny_config

VALUES = 8 * 8 * 3
PATCH_ID = 9
# Padding (-), text (t) and patches (p) of each row.
ROWS = ("--ttppptt---", "tttttppppptt", "pptt--------")


def tensors() -> dict[str, np.ndarray]:
    kinds = np.array([list(row) for row in ROWS])
    is_patch = kinds == "p"
    numbers = np.full(kinds.shape, -1)
    numbers[is_patch] = np.arange(is_patch.sum())
    patches = np.arange(is_patch.sum())[:, None] + np.zeros(VALUES, np.float32)
    ids = np.where(is_patch, PATCH_ID, np.arange(kinds.size).reshape(kinds.shape) + 10)
    return {
        "input_ids": ids,
        "attention_mask": kinds != "-",
        "vision_patches": patches,
        "vision_patch_indices": numbers,
        "labels": np.where(kinds == "t", ids, -100),
    }


def make(mask: str = "causal", window: int | None = None):
    config = tiny_config(mask, sequence={"sliding_window": window})
    return hf_batch(check_tensors(tensors(), config, PATCH_ID), config)


def seen(batch) -> np.ndarray:
    """bool [B, N, N]: which elements each element sees."""
    attend, num_patches = batch.batch.attend, batch.batch.patches.shape[1]
    slots = np.arange(attend.shape[1])
    patches = (slots >= attend[..., :1]) & (slots < attend[..., 1:2]) & (slots < num_patches)
    text = (slots - num_patches >= attend[..., 2:3]) & (slots - num_patches < attend[..., 3:])
    by_slot = patches | text
    return np.stack([rows[own][:, own] for rows, own in zip(by_slot, batch.slots, strict=True)])


@pytest.mark.parametrize("window", [None, 1, 4])
def test_elements_and_the_padding_after_them_see_the_real_elements_within_the_window(window) -> None:
    found = seen(make(window=window))
    for row, kinds in enumerate(ROWS):
        real = np.array([kind != "-" for kind in kinds])
        place = np.arange(len(kinds))
        expected = (place[None] <= place[:, None]) & real[None] & (place >= real.argmax())[:, None]
        if window is not None:
            expected &= place[:, None] - place[None] < window
        np.testing.assert_array_equal(found[row], expected, err_msg=kinds)


def test_an_image_sees_all_of_itself_where_the_mask_says_so() -> None:
    found = seen(make("bidirectional"))
    assert found[0, 4:7, 4:7].all()
    assert not found[0, 4:7, 7:].any()


def test_every_element_keeps_its_id_its_patch_and_its_target() -> None:
    made, given = make(), tensors()
    text_slots = made.slots - made.batch.patches.shape[1]
    for row, kinds in enumerate(ROWS):
        for place, kind in enumerate(kinds):
            if kind == "p":
                pixels = made.batch.patches[row, made.slots[row, place]]
                assert (pixels == given["vision_patch_indices"][row, place]).all()
            else:
                assert made.batch.text[row, text_slots[row, place]] == given["input_ids"][row, place]
        count = int(made.batch.target_weights[row].sum())
        targets = dict(zip(made.batch.target_slots[row, :count], made.batch.target_ids[row, :count], strict=True))
        places = [place for place in range(1, len(kinds)) if kinds[place] == "t"]
        assert targets == {made.slots[row, place - 1]: given["input_ids"][row, place] for place in places}
    assert made.under_id == PATCH_ID


def test_results_come_back_in_the_order_of_the_ids() -> None:
    made = make()
    by_slot = np.zeros(made.batch.positions.shape, np.int64)
    for row, own in enumerate(made.slots):
        by_slot[row, own] = tensors()["input_ids"][row]
    np.testing.assert_array_equal(made.in_input_order(by_slot), tensors()["input_ids"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixels": np.zeros(1)}, "does not know pixels"),
        ({"labels": np.zeros((1, 2))}, "labels has shape"),
        ({"attention_mask": np.array([[1, 0, 1] + [0] * 9] * 3)}, "one run of ones"),
        ({"vision_patch_indices": None}, "need vision_patch_indices"),
        ({"vision_patches": np.zeros((2, VALUES))}, "vision_patch_indices go from"),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        check_tensors({**tensors(), **changes}, tiny_config(), PATCH_ID)


CONTEXT, BEGIN, END = 20, 21, 22
GRIDS = [[2, 6], [4, 2], [2, 2]]  # in patches of 4 pixels, of which 2 x 2 make one visual token


def fine_tensors() -> dict[str, np.ndarray]:
    """Two documents in a row: text, images of 3 and 2 tokens; an image of one token. Pixels are their own numbers."""
    ids = [5, BEGIN, *[CONTEXT] * 3, END, BEGIN, *[CONTEXT] * 2, END, 6, BEGIN, CONTEXT, END, 7]
    count = sum(high * wide for high, wide in GRIDS)
    pixels = np.arange(count * 48, dtype=np.float32).reshape(count, 48)
    return {"input_ids": np.array([ids]), "pixel_values": pixels, "image_grid_hw": np.array(GRIDS)}


def fine_config():
    embed = {"kind": "conv", "inner_size": 4, "inner_width": 8}
    return tiny_config("bidirectional", model={**MODEL, "patch_embed": embed})


def test_fine_patches_are_merged_row_by_row_image_by_image() -> None:
    tensors = fine_tensors()
    found = check_tensors(tensors, fine_config(), 99)
    places = np.flatnonzero(tensors["input_ids"][0] == CONTEXT)
    assert found.patch[0, places].tolist() == list(range(6))
    assert (found.patch >= 0).sum() == 6
    assert found.grid.tolist() == [[0, 0], [0, 1], [0, 2], [0, 0], [1, 0], [0, 0]]
    pixels, first = tensors["pixel_values"].reshape(-1, 3, 4, 4), 0
    for (high, wide), start in zip(GRIDS, (0, 3, 5), strict=True):
        fine = pixels[first : first + high * wide].reshape(high, wide, 3, 4, 4)
        whole = fine.transpose(2, 0, 3, 1, 4).reshape(3, 4 * high, 4 * wide)
        for number in range(high * wide // 4):
            row, column = found.grid[start + number]
            block = whole[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            np.testing.assert_array_equal(found.patches[start + number].reshape(3, 8, 8), block)
        first += high * wide


def test_documents_in_a_row_see_nothing_of_each_other() -> None:
    tensors = fine_tensors() | {"seq_boundaries": np.array([0, 10, 15]), "labels": np.full(15, -100)}
    made = hf_batch(check_tensors(tensors, fine_config(), CONTEXT), fine_config())
    found, first = seen(made)[0], np.arange(15) < 10
    assert not found[np.ix_(first, ~first)].any()
    assert not found[np.ix_(~first, first)].any()
    assert found[2:5, 2:5].all()
    assert found[7:9, 7:9].all()
    assert not found[2:5, 5:].any()
    assert made.batch.positions[0, made.slots[0]].tolist() == [*range(10), *range(5)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_grid_hw": np.array([[2, 6], [4, 2]])}, "image_grid_hw describes 20 patches, but pixel_values has 24"),
        ({"image_grid_hw": np.array([[3, 4], [4, 2], [2, 2]])}, "multiples of 2"),
        ({"pixel_values": np.zeros((24, 47))}, r"are \[patches, 48\]; found \(24, 47\)"),
        (
            {"input_ids": np.array([[5, BEGIN, CONTEXT, CONTEXT, END]])},
            r"0 placeholders \(id 99\) for images of 3, 2, 1",
        ),
        ({"seq_boundaries": np.array([0, 10])}, "rise from 0 to the 15 elements"),
        ({"seq_boundaries": np.array([0, 15]), "attention_mask": np.arange(15)[None] < 9}, "without padding"),
    ],
)
def test_fine_patches_that_do_not_fit_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        check_tensors({**fine_tensors(), **changes}, fine_config(), 99)


def test_tensors_that_would_have_no_effect_are_refused() -> None:
    """Positions of images in three axes follow from the images, and marked media need their pixels."""
    ids = {"input_ids": np.array([[10, 11, 12, 13]])}
    flat = tiny_config()
    axes = tiny_config(model=MODEL | {"rope_sections": [2, 1, 1]}, sequence={"positions": "grid"})
    places = {"position_ids": np.array([[0, 1, 2, 7]])}
    assert check_tensors({**ids, **places}, flat, PATCH_ID).positions.tolist() == [[0, 1, 2, 7]]
    with pytest.raises(ValueError, match="position_ids are not read"):
        check_tensors({**ids, **places}, axes, PATCH_ID)
    check_tensors({**ids, "mm_token_type_ids": np.array([[0, 0, 0, 0]])}, flat, PATCH_ID)
    with pytest.raises(ValueError, match="2 tokens of media; their image_position_ids are missing"):
        check_tensors({**ids, "mm_token_type_ids": np.array([[0, 1, 2, 0]])}, flat, PATCH_ID)
