"""Attention masks and positions of the elements of a row, for training, planning and inference.

Both depend only on the reading order; `solo.data.rows.assembly` maps them to the row's two regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from solo.batch import TEXT_AXES
from solo.config import ConfigError, ImageConfig, SequenceConfig
from solo.data.images.delimiters import delimiter_tokens
from solo.data.rows.document import NO_IMAGE, PATCH, Document


@dataclass(frozen=True)
class ReadingOrder:
    """The N elements of a row, one document after another, each in reading order; p of them are patches.

    tokens, supervised, image   as in Document; image numbers start from 0 in each document
    patch_grid      int32 [p, 2]  as in Document
    place           int64 [N]  index in the document's reading order
    source          int64 [N]  number of the document's source
    document_start  int64 [N]  first element of the document
    """

    tokens: np.ndarray
    supervised: np.ndarray
    image: np.ndarray
    patch_grid: np.ndarray
    place: np.ndarray
    source: np.ndarray
    document_start: np.ndarray

    @property
    def is_patch(self) -> np.ndarray:
        """Whether each element is a patch, bool [N]."""
        return self.tokens == PATCH


class _Spans(NamedTuple):
    """First and last element of every image of a row, int64 [images] each."""

    first: np.ndarray
    last: np.ndarray

    def elements(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns all M elements of all images, int64 [M], and the number of the image of each, int64 [M]."""
        lengths = self.last - self.first + 1
        before = np.cumsum(lengths) - lengths
        elements = np.arange(lengths.sum()) + np.repeat(self.first - before, lengths)
        return elements, np.repeat(np.arange(len(lengths)), lengths)


def join_documents(documents: Sequence[tuple[Document, int]]) -> ReadingOrder:
    """Joins documents, each given with the number of its source, in row order."""
    none = np.zeros(0, np.int32)
    lengths = np.asarray([len(document.tokens) for document, _ in documents], np.int64)
    document_start = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return ReadingOrder(
        tokens=np.concatenate([none, *(document.tokens for document, _ in documents)]),
        supervised=np.concatenate([none.astype(bool), *(document.supervised for document, _ in documents)]),
        image=np.concatenate([none, *(document.image for document, _ in documents)]),
        patch_grid=np.concatenate([none.reshape(0, 2), *(document.patch_grid for document, _ in documents)]),
        place=np.arange(lengths.sum()) - document_start,
        source=np.repeat(np.asarray([source for _, source in documents], np.int64), lengths),
        document_start=document_start,
    )


def outline(patches: int, text: int, image: ImageConfig) -> Document:
    """Returns the document that planning assumes if only the numbers of slots are known: one image, then text.

    The image's begin, end and row tokens count as `text` slots. Row tokens are placed as in a square image, as long as
    slots are left. Token ids, pixels and `patch_grid` are zeros.

    Raises:
        ConfigError: `text` is too small for the begin and end tokens.
    """
    begin, end = image.begin_token is not None and patches > 0, image.end_token is not None and patches > 0
    if text < begin + end:
        raise ConfigError(
            f"a document of {patches} patches and {text} text slots has no room for its image's begin and end tokens; "
            "give longer documents, or a smaller share of patches"
        )
    inside = np.full(patches, PATCH, np.int32)
    if patches and "image.row_token" in delimiter_tokens(image):
        rows = round(patches**0.5)
        last = rows if image.row_token_after_last else rows - 1
        ends = np.arange(1, min(last, text - begin - end) + 1) * patches // rows
        inside = np.insert(inside, ends, 0)
    tokens = np.zeros(patches + text, np.int32)
    tokens[begin : begin + len(inside)] = inside
    number = np.full(len(tokens), NO_IMAGE, np.int32)
    number[begin : begin + len(inside)] = 0
    empty = np.zeros((patches, 0), np.uint8)
    return Document(tokens, np.zeros(len(tokens), bool), number, empty, np.zeros((patches, 2), np.int32))


def visible(order: ReadingOrder, image: ImageConfig, sequence: SequenceConfig) -> np.ndarray:
    """Returns the keys that each element attends to, int64 [N, 4], or [N, M, 4] with M `sequence.layer_masks`.

    See `_visible`.
    """
    if not sequence.layer_masks:
        return _visible(order, image, image.mask, sequence.sliding_window, limits_all=False)
    masks = [
        _visible(order, image, each.image, each.sliding_window, limits_all=each.window_limits == "all")
        for each in sequence.layer_masks
    ]
    return np.stack(masks, axis=1)


def _visible(
    order: ReadingOrder, image: ImageConfig, mask: str, sliding_window: int | None, *, limits_all: bool
) -> np.ndarray:
    """Returns the keys that each element attends to, int64 [N, 4]: patches [a0, a1) and text [a2, a3) of the row.

    In reading order, the keys are one interval. It ends with the element itself and begins with its document, or
    `sliding_window - 1` elements before the element. `mask` changes the interval for images:

    bidirectional  every element from an image's first patch to its last also attends to that whole span
    prefix         as bidirectional, but the span includes the image's begin and end tokens
    isolated       a patch attends only to itself

    With `limits_all`, the interval of every element begins within the window, for images too.
    """
    first, last = order.document_start.copy(), np.arange(len(order.tokens))
    if sliding_window is not None:
        first = np.maximum(first, last - sliding_window + 1)
    in_window = first
    if mask in ("bidirectional", "prefix"):
        spans = _image_spans(order)
        if mask == "prefix":
            spans = _Spans(spans.first - (image.begin_token is not None), spans.last + (image.end_token is not None))
        elements, number = spans.elements()
        first = first.copy()
        first[elements] = np.minimum(first[elements], spans.first[number])
        last[elements] = spans.last[number]
    if limits_all:
        first = np.maximum(first, in_window)
    # patches_before[i] patches and text_before[i] text tokens precede element i of the row.
    is_patch = order.is_patch
    patches_before = np.concatenate([[0], np.cumsum(is_patch)])
    text_before = np.arange(len(patches_before)) - patches_before
    attend = np.stack(
        [patches_before[first], patches_before[last + 1], text_before[first], text_before[last + 1]], axis=1
    )
    if mask == "isolated":
        own = patches_before[:-1][is_patch]
        attend[is_patch] = np.stack([own, own + 1, np.zeros_like(own), np.zeros_like(own)], axis=1)
    return attend


def positions(order: ReadingOrder, sequence: SequenceConfig) -> np.ndarray:
    """Returns rotary positions, int64 [N], or [N, 3] with `grid` and `separate`. They start from 0 in each document.

    text      the index in reading order
    grid      (time, row, column). A text token advances all three by one. The position of a patch is that of a text
              token at the place of the image's first patch, plus (tile, row, column). A row token is treated as an
              additional column of its row. The element after an image gets the highest position in the image plus one.
              With one tile, this is SAIL's rule.
    separate  (time, row, column). A text token advances the time by one; its row and column are 0. A patch has its own
              row and column, and the time of a text token at the place of the image's first patch, plus its tile. With
              one tile, this is NEO's rule: all patches of an image have the same time.
    """
    axes = TEXT_AXES[sequence.positions]
    if axes is None:
        return order.place
    spans = _image_spans(order)
    elements, number = spans.elements()
    offsets = np.zeros((len(order.tokens), 3), np.int64)
    offsets[elements] = _offsets(order, spans)[elements]
    steps = np.ones(len(order.tokens), np.int64)
    steps[elements] = 0
    if len(spans.last):
        highest = np.zeros(len(spans.last), np.int64)
        np.maximum.at(highest, number, (offsets[elements] * axes).max(axis=1))
        steps[spans.last] = highest + 1
    before = np.concatenate([[0], np.cumsum(steps)])
    time = before[:-1] - before[order.document_start]
    return time[:, None] * np.asarray(axes) + offsets


def _image_spans(order: ReadingOrder) -> _Spans:
    """Returns each image's span from its first patch to its last, including row tokens."""
    # An image is a run of equal image numbers within one document.
    inside = order.image != NO_IMAGE
    changes = np.ones(len(inside) + 1, bool)
    changes[1:-1] = (order.image[1:] != order.image[:-1]) | (order.place[1:] == 0)
    return _Spans(np.flatnonzero(changes[:-1] & inside), np.flatnonzero(changes[1:] & inside))


def _offsets(order: ReadingOrder, spans: _Spans) -> np.ndarray:
    """Returns (tile, row, column) of every element of an image, int64 [N, 3]; a row token is an additional column."""
    is_patch = order.is_patch
    patch = np.cumsum(is_patch) - 1  # last patch up to each element
    opens_tile = np.cumsum((order.patch_grid == 0).all(axis=1))
    tile = opens_tile[patch] if len(opens_tile) else patch
    elements, number = spans.elements()
    found = np.zeros((len(patch), 3), np.int64)
    found[elements, 0] = tile[elements] - tile[spans.first][number]
    found[elements, 1:] = order.patch_grid[patch[elements]]
    found[elements, 2] += ~is_patch[elements]
    return found
