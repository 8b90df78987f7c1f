"""The tokenizer of a config, and the check that it has every special token that the config names."""

from __future__ import annotations

from pathlib import Path

from solo.config import Config, ConfigError
from solo.data.images.delimiters import delimiter_tokens
from solo.data.text import Tokenizer, expand_tokens, extend_tokenizer, open_tokenizer
from solo.data.text.templates import TEMPLATES


def configured_tokenizer(config: Config, path: str | Path | None = None) -> Tokenizer:
    """Opens `data.tokenizer.path`, or another path, and appends the config's `add_tokens`.

    Raises:
        ConfigError: no path is given, the path cannot be read, or the tokenizer lacks a token that the config names.
    """
    path = path or config.data.tokenizer.path
    if path is None:
        raise ConfigError("data.tokenizer.path is not set")
    try:
        tokenizer = extend_tokenizer(open_tokenizer(path), expand_tokens(config.data.tokenizer.add_tokens))
    except (OSError, ValueError) as error:
        raise ConfigError(f"data.tokenizer: {error}") from None
    check_tokens(tokenizer, config)
    return tokenizer


def check_tokens(tokenizer: Tokenizer, config: Config) -> None:
    """Raises ConfigError, naming token and key, if the tokenizer lacks a special token that the config names."""
    for key, token in needed_tokens(config):
        tokenizer.id(token, key)


def needed_tokens(config: Config) -> list[tuple[str, str]]:
    """Returns (config key, token) for every special token that the template and the image delimiters need."""
    template = config.sequence.template
    tokens = [(f"sequence.template {template}", token) for token in TEMPLATES[template].special_tokens]
    return [*tokens, *delimiter_tokens(config.image).items()]
