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
    """Ids of the special tokens that every template needs.

    bos  begins a document; None if the vocabulary has no such token (Qwen)
    eos  ends a document
    pad  fills empty slots; equals `eos` if the vocabulary has no padding token (SOLO)
    """

    bos: int | None
    eos: int
    pad: int


class Tokenizer(ABC):
    """Converts text to token ids and back. Picklable, so that it can be sent to worker processes.

    Special tokens (delimiters, roles, ...) are in the vocabulary, but text never encodes to them: "</vision>" in a
    caption is encoded as ordinary text. The only exception is `unknown`, which stands for characters that the
    vocabulary lacks.

    Attributes:
        special: ids of the special tokens that every template needs.
        special_ids: ids of all special tokens, including `unknown`.
        unknown: id of the unknown token; None if there is none (a byte-level vocabulary needs none), or if it also
            begins or ends a text.
    """

    special: SpecialTokens
    special_ids: frozenset[int]
    unknown: int | None = None

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The highest id plus one, including special tokens."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the tokenizer."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text. Does not add or recognize special tokens.

        Raises:
            ValueError: the text contains a lone surrogate, or characters that the vocabulary lacks and there is no
                `unknown`; the message lists them.
        """

    def encode_batch(self, texts: Sequence[str]) -> list[list[int] | ValueError]:
        """Encodes many texts, faster than `encode` does. An element is a ValueError if its text cannot be encoded."""
        return [self._attempt(text) for text in texts]

    def _attempt(self, text: str) -> list[int] | ValueError:
        try:
            return self.encode(text)
        except ValueError as error:
            return error

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids, omitting special tokens.

        Raises:
            IndexError: an id is outside the vocabulary.
        """

    @abstractmethod
    def find(self, token: str) -> int | None:
        """Returns the id of a token, special or not; None if the vocabulary lacks it."""

    @abstractmethod
    def token(self, token_id: int) -> str:
        """Returns a token for display: the name of a special token, otherwise the token's text with ordinary spaces.

        A token that is only part of a character is shown by its name in the vocabulary, such as `<0xE2>`.
        """

    @abstractmethod
    def extended(self, tokens: Sequence[str]) -> Tokenizer:
        """Returns a tokenizer with additional special tokens; see `extend_tokenizer`."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Saves the tokenizer for `open_tokenizer`. The folder must exist."""

    def id(self, token: str, key: str = "the config") -> int:
        """Returns the id of a special token.

        Args:
            token: text of the token.
            key: the config key that names the token, for the error message.

        Raises:
            ConfigError: the vocabulary lacks the token, or text can encode to it.
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
    """Returns a tokenizer with additional special tokens, appended in this order. Existing ids do not change.

    A token that is already in the vocabulary keeps its id and becomes special: in SOLO's own files, special tokens are
    normal tokens, which text can match. Returns the same tokenizer if there is nothing to do.
    """
    needed = [token for token in dict.fromkeys(tokens) if tokenizer.find(token) not in tokenizer.special_ids]
    return tokenizer.extended(needed) if needed else tokenizer


def expand_tokens(tokens: Iterable[str]) -> tuple[str, ...]:
    """Expands brace ranges: `<loc_{1..3}>` gives `<loc_1>`, `<loc_2>`, `<loc_3>`."""
    return tuple(name for token in tokens for name in _expand(token))


def _expand(token: str) -> Iterator[str]:
    found = _RANGE.search(token)
    if found is None:
        yield token
        return
    for number in range(int(found[1]), int(found[2]) + 1):
        yield from _expand(f"{token[: found.start()]}{number}{token[found.end() :]}")
