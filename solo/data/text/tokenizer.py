"""The interface of a tokenizer, independent of its file format."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from solo.config import ConfigError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids of the tokens that every template needs.

    bos  begins a document; None if the vocabulary has no such token (Qwen)
    eos  ends a document
    pad  fills empty slots; equals `eos` if the vocabulary has no padding token (SOLO)
    """

    bos: int | None
    eos: int
    pad: int


class Tokenizer(ABC):
    """Text to token ids and back. Picklable, so that worker processes can have it.

    Special tokens (delimiters, roles, ...) are in the vocabulary, but text never encodes to one: "</vision>" in a
    caption becomes plain characters. The one exception is `unknown`, which stands for characters that the vocabulary
    lacks.

    Attributes:
        special: ids that every template needs.
        special_ids: ids of all special tokens, `unknown` included.
        unknown: id of the token for unknown characters; None if there is none (a vocabulary of bytes needs none), or
            if it also begins or ends a text.
    """

    special: SpecialTokens
    special_ids: frozenset[int]
    unknown: int | None = None

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The highest id plus one, special tokens included."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """16 hexadecimal digits that differ between tokenizers."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text. Adds no special tokens and recognises none.

        Raises:
            ValueError: the text holds a lone surrogate, or characters for which the vocabulary has no token, not even
                `unknown`; the message names them.
        """

    def encode_batch(self, texts: Sequence[str]) -> list[list[int] | ValueError]:
        """Returns for each text what `encode` returns or raises. Faster than `encode` for many short texts."""
        return [self._attempt(text) for text in texts]

    def _attempt(self, text: str) -> list[int] | ValueError:
        try:
            return self.encode(text)
        except ValueError as error:
            return error

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids without special tokens.

        Raises:
            IndexError: an id is outside the vocabulary.
        """

    @abstractmethod
    def find(self, token: str) -> int | None:
        """Returns the id of a token, special or not; None if the vocabulary does not have it."""

    @abstractmethod
    def token(self, token_id: int) -> str:
        """Returns a token for display: a special token's name, else its text, with spaces as spaces.

        A token that is a part of a character has its name in the vocabulary, such as `<0xE2>`.
        """

    @abstractmethod
    def extended(self, tokens: Sequence[str]) -> Tokenizer:
        """Returns a tokenizer with these special tokens too; see `extend_tokenizer`."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Writes the files that `open_tokenizer` opens as this tokenizer. The folder must exist."""

    def id(self, token: str, key: str = "the config") -> int:
        """Returns the id of a special token.

        Args:
            token: its text.
            key: the config key that names it, for the error message.

        Raises:
            ConfigError: the vocabulary does not have the token, or text can encode to it.
        """
        found = self.find(token)
        if found is None:
            raise ConfigError(
                f"{key} needs the token {token!r}, which the tokenizer does not have; append it with "
                "data.tokenizer.add_tokens, or name another"
            )
        if found not in self.special_ids:
            raise ConfigError(
                f"{key} needs the token {token!r}, to which text can encode; name it in data.tokenizer.add_tokens, "
                "which keeps its id and makes it special"
            )
        return found


def extend_tokenizer(tokenizer: Tokenizer, tokens: Iterable[str]) -> Tokenizer:
    """Returns a tokenizer with more special tokens, appended in this order. No id changes.

    A token that the vocabulary already has keeps its id and becomes special: SOLO's own files have theirs as normal
    tokens, which text can match. Returns the same tokenizer if there is nothing to do.
    """
    needed = [token for token in dict.fromkeys(tokens) if tokenizer.find(token) not in tokenizer.special_ids]
    return tokenizer.extended(needed) if needed else tokenizer


def expand_tokens(tokens: Iterable[str]) -> tuple[str, ...]:
    """Writes out ranges in braces: `<loc_{1..3}>` gives `<loc_1>`, `<loc_2>`, `<loc_3>`."""
    return tuple(name for token in tokens for name in _expand(token))


def _expand(token: str) -> Iterator[str]:
    found = _RANGE.search(token)
    if found is None:
        yield token
        return
    for number in range(int(found[1]), int(found[2]) + 1):
        yield from _expand(f"{token[: found.start()]}{number}{token[found.end() :]}")
