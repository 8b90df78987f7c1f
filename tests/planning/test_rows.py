"""Stated and planned rows, and the visibility of their slots."""

import numpy as np
import pytest
from PIL import Image as PillowImage

from solo.config import ConfigError, ImageConfig, SequenceConfig
from solo.data.planning.row_shape import RowShape
from solo.data.record import Image, encode_png
from solo.data.rows.assembly import assemble_row
from solo.data.rows.document import Document as EncodedDocument
from solo.data.rows.document import TextRun, encode
from solo.planning.rows import Document, row_intervals, stage_rows, stated_rows
from tests.data.fakes import CharacterTokenizer
from tests.tiny import tiny_config

MASKS = ("causal", "bidirectional", "prefix", "isolated")
# Patches, row tokens between them, and further text of three documents: 2 rows of 2, no image, 3 rows of 3.
DOCUMENTS = ((4, 1, 3), (0, 0, 4), (9, 2, 2))
SHAPE = RowShape(16, 20, 9)


def _encoded(patches: int, rows: int, text: int, image: ImageConfig) -> EncodedDocument:
    """What training reads: `solo.data.rows.document.encode` with an image of `rows` + 1 rows."""
    parts: list[TextRun | Image] = [TextRun((7,) * text, False)]
    if patches:
        side = image.patch_size * (rows + 1)
        parts = [encode_png(PillowImage.new("RGB", (side, side))), *parts]
    return encode(parts, CharacterTokenizer(), image)


@pytest.mark.parametrize("delimiters", [True, False])
@pytest.mark.parametrize("sliding_window", [None, 1, 4])
@pytest.mark.parametrize("mask", MASKS)
def test_intervals_are_those_of_training(mask: str, sliding_window: int | None, delimiters: bool) -> None:
    names = {} if delimiters else {"begin_token": None, "end_token": None, "row_token": None}
    image = ImageConfig(patch_size=4, max_side=64, mask=mask, **names)  # type: ignore[arg-type]
    sequence = SequenceConfig(sliding_window=sliding_window)
    trained = [_encoded(patches, rows, text, image) for patches, rows, text in DOCUMENTS]
    expected = assemble_row([(document, 0) for document in trained], SHAPE, image, 0, sequence).attend
    planned = [
        Document(patches, text + delimiters * (rows + 2 * (patches > 0)), 0) for patches, rows, text in DOCUMENTS
    ]
    np.testing.assert_array_equal(row_intervals(planned, SHAPE, image, sequence), expected)


def test_a_document_has_room_for_the_delimiters_of_its_image() -> None:
    with pytest.raises(ConfigError, match="longer documents"):
        row_intervals([Document(4, 1, 1)], SHAPE, ImageConfig(), SequenceConfig())


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
