"""Tokens that the small files of a Hugging Face repository add to its vocabulary.

tokenizer_config.json, special_tokens_map.json   the bos, eos and pad tokens
tokenizer_config.json: added_tokens_decoder      id -> token; appends a token, or renames the token with that id
added_tokens.json                                token -> id, without a flag for special tokens
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

CONFIG_FILE = "tokenizer_config.json"


class AddedToken(NamedTuple):
    """A token added to the vocabulary. Text never encodes to a special token; any other one is matched as a whole."""

    text: str
    special: bool


@dataclass(frozen=True)
class RepositoryTokens:
    """Added tokens by id, and the bos, eos and pad tokens."""

    added: Mapping[int, AddedToken] = field(default_factory=dict)
    bos: str | None = None
    eos: str | None = None
    pad: str | None = None


def read_repository_tokens(folder: Path) -> RepositoryTokens:
    """Reads these files from a folder. A missing file adds nothing.

    Raises:
        ValueError: a file cannot be read; the message names it.
    """
    config = _read(folder / CONFIG_FILE)
    names = {**_read(folder / "special_tokens_map.json"), **config}
    try:
        # added_tokens.json has no flag. Its tokens are treated as special, so that text never encodes to them.
        added = {
            int(token_id): AddedToken(text, True) for text, token_id in _read(folder / "added_tokens.json").items()
        }
        for token_id, entry in config.get("added_tokens_decoder", {}).items():
            added[int(token_id)] = AddedToken(entry["content"], bool(entry.get("special", True)))
        roles = [_name(names.get(f"{role}_token")) for role in ("bos", "eos", "pad")]
        if strange := [token.text for token in added.values() if not isinstance(token.text, str)]:
            raise TypeError(f"{strange[0]!r} is not the text of a token")
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise ValueError(f"{folder}: cannot read its added tokens: {type(error).__name__}: {error}") from None
    return RepositoryTokens(added, *roles)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a mapping, found {type(found).__name__}")
    return found


def _name(token: Any) -> str | None:
    """Returns the text of a token, which is stored as a string or as a mapping with flags."""
    text = token.get("content") if isinstance(token, Mapping) else token
    if text is not None and not isinstance(text, str):
        raise TypeError(f"{token!r} is not the text of a token")
    return text
