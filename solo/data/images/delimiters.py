"""Which text tokens stand with an image: before it, behind it, between its rows.

SOLO: `<vision> row <vrow_sep> row ... row </vision>` (solo.md 1.6). InternVL: `<img>`, the patches of all tiles,
`</img>`. Fuyu: every row and a `|NEWLINE|`, the last one too. Nothing here decodes an image.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from solo.config import ImageConfig
from solo.data.images.geometry import PatchGrid, visual_tokens
from solo.data.text import Tokenizer


class ImageTokens(NamedTuple):
    """Ids, None where the layout has no such token.

    begin  before an image's patches
    end    behind them
    row    between two rows of patches, or behind each
    """

    begin: int | None
    end: int | None
    row: int | None


def image_pieces(config: ImageConfig) -> dict[str, str]:
    """The pieces that the layout needs, by the config's key."""
    named = {"image.begin_token": config.begin_token, "image.end_token": config.end_token}
    if config.geometry != "tiles":
        named["image.row_token"] = config.row_token
    return {key: piece for key, piece in named.items() if piece is not None}


def image_tokens(config: ImageConfig, tokenizer: Tokenizer) -> ImageTokens:
    """Their ids. Raises ConfigError where the tokenizer does not have one of them."""
    found = {key: tokenizer.id(piece, key) for key, piece in image_pieces(config).items()}
    return ImageTokens(*(found.get(f"image.{name}_token") for name in ImageTokens._fields))


def image_text(rows: np.ndarray, config: ImageConfig) -> np.ndarray:
    """Text tokens of images with so many rows of patches, integers of the same shape."""
    delimiters = (config.begin_token is not None) + (config.end_token is not None)
    if "image.row_token" not in image_pieces(config):
        return np.full_like(rows, delimiters)
    return rows - (not config.row_token_after_last) + delimiters


def image_span(grid: PatchGrid, tokens: ImageTokens, config: ImageConfig, patch: int) -> np.ndarray:
    """int32 [N]: one image's tokens in reading order, `patch` where a patch or a marker stands."""
    rows, columns = int(grid.rows), int(grid.columns)
    if tokens.row is None:
        inside = np.full(int(visual_tokens(grid, config)), patch, np.int32)
    else:
        inside = np.full((rows, columns + 1), patch, np.int32)
        inside[:, -1] = tokens.row
        inside = inside.ravel() if config.row_token_after_last else inside.ravel()[:-1]
    begin, end = ([] if token is None else [token] for token in (tokens.begin, tokens.end))
    return np.concatenate([begin, inside, end]).astype(np.int32)
