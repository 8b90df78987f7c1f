"""What the small files of a Hugging Face repository say about its vocabulary, beside the vocabulary itself.

tokenizer_config.json, special_tokens_map.json   which pieces open and end a text, and which one is the padding
tokenizer_config.json: added_tokens_decoder      id -> piece: appended, or another name for the piece of that id
added_tokens.json                                piece -> id, without saying whether it is special
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

CONFIG_FILE = "tokenizer_config.json"


class Piece(NamedTuple):
    """A piece of the vocabulary. special: text never becomes it; otherwise text matches it as a whole."""

    text: str
    special: bool


@dataclass(frozen=True)
class RepositoryPieces:
    """Pieces by id, and the names of those that open a text, end it, and pad."""

    pieces: Mapping[int, Piece] = field(default_factory=dict)
    bos: str | None = None
    eos: str | None = None
    pad: str | None = None


def read_repository_pieces(folder: Path) -> RepositoryPieces:
    """What a folder's files say; nothing where it has none of them. Raises ValueError naming a file it cannot read."""
    config = _read(folder / CONFIG_FILE)
    names = {**_read(folder / "special_tokens_map.json"), **config}
    try:
        # Only added_tokens.json does not say; what is in no text corpus is better not found in one.
        pieces = {int(token): Piece(text, True) for text, token in _read(folder / "added_tokens.json").items()}
        for token, entry in config.get("added_tokens_decoder", {}).items():
            pieces[int(token)] = Piece(entry["content"], bool(entry.get("special", True)))
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{folder}: cannot make out its added tokens: {type(error).__name__}: {error}") from None
    return RepositoryPieces(pieces, *(_name(names.get(f"{role}_token")) for role in ("bos", "eos", "pad")))


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
    """Written as a string, or as a mapping with flags."""
    return token.get("content") if isinstance(token, Mapping) else token
