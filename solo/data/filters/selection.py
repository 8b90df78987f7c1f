"""Decides whether a record of a source is used, from the record alone.

The decision does not depend on the order of the records or on their division into parts, and does not change when the
source grows.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from solo.config import FilterConfig, SourceConfig
from solo.data.filters.conditions import Conditions, Refusal
from solo.data.record import Image, Record, Turn


class EmptyAnswerError(ValueError):
    """A turn of a record that should be trained on has no text."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The settings of a source that decide which of its records are used. See `SourceConfig` for their meaning."""

    filters: FilterConfig = FilterConfig()  # noqa: RUF009 - frozen
    empty_answers: Literal["set_aside", "read", "learn"] = "set_aside"
    held_out: float = 0.0
    take: Literal["all", "train", "held_out"] = "all"

    @classmethod
    def of(cls, source: SourceConfig) -> Selection:
        """Returns the selection of a source."""
        return cls(source.filters, source.empty_answers, source.held_out, source.take)

    def as_json(self) -> list[object]:
        """Returns the settings as JSON values, for fingerprints."""
        return [self.filters.model_dump(mode="json"), self.empty_answers, self.held_out, self.take]

    def opened(self) -> Selector:
        """Returns the selector of these settings. Raises ConfigError if a filter needs a package that is missing."""
        return Selector(self)


@dataclass(frozen=True, slots=True)
class Filtered:
    """Marks a record as left out, with the key of the setting that excludes it and the reason."""

    key: str
    reason: str


class Selector:
    """Selects records; see `Selection`."""

    def __init__(self, selection: Selection) -> None:
        self._selection, self._conditions = selection, Conditions(selection.filters)
        self._takes_all = selection.take == "all" and not self._conditions.any

    def __call__(self, record: Record, digests: Sequence[bytes], sizes: Sequence[tuple[int, int]]) -> Record | Filtered:
        """Returns the record to store, or the reason why it is left out.

        Args:
            record: the record.
            digests: digests of its image files, in order.
            sizes: width and height of its images, in order.

        Raises:
            EmptyAnswerError: an answer is empty, and `empty_answers` is set_aside.
        """
        selection = self._selection
        if not self._takes_all:
            refusal = self._share(record, digests) or self._conditions.refusal(record, sizes)
            if refusal is not None:
                return Filtered(*refusal)
        if selection.empty_answers == "learn" or not any(map(_is_empty, record.turns)):
            return record
        if selection.empty_answers == "read":
            turns = (replace(turn, learned=False) if _is_empty(turn) else turn for turn in record.turns)
            return replace(record, turns=tuple(turns))
        number = next(number for number, turn in enumerate(record.turns, start=1) if _is_empty(turn))
        raise EmptyAnswerError(f"turn {number} is to be learned, but has no text (empty_answers: set_aside)")

    def _share(self, record: Record, digests: Sequence[bytes]) -> Refusal | None:
        take = self._selection.take
        if take == "all":
            return None
        held_out = is_held_out(record, digests, self._selection.held_out)
        return (
            None
            if held_out == (take == "held_out")
            else ("take", "it is held out" if held_out else "it is not held out")
        )


def is_held_out(record: Record, digests: Sequence[bytes], share: float) -> bool:
    """Returns whether a record belongs to the held-out share.

    Records with the same single image are on the same side of the split, whatever their texts. Of several images, the
    one with the smallest digest decides, as in MinHash: two records whose images have Jaccard similarity `s` are on the
    same side with probability at least `s`. Records without images are identified by their texts, ignoring white space.

    Args:
        record: the record.
        digests: digests of its image files.
        share: share of all records to hold out, 0 to 1.
    """
    if digests:
        content = min(digests)
    else:
        texts = (part for turn in record.turns for part in turn.content if isinstance(part, str))
        content = " ".join(" ".join(texts).split()).encode(errors="surrogatepass")
    drawn = hashlib.blake2b(content, digest_size=8, person=b"held_out").digest()
    return int.from_bytes(drawn, "big") < share * 2.0**64


def _is_empty(turn: Turn) -> bool:
    return turn.supervised and not any(map(_is_written, turn.content))


def _is_written(part: str | Image) -> bool:
    """Returns whether a part has more than white space, control characters and format characters (U+200B, U+FEFF)."""
    return isinstance(part, str) and any(
        not one.isspace() and unicodedata.category(one) not in ("Cc", "Cf") for one in part
    )
