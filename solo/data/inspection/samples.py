"""Shows documents on a page: images with their patch grid, and tokens with their loss mask."""

from __future__ import annotations

import base64
import io
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw

from solo.config import ImageConfig
from solo.data.rows.document import NO_IMAGE, PATCH, Document
from solo.data.text import Tokenizer

_WIDEST = 560  # pixels of a picture on the page
_TOKENS_SHOWN = 400
_GRID = (255, 255, 255), (40, 70, 130)


@dataclass(frozen=True)
class Picture:
    """An image of a document, reassembled from its patches, as a data URI."""

    source: str
    width: int
    height: int
    rows: int
    columns: int


@dataclass(frozen=True)
class Token:
    """A text token. `learned`: it is a target of the loss. `special`: no text is encoded to it."""

    text: str
    learned: bool
    special: bool


@dataclass(frozen=True)
class Sample:
    """A document to show. `parts` are in reading order; `left` is the number of text tokens that are not shown."""

    name: str
    facts: str
    parts: tuple[Picture | tuple[Token, ...], ...]
    left: int


def sample(name: str, document: Document, tokenizer: Tokenizer, image: ImageConfig) -> Sample:
    """Returns a document as the page shows it."""
    patches = len(document.patches)
    text = len(document.tokens) - patches
    learned = int(document.supervised[1:].sum())
    facts = f"{patches:,} patches, {text:,} text tokens, {learned:,} learned"
    parts: list[Picture | tuple[Token, ...]] = []
    shown = 0
    for part in _parts(document, image):
        if isinstance(part, Picture):
            parts.append(part)
            continue
        tokens = [_token(document, at, tokenizer) for at in part[: max(_TOKENS_SHOWN - shown, 0)]]
        shown += len(tokens)
        if tokens:
            parts.append(tuple(tokens))
    # Row tokens are inside images, which are shown as pictures.
    return Sample(name, facts, tuple(parts), _outside(document) - shown)


def visible(text: str) -> str:
    """Returns a token's text, with invisible and direction-changing characters written as `<U+202E>`."""
    return "".join(
        f"<U+{ord(character):04X}>"
        if unicodedata.category(character) in ("Cc", "Cf") and character != "\n"
        else character
        for character in text
    )


def _token(document: Document, at: int, tokenizer: Tokenizer) -> Token:
    token = int(document.tokens[at])
    return Token(
        visible(tokenizer.token(token)), bool(document.supervised[at]) and at > 0, token in tokenizer.special_ids
    )


def _outside(document: Document) -> int:
    return int(((document.tokens != PATCH) & (document.image == NO_IMAGE)).sum())


def _parts(document: Document, image: ImageConfig) -> Iterator[Picture | Sequence[int]]:
    """Yields images, and the positions of the text tokens between them, in reading order."""
    number = document.image
    # A boundary is where the image number changes.
    edges = np.flatnonzero(np.diff(number)) + 1
    bounds = [0, *edges.tolist(), len(number)]
    first_patch = 0
    for start, stop in pairwise(bounds):
        if start == stop:
            continue
        if number[start] == NO_IMAGE:
            yield range(start, stop)
        else:
            count = int((document.tokens[start:stop] == PATCH).sum())
            chosen = slice(first_patch, first_patch + count)
            yield picture(document.patches[chosen], document.patch_grid[chosen], image)
            first_patch += count


def picture(patches: np.ndarray, grid: np.ndarray, image: ImageConfig) -> Picture:
    """Reassembles an image from patches [n, p*p*3], with tiles side by side and lines between patches."""
    real = grid[:, 0] >= 0  # markers have negative rows and no pixels
    patches, grid = patches[real], grid[real]
    rows, columns = (int(size) for size in grid.max(axis=0) + 1)
    tiles = len(patches) // max(rows * columns, 1)
    across = min(tiles, 4)
    whole = unpatched(patches, grid, rows, columns, image, across)
    scale = max(1, min(_WIDEST // max(whole.width, 1), -(-16 // image.patch_size)))
    if whole.width > _WIDEST:
        whole = whole.resize((_WIDEST, max(1, whole.height * _WIDEST // whole.width)))
    elif scale > 1:
        whole = whole.resize((whole.width * scale, whole.height * scale), PillowImage.Resampling.NEAREST)
    _draw_grid(whole, rows * -(-tiles // across), columns * across)
    buffer = io.BytesIO()
    whole.save(buffer, format="WEBP", quality=85)
    source = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Picture(source, whole.width, whole.height, rows, columns)


def unpatched(
    patches: np.ndarray, grid: np.ndarray, rows: int, columns: int, image: ImageConfig, across: int
) -> PillowImage.Image:
    """Returns the pixels of `tiles` grids of rows x columns patches, `across` tiles side by side."""
    side, tiles = image.patch_size, len(patches) // max(rows * columns, 1)
    down = -(-tiles // across)
    pixels = np.full((down * rows * side, across * columns * side, 3), 255, np.uint8)
    blocks = patches.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
    for place, (block, (row, column)) in enumerate(zip(blocks, grid.tolist(), strict=True)):
        tile = place // (rows * columns)
        top = (tile // across * rows + row) * side
        left = (tile % across * columns + column) * side
        pixels[top : top + side, left : left + side] = block
    return PillowImage.fromarray(pixels)


def _draw_grid(whole: PillowImage.Image, rows: int, columns: int) -> None:
    """Draws lines between patches, light next to dark, so that they are visible on any picture."""
    canvas = ImageDraw.Draw(whole, "RGBA")
    for offset, colour in zip((0, 1), _GRID, strict=True):
        for row in range(1, rows):
            y = round(row * whole.height / rows) + offset
            canvas.line([(0, y), (whole.width, y)], fill=(*colour, 120))
        for column in range(1, columns):
            x = round(column * whole.width / columns) + offset
            canvas.line([(x, 0), (x, whole.height)], fill=(*colour, 120))
