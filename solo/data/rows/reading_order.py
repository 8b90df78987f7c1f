"""The reading order of a row's documents: where each element stands, and what it sees.

Both are functions of the reading order alone; `solo.data.rows.assembly` lays them into the row's two regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from solo.config import ConfigError, ImageConfig, SequenceConfig
from solo.data.images.delimiters import delimiter_tokens
from solo.data.rows.document import NO_IMAGE, PATCH, Document


@dataclass(frozen=True)
class ReadingOrder:
    """All elements of a row, document after document, each in reading order: N in all, p of them patches.

    tokens, supervised, image   as in Document, images numbered anew in every document
    patch_grid  int32 [p, 2]
    place     int64 [N]  place in the document's reading order
    source    int64 [N]  number of the document's source
    opening   int64 [N]  first element of the document
    """

    tokens: np.ndarray
    supervised: np.ndarray
    image: np.ndarray
    patch_grid: np.ndarray
    place: np.ndarray
    source: np.ndarray
    opening: np.ndarray

    @property
    def is_patch(self) -> np.ndarray:
        """bool [N]."""
        return self.tokens == PATCH


class _Spans(NamedTuple):
    """First and last element of every image of a row, int64 [images]."""

    first: np.ndarray
    last: np.ndarray

    def elements(self) -> tuple[np.ndarray, np.ndarray]:
        """int64 [M]: all elements of all images, and the number of the image that each belongs to."""
        lengths = self.last - self.first + 1
        before = np.cumsum(lengths) - lengths
        elements = np.arange(lengths.sum()) + np.repeat(self.first - before, lengths)
        return elements, np.repeat(np.arange(len(lengths)), lengths)


def join_documents(documents: Sequence[tuple[Document, int]]) -> ReadingOrder:
    """Documents one after the other, each with the number of its source."""
    none = np.zeros(0, np.int32)
    lengths = np.asarray([len(document.tokens) for document, _ in documents], np.int64)
    opening = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return ReadingOrder(
        tokens=np.concatenate([none, *(document.tokens for document, _ in documents)]),
        supervised=np.concatenate([none.astype(bool), *(document.supervised for document, _ in documents)]),
        image=np.concatenate([none, *(document.image for document, _ in documents)]),
        patch_grid=np.concatenate([none.reshape(0, 2), *(document.patch_grid for document, _ in documents)]),
        place=np.arange(lengths.sum()) - opening,
        source=np.repeat(np.asarray([source for _, source in documents], np.int64), lengths),
        opening=opening,
    )


def outline(patches: int, text: int, image: ImageConfig) -> Document:
    """A document of one image, then text, of which only the numbers of slots are known: what planning assumes.

    The image's begin and end tokens and its row tokens are among the `text` slots. Row tokens stand as in a square
    image, as many as there is room for. Token ids, pixels and `patch_grid` are zeros.

    Raises:
        ConfigError: `text` has no room for the begin and end tokens.
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
    """int64 [N, 4]: what every element sees, as intervals of patches and of text, counted in each region.

    In reading order it is one interval that ends with the element itself: of `sliding_window` elements, or from the
    beginning of its document.
    bidirectional: an element from an image's first patch to its last sees all of that span besides; prefix: so do the
    image's begin and end tokens, and the span includes them. isolated: a patch sees only itself.
    """
    first, last = order.opening.copy(), np.arange(len(order.tokens))
    if sequence.sliding_window is not None:
        first = np.maximum(first, last - sequence.sliding_window + 1)
    if image.mask in ("bidirectional", "prefix"):
        spans = _image_spans(order)
        if image.mask == "prefix":
            spans = _Spans(spans.first - (image.begin_token is not None), spans.last + (image.end_token is not None))
        elements, number = spans.elements()
        first[elements] = np.minimum(first[elements], spans.first[number])
        last[elements] = spans.last[number]
    # patches_before[i] patches stand before element i of the row; the rest of what is before it is text.
    is_patch = order.is_patch
    patches_before = np.concatenate([[0], np.cumsum(is_patch)])
    text_before = np.arange(len(patches_before)) - patches_before
    attend = np.stack(
        [patches_before[first], patches_before[last + 1], text_before[first], text_before[last + 1]], axis=1
    )
    if image.mask == "isolated":
        own = patches_before[:-1][is_patch]
        attend[is_patch] = np.stack([own, own + 1, np.zeros_like(own), np.zeros_like(own)], axis=1)
    return attend


def positions(order: ReadingOrder, sequence: SequenceConfig) -> np.ndarray:
    """int64 [N], or [N, 3] with `positions: grid`: the rotary position of every element, from 0 in each document.

    text  the place in reading order
    grid  (time, row, column). Text advances all three by one. A patch stands at the position that a text token in
          place of its image's first patch would have, plus (tile, row, column); a row token as one more column of its
          row. What follows the image goes on one behind the highest position in it: SAIL's rule, for one tile.
    """
    if sequence.positions == "text":
        return order.place
    spans = _image_spans(order)
    elements, number = spans.elements()
    offsets = np.zeros((len(order.tokens), 3), np.int64)
    offsets[elements] = _offsets(order, spans)[elements]
    steps = np.ones(len(order.tokens), np.int64)
    steps[elements] = 0
    if len(spans.last):
        highest = np.zeros(len(spans.last), np.int64)
        np.maximum.at(highest, number, offsets[elements].max(axis=1))
        steps[spans.last] = highest + 1
    before = np.concatenate([[0], np.cumsum(steps)])
    return (before[:-1] - before[order.opening])[:, None] + offsets


def _image_spans(order: ReadingOrder) -> _Spans:
    """From each image's first patch to its last, separators included."""
    # An image is a run of equal numbers in one document.
    inside = order.image != NO_IMAGE
    changes = np.ones(len(inside) + 1, bool)
    changes[1:-1] = (order.image[1:] != order.image[:-1]) | (order.place[1:] == 0)
    return _Spans(np.flatnonzero(changes[:-1] & inside), np.flatnonzero(changes[1:] & inside))


def _offsets(order: ReadingOrder, spans: _Spans) -> np.ndarray:
    """int64 [N, 3]: tile, row and column in its image, of every element of an image; a separator is a column more."""
    is_patch = order.is_patch
    patch = np.cumsum(is_patch) - 1  # the last patch up to each element
    opens_tile = np.cumsum((order.patch_grid == 0).all(axis=1))
    tile = opens_tile[patch] if len(opens_tile) else patch
    elements, number = spans.elements()
    found = np.zeros((len(patch), 3), np.int64)
    found[elements, 0] = tile[elements] - tile[spans.first][number]
    found[elements, 1:] = order.patch_grid[patch[elements]]
    found[elements, 2] += ~is_patch[elements]
    return found
