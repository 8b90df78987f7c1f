"""The text tokens that delimit an image: before it, after it and between its rows.

SOLO: `<vision> row <vrow_sep> row ... row </vision>`. InternVL: `<img>`, the patches of all tiles,
`</img>`. Fuyu: a `|NEWLINE|` after every row, including the last. Nothing here decodes an image.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from solo.config import ImageConfig
from solo.data.images.geometry import PatchGrid, visual_tokens
from solo.data.text import Tokenizer


class ImageTokens(NamedTuple):
    """Token ids. None means that the format does not use the token.

    begin  before an image's patches
    end    after them
    row    between rows of patches, or after each row
    """

    begin: int | None
    end: int | None
    row: int | None


def delimiter_tokens(config: ImageConfig) -> dict[str, str]:
    """Returns the delimiter tokens that the config needs: config key -> token."""
    named = {"image.begin_token": config.begin_token, "image.end_token": config.end_token}
    if config.geometry != "tiles":
        named["image.row_token"] = config.row_token
    return {key: token for key, token in named.items() if token is not None}


def image_tokens(config: ImageConfig, tokenizer: Tokenizer) -> ImageTokens:
    """Returns the ids of `delimiter_tokens`. Raises ConfigError if the tokenizer lacks one."""
    found = {key: tokenizer.id(token, key) for key, token in delimiter_tokens(config).items()}
    return ImageTokens(*(found.get(f"image.{name}_token") for name in ImageTokens._fields))


def image_text(rows: np.ndarray, config: ImageConfig) -> np.ndarray:
    """Returns the number of text tokens of images with `rows` rows of patches, integers of the same shape."""
    delimiters = (config.begin_token is not None) + (config.end_token is not None)
    if "image.row_token" not in delimiter_tokens(config):
        return np.full_like(rows, delimiters)
    return rows - (not config.row_token_after_last) + delimiters


def image_span(grid: PatchGrid, tokens: ImageTokens, config: ImageConfig, patch: int) -> np.ndarray:
    """Returns the tokens of one image in reading order, int32 [N], with `patch` at every patch and marker."""
    rows, columns = int(grid.rows), int(grid.columns)
    if tokens.row is None:
        inside = np.full(int(visual_tokens(grid, config)), patch, np.int32)
    else:
        inside = np.full((rows, columns + 1), patch, np.int32)
        inside[:, -1] = tokens.row
        inside = inside.ravel() if config.row_token_after_last else inside.ravel()[:-1]
    begin, end = ([] if token is None else [token] for token in (tokens.begin, tokens.end))
    return np.concatenate([begin, inside, end]).astype(np.int32)
