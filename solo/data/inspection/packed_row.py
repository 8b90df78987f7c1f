"""Shows one packed row as it reaches the device: both regions, with documents in colour."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image as PillowImage

from solo.batch import Batch
from solo.config import ImageConfig
from solo.data.inspection.samples import visible
from solo.data.planning.row_shape import RowShape
from solo.data.planning.stage_plan import Chunk
from solo.data.rows.document import PATCH, Document
from solo.data.text import Tokenizer

COLOURS = ("#35548f", "#1b7446", "#a8651a", "#7a3d8c", "#ad3223", "#2f7f8c", "#6f6a1e", "#8c3d63")
_ACROSS = 32  # patches side by side
_SHOWN = 24  # pixels of a patch on the page
_EMPTY = 236
_NAMED = 24  # documents in the legend


@dataclass(frozen=True)
class Slot:
    """A text slot. `document` is its number in the row, or -1 for an empty slot."""

    text: str
    document: int
    learned: bool


@dataclass(frozen=True)
class Row:
    """A packed row. `patches` is a picture of the patch region, slot by slot, as a data URI.

    `documents` says where the first documents come from; `more` is the number of other documents.
    """

    patches: str | None
    width: int
    height: int
    slots: tuple[Slot, ...]
    documents: tuple[str, ...]
    more: int
    fill: str


def packed_row(
    row: Batch,
    documents: Sequence[Document],
    chunks: Sequence[Chunk],
    names: Sequence[str],
    shape: RowShape,
    tokenizer: Tokenizer,
    image: ImageConfig,
) -> Row:
    """Returns a row, without the B axis, as the page shows it.

    Args:
        row: the arrays of the row.
        documents: its documents, in row order.
        chunks: where the documents come from.
        names: names of the sources, in mixture order.
        shape: slots of the row.
        tokenizer: decodes tokens to text.
        image: config with the size of patches.
    """
    patch_owner = _owners([len(document.patches) for document in documents], shape.patch_slots)
    text_owner = _owners([len(document.tokens) - len(document.patches) for document in documents], shape.text_slots)
    learned = np.zeros(shape.text_slots, bool)
    flags = np.concatenate([np.zeros(0, bool), *(_learned(document) for document in documents)])
    learned[: len(flags)] = flags
    if int(flags.sum()) != int((np.asarray(row.target_weights) > 0).sum()):
        raise AssertionError("the row's targets are not those of its documents")
    slots = tuple(
        Slot(visible(tokenizer.token(int(token))) if owner >= 0 else "", int(owner), bool(taught))
        for token, owner, taught in zip(row.text, text_owner, learned, strict=True)
    )
    picture, width, height = _region(row.patches, patch_owner, image)
    named = tuple(_origin(chunk, names) for chunk in chunks[:_NAMED])
    return Row(picture, width, height, slots, named, len(chunks) - len(named), _fill(chunks, shape))


def _origin(chunk: Chunk, names: Sequence[str]) -> str:
    whole = chunk.stop - chunk.start == chunk.length
    part = "" if whole else f", slots {chunk.start:,} to {chunk.stop:,} of {chunk.length:,}"
    return f"{names[chunk.source]}, record {chunk.record:,}{part}"


def _learned(document: Document) -> np.ndarray:
    """Returns which text tokens are targets, bool [text]. The first element of a document never is."""
    supervised = document.supervised.copy()
    supervised[:1] = False
    return supervised[document.tokens != PATCH]


def _fill(chunks: Sequence[Chunk], shape: RowShape) -> str:
    used = np.sum([chunk.needs for chunk in chunks], axis=0) if chunks else np.zeros(3, int)
    regions = (("patch", shape.patch_slots), ("text", shape.text_slots), ("target", shape.target_slots))
    return ", ".join(f"{count:,} of {slots:,} {name} slots" for count, (name, slots) in zip(used, regions, strict=True))


def _owners(counts: Sequence[int], slots: int) -> np.ndarray:
    """Returns the document of every slot of a region, int [slots]; -1 for an empty slot."""
    owners = np.full(slots, -1)
    owners[: sum(counts)] = np.repeat(np.arange(len(counts)), counts)
    return owners


def _region(patches: np.ndarray, owner: np.ndarray, image: ImageConfig) -> tuple[str | None, int, int]:
    """Draws the patches slot by slot, framed in the colour of their document."""
    count = len(owner)
    if not count:
        return None, 0, 0
    across, side = min(_ACROSS, count), image.patch_size
    down = -(-count // across)
    sheet = PillowImage.new("RGB", (across * _SHOWN, down * _SHOWN), (255, 255, 255))
    blocks = np.asarray(patches).reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
    for place in range(count):
        colour = _rgb(owner[place])
        cell = PillowImage.new("RGB", (_SHOWN - 1, _SHOWN - 1), colour)
        inside = _SHOWN - 5
        if owner[place] >= 0:
            cell.paste(PillowImage.fromarray(np.ascontiguousarray(blocks[place])).resize((inside, inside)), (2, 2))
        sheet.paste(cell, (place % across * _SHOWN, place // across * _SHOWN))
    buffer = io.BytesIO()
    sheet.save(buffer, format="WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode(), sheet.width, sheet.height


def _rgb(owner: int) -> tuple[int, int, int]:
    if owner < 0:
        return (_EMPTY, _EMPTY, _EMPTY)
    colour = COLOURS[owner % len(COLOURS)]
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return red, green, blue
