"""Documents: records as one sequence of text tokens and patches, in reading order.

`runs` (`solo.data.text.templates`) converts a record to runs of text tokens and images, using only the tokenizer;
`encode` also decodes the images. The index (`solo.data.store.index`) stores the size of every run, so planning never
decodes an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from solo.config import ImageConfig
from solo.data.images.delimiters import image_span, image_tokens
from solo.data.images.patches import decode_patches
from solo.data.record import Image
from solo.data.text import Tokenizer
from solo.data.text.templates import TextRun, runs

__all__ = ["NO_IMAGE", "PATCH", "Document", "TextRun", "encode", "runs"]

NO_IMAGE = -1
PATCH = -1


@dataclass(frozen=True, slots=True)
class Document:
    """A document in reading order: N = patches + text tokens.

    tokens      int32 [N]       token id; PATCH (-1) for a patch
    supervised  bool [N]        loss mask: whether the model learns to predict this token
    image       int32 [N]       image number from an image's first patch to its last, including row tokens;
                                NO_IMAGE (-1) elsewhere, including begin and end tokens
    patches     uint8 [p, patch_size^2 * 3]   raw pixels, channel-major (C, y, x), in reading order
    patch_grid  int32 [p, 2]    row and column of each patch in its image or tile
    """

    tokens: np.ndarray
    supervised: np.ndarray
    image: np.ndarray
    patches: np.ndarray
    patch_grid: np.ndarray

    def chunk(self, start: int, stop: int) -> Document:
        """Returns the slots [start, stop) as a document."""
        is_patch = self.tokens == PATCH
        first, last = int(is_patch[:start].sum()), int(is_patch[:stop].sum())
        return Document(
            self.tokens[start:stop],
            self.supervised[start:stop],
            self.image[start:stop],
            self.patches[first:last],
            self.patch_grid[first:last],
        )


def encode(
    parts: Sequence[TextRun | Image],
    tokenizer: Tokenizer,
    config: ImageConfig,
    images: int | None = None,
    first_image: int = 0,
) -> Document:
    """Encodes runs in reading order and splits the images into patches.

    Args:
        parts: runs of a document, or of a piece of one.
        tokenizer: provides the delimiter tokens.
        config: patch size, tiles and delimiters of images.
        images: number of images in the whole document, if `parts` is only a piece; see `patch_grid`.
        first_image: number of images in the document before `parts`.

    Raises:
        OSError: an image cannot be decoded.
        ConfigError: the tokenizer lacks a delimiter token.
    """
    delimiters = image_tokens(config, tokenizer)
    if images is None:
        images = sum(isinstance(part, Image) for part in parts)
    tokens: list[np.ndarray] = [np.zeros(0, np.int32)]
    supervised: list[np.ndarray] = [np.zeros(0, bool)]
    image: list[np.ndarray] = [np.zeros(0, np.int32)]
    patches: list[np.ndarray] = [np.zeros((0, config.patch_size**2 * 3), np.uint8)]
    grids: list[np.ndarray] = [np.zeros((0, 2), np.int32)]
    number = first_image
    for part in parts:
        if isinstance(part, Image):
            cut = decode_patches(part.data, config, images)
            span = image_span(cut.grid, delimiters, config, PATCH)
            inside = np.full(len(span), number, np.int32)
            inside[: delimiters.begin is not None] = NO_IMAGE
            inside[len(span) - (delimiters.end is not None) :] = NO_IMAGE
            tokens.append(span)
            supervised.append(np.zeros(len(span), bool))
            image.append(inside)
            patches.append(cut.pixels)
            grids.append(cut.places)
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
