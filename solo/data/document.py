"""A record as the model reads it: runs of text tokens and images, then one reading order of slots.

`runs` needs the tokenizer only; `encode` also decodes the images. Between the two stands the index
(`solo.data.index`), which counts the runs once so that planning never decodes an image.

An image of R rows and C columns reads `<vision> row <vrow_sep> row ... row </vision>` (SOLO; solo.md 1.6):
R * C patches and R + 1 text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from solo.config import ImageConfig
from solo.data.conversation import Image, Turn
from solo.data.geometry import decode_patches
from solo.data.tokenizer import Tokenizer

NO_IMAGE = -1
PATCH = -1


@dataclass(frozen=True, slots=True)
class TextRun:
    """Tokens that are all learned, or all only read."""

    tokens: tuple[int, ...]
    supervised: bool


@dataclass(frozen=True, slots=True)
class Document:
    """A document in reading order: N = patches + text tokens.

    tokens      int32 [N]       token id; PATCH (-1) where a patch stands
    supervised  bool [N]        whether the model learns to predict this token
    image       int32 [N]       which image the slot belongs to, from its first patch to its last, separators
                                included; NO_IMAGE (-1) elsewhere (begin and end tokens too)
    patches     uint8 [p, patch_size^2 * 3]   raw pixels, channel-major (C, y, x), in reading order
    patch_grid  int32 [p, 2]    row and column of each patch in its image
    """

    tokens: np.ndarray
    supervised: np.ndarray
    image: np.ndarray
    patches: np.ndarray
    patch_grid: np.ndarray

    def piece(self, start: int, stop: int) -> Document:
        """The document's slots [start, stop), as a document of its own."""
        is_patch = self.tokens == PATCH
        first, last = int(is_patch[:start].sum()), int(is_patch[:stop].sum())
        return Document(
            self.tokens[start:stop],
            self.supervised[start:stop],
            self.image[start:stop],
            self.patches[first:last],
            self.patch_grid[first:last],
        )


def runs(turns: Sequence[Turn], tokenizer: Tokenizer, open_turn: bool = False) -> list[TextRun | Image]:
    """Tokenise turns; the chat template is here and nowhere else.

    `<s>` opens the document. A `text` turn is its content and `</s>`, learned. `user` and `system` turns are
    their role token and content, read only. An `assistant` turn is its role token (read), its content and
    `</s>` (learned). Every text segment is tokenised by itself (solo.md 3.2).

    With `open_turn`, the last turn is left open for the model to continue: no `</s>` after it, and an assistant
    role token is added if it is a `user` or `system` turn.
    """
    ids = tokenizer.special
    found: list[TextRun | Image] = [TextRun((ids.bos,), False)]
    for number, turn in enumerate(turns):
        is_open = open_turn and number == len(turns) - 1
        learned = turn.role in ("assistant", "text")
        if turn.role != "text":
            found.append(TextRun((ids.role(turn.role),), False))
        for part in turn.content:
            found.append(TextRun(tuple(tokenizer.encode(part)), learned) if isinstance(part, str) else part)
        if learned and not is_open:
            found.append(TextRun((ids.eos,), True))
        if is_open and not learned:
            found.append(TextRun((ids.assistant,), False))
    return [run for run in found if isinstance(run, Image) or run.tokens]


def encode(parts: Sequence[TextRun | Image], tokenizer: Tokenizer, config: ImageConfig) -> Document:
    """Lay runs out in reading order and cut the images into patches. Raises OSError on an unreadable image."""
    ids = tokenizer.special
    tokens: list[np.ndarray] = []
    supervised: list[np.ndarray] = []
    image: list[np.ndarray] = []
    patches: list[np.ndarray] = [np.zeros((0, config.patch_size**2 * 3), np.uint8)]
    grids: list[np.ndarray] = [np.zeros((0, 2), np.int32)]
    number = 0
    for part in parts:
        if isinstance(part, Image):
            pixels, rows, columns = decode_patches(part.data, config)
            span = np.full(rows * (columns + 1) + 1, PATCH, np.int32)
            span[0], span[columns + 1 :: columns + 1], span[-1] = ids.vision, ids.row_separator, ids.vision_end
            inside = np.full(len(span), number, np.int32)
            inside[[0, -1]] = NO_IMAGE
            tokens.append(span)
            supervised.append(np.zeros(len(span), bool))
            image.append(inside)
            patches.append(pixels)
            grids.append(np.indices((rows, columns), np.int32).reshape(2, -1).T)
            number += 1
        else:
            tokens.append(np.asarray(part.tokens, np.int32))
            supervised.append(np.full(len(part.tokens), part.supervised))
            image.append(np.full(len(part.tokens), NO_IMAGE, np.int32))
    return Document(
        np.concatenate(tokens),
        np.concatenate(supervised),
        np.concatenate(image),
        np.concatenate(patches),
        np.concatenate(grids),
    )
