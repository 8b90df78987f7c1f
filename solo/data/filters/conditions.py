"""The conditions of `filters` in a source's config."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from solo.config import ConfigError, FilterConfig
from solo.data.record import Record

Refusal = tuple[str, str]


class Conditions:
    """The conditions of a config, ready to apply.

    Attributes:
        any: whether there are conditions.

    Raises:
        ConfigError: `languages` is set, and the package that detects languages is missing or does not know one of them.
    """

    def __init__(self, config: FilterConfig) -> None:
        self._config = config
        self._must = [re.compile(pattern) for pattern in config.must_match]
        self._must_not = [re.compile(pattern) for pattern in config.must_not_match]
        self.any = config != FilterConfig(language_min_letters=config.language_min_letters)
        if unknown := set(config.languages) - (_languages() if config.languages else set()):
            raise ConfigError(f"filters.languages: py3langid does not know {', '.join(sorted(unknown))}")

    def refusal(self, record: Record, sizes: Sequence[tuple[int, int]]) -> Refusal | None:
        """Returns the key of the first condition that a record fails, and why; None if it meets all of them.

        Args:
            record: the record.
            sizes: width and height of its images, in order.
        """
        return next(self._refusals(record, sizes), None) if self.any else None

    def _refusals(self, record: Record, sizes: Sequence[tuple[int, int]]) -> Iterator[Refusal]:
        config = self._config
        yield from self._bounds("images", len(sizes), "it has {} images")
        yield from self._bounds("turns", len(record.turns), "it has {} turns")
        for number, (image, (width, height)) in enumerate(zip(record.images(), sizes, strict=True), start=1):
            name = f"image {number}, of {width} x {height} pixels,"
            yield from self._bounds("side", min(width, height), name + " has a side of {}", least=True)
            yield from self._bounds("side", max(width, height), name + " has a side of {}", most=True)
            yield from self._bounds("pixels", width * height, name + " has {} pixels")
            yield from self._bounds("file_bytes", len(image.data), name + " has a file of {} bytes")
            ratio = max(width, height) / min(width, height)
            if config.max_aspect_ratio is not None and ratio > config.max_aspect_ratio:
                yield "max_aspect_ratio", f"{name} has sides of {ratio:.2f} to 1"
        text = "\n".join(part for turn in record.turns for part in turn.content if isinstance(part, str))
        yield from self._bounds("characters", len(text), "its text has {} characters")
        for pattern in self._must:
            if not pattern.search(text):
                yield "must_match", f"its text does not match {pattern.pattern!r}"
        for pattern in self._must_not:
            if found := pattern.search(text):
                yield "must_not_match", f"its text matches {pattern.pattern!r} with {found[0]!r:.80}"
        if config.languages and sum(map(str.isalpha, text)) >= config.language_min_letters:
            language = _language(text)
            if language not in config.languages:
                yield "languages", f"its text is {language!r}"

    def _bounds(self, what: str, value: int, words: str, least: bool = False, most: bool = False) -> Iterator[Refusal]:
        """Yields a refusal if a value is out of bounds. With `least` or `most`, only that bound applies."""
        low, high = getattr(self._config, f"min_{what}"), getattr(self._config, f"max_{what}")
        if low is not None and value < low and not most:
            yield f"min_{what}", f"{words.format(value)}; min_{what} is {low}"
        if high is not None and value > high and not least:
            yield f"max_{what}", f"{words.format(value)}; max_{what} is {high}"


def _language(text: str) -> str:
    """Returns the ISO 639-1 code of the most likely language."""
    return str(_library().classify(text)[0])


@cache
def _languages() -> frozenset[str]:
    return frozenset(str(language) for language, _ in _library().rank("text"))


def _library() -> Any:
    try:
        import py3langid  # optional, and slow to import
    except ImportError:
        raise ConfigError("filters.languages needs the package py3langid; install solo-vlm[language]") from None
    return py3langid
