"""What rows are taken to hold."""

import numpy as np
import pytest

from solo.config import ConfigError
from solo.data.planning.row_shape import RowShape
from solo.planning.rows import Document, intervals, stage_rows, stated_rows
from tests.tiny import tiny_config

ROW = (Document(5, 3, 3), Document(0, 4, 4), Document(4, 2, 2))
SHAPE = RowShape(12, 10, 9)


def _seen(attention: str, window: int | None) -> np.ndarray:
    """bool [S, S] by definition: a document's image, then its text, in reading order."""
    seen = np.zeros((SHAPE.slots, SHAPE.slots), bool)
    first = np.zeros(2, int)
    for document in ROW:
        patches = first[0] + np.arange(document.patches)
        slots = [*patches, *(SHAPE.patch_slots + first[1] + np.arange(document.text))]
        for place, query in enumerate(slots):
            for other, key in enumerate(slots):
                near = window is None or place - other < window
                seen[query, key] = other <= place and near
                if query in patches and key in patches and attention != "causal":
                    seen[query, key] = attention == "bidirectional" or query == key
        first += (document.patches, document.text)
    return seen


@pytest.mark.parametrize(
    ("attention", "window"), [("causal", None), ("causal", 3), ("bidirectional", None), ("isolated", None)]
)
def test_intervals_are_what_reading_order_means(attention: str, window: int | None) -> None:
    a0, a1, a2, a3 = intervals(ROW, SHAPE, attention, window)[..., None].swapaxes(0, 1)
    patches, text = np.arange(SHAPE.patch_slots), np.arange(SHAPE.text_slots)
    seen = np.concatenate([(patches >= a0) & (patches < a1), (text >= a2) & (text < a3)], axis=1)
    np.testing.assert_array_equal(seen, _seen(attention, window))


def test_stated_rows_are_those_of_the_stage_and_say_so() -> None:
    stage = tiny_config().stages[0]
    given = stated_rows(stage.model_copy(update={"patch_slots": 96, "text_slots": 32}))
    assert given.shape == RowShape(96, 32, 32)
    assert given.live == (96, 32, 32)
    shared = stated_rows(stage.model_copy(update={"row_slots": 512}), patch_share=0.5, document_slots=128)
    assert shared.shape == RowShape(256, 256, 256)
    assert len(shared.documents[0]) == 4
    assert "stated" in shared.source


def test_without_data_rows_are_stated() -> None:
    config = tiny_config(data={"folder": "nowhere", "sources": {"digits": {"reader": "digits"}}})
    assert not stage_rows(config, config.stages[0]).measured


def test_epochs_need_data() -> None:
    stage = tiny_config().stages[0].model_copy(update={"steps": None, "epochs": 1.0})
    with pytest.raises(ConfigError, match="solo prepare"):
        stated_rows(stage)
