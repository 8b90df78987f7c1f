"""What a tokenizer is to the rest of the data side, whatever file format it comes in."""

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
    """Ids of the tokens that every tokenizer has a notion of.

    bos  opens a document; None where the vocabulary has no such token (Qwen)
    eos  ends one
    pad  stands in empty slots; that of the end where the vocabulary has none of its own (SOLO)
    """

    bos: int | None
    eos: int
    pad: int


class Tokenizer(ABC):
    """Text to token ids and back. Pickles, so it travels to worker processes.

    Special pieces (delimiters, roles, ...) are in the vocabulary, but text never becomes one, however it reads:
    "</vision>" in a caption is plain characters.
    """

    special: SpecialTokens
    special_ids: frozenset[int]

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids, special ones included: the highest, plus one."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """16 hexadecimal digits; another tokenizer has another."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text, special tokens neither added nor recognised. Raises ValueError on lone surrogates."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out. Raises IndexError on an id outside the vocabulary."""

    @abstractmethod
    def find(self, piece: str) -> int | None:
        """The id of a piece, special or not; None where the vocabulary does not have it."""

    @abstractmethod
    def extended(self, pieces: Sequence[str]) -> Tokenizer:
        """With more special pieces; see `extend_tokenizer`."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write the files from which `open_tokenizer` makes this tokenizer again. The folder must exist."""

    def id(self, piece: str, key: str = "the config") -> int:
        """The id of a special piece, looked up by name.

        Args:
            piece: its name.
            key: where the config asks for it, for the message.

        Raises:
            ConfigError: the vocabulary does not have the piece, or text could become it.
        """
        found = self.find(piece)
        if found is None:
            raise ConfigError(
                f"{key} needs the piece {piece!r}, which the tokenizer does not have; append it with "
                "data.tokenizer.add_tokens, or name another"
            )
        if found not in self.special_ids:
            raise ConfigError(
                f"{key} needs the piece {piece!r}, which text could become; name it in data.tokenizer.add_tokens, "
                "which keeps its id and makes it special"
            )
        return found


def extend_tokenizer(tokenizer: Tokenizer, pieces: Iterable[str]) -> Tokenizer:
    """A tokenizer with more special pieces, appended at the end in this order; all ids of old ones stay.

    A piece that is there already keeps its id and becomes special, whatever it was: SOLO's own files have theirs as
    normal ones, which text can match. Nothing to do: the same tokenizer.
    """
    needed = [piece for piece in dict.fromkeys(pieces) if tokenizer.find(piece) not in tokenizer.special_ids]
    return tokenizer.extended(needed) if needed else tokenizer


def expand_tokens(pieces: Iterable[str]) -> tuple[str, ...]:
    """Names with a range in braces, written out: `<loc_{1..3}>` stands for `<loc_1>`, `<loc_2>`, `<loc_3>`."""
    return tuple(name for piece in pieces for name in _expand(piece))


def _expand(piece: str) -> Iterator[str]:
    found = _RANGE.search(piece)
    if found is None:
        yield piece
        return
    for number in range(int(found[1]), int(found[2]) + 1):
        yield from _expand(f"{piece[: found.start()]}{number}{piece[found.end() :]}")
