"""The vocabulary that a run asks for: which special pieces its config names, and whether they are there."""

from __future__ import annotations

from pathlib import Path

from solo.config import Config, ConfigError
from solo.data.images.delimiters import image_pieces
from solo.data.text import Tokenizer, expand_tokens, extend_tokenizer, open_tokenizer
from solo.data.text.templates import TEMPLATES


def configured_tokenizer(config: Config, path: str | Path | None = None) -> Tokenizer:
    """The tokenizer of `data.tokenizer.path`, or of another path, with the config's `add_tokens`.

    Raises:
        ConfigError: there is none, it cannot be read, or it lacks a piece that the config names.
    """
    path = path or config.data.tokenizer.path
    if path is None:
        raise ConfigError("data.tokenizer.path is not set")
    try:
        tokenizer = extend_tokenizer(open_tokenizer(path), expand_tokens(config.data.tokenizer.add_tokens))
    except (OSError, ValueError) as error:
        raise ConfigError(f"data.tokenizer: {error}") from None
    check_pieces(tokenizer, config)
    return tokenizer


def check_pieces(tokenizer: Tokenizer, config: Config) -> None:
    """Raise ConfigError, naming piece and key, where the tokenizer lacks one that the config names."""
    for key, piece in needed_pieces(config):
        tokenizer.id(piece, key)


def needed_pieces(config: Config) -> list[tuple[str, str]]:
    """(key, piece): the special pieces that template and image layout need, with where the config asks for them."""
    template = config.sequence.template
    pieces = [(f"sequence.template {template}", piece) for piece in TEMPLATES[template].pieces]
    return [*pieces, *image_pieces(config.image).items()]
