"""Plain English text that ships with Python: the language reference in `pydoc_data.topics`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from solo.data.readers.registry import Examples, reader
from solo.data.record import Record, Turn


@reader("topics")
def topics(
    split: Literal["train", "held_out"] = "train", max_characters: int = 1000, held_out_every: int = 10
) -> Examples:
    """Yields documents of whole paragraphs, of at most `max_characters`. Every `held_out_every`-th is held out.

    The text differs between Python versions.
    """
    from pydoc_data.topics import topics as found

    number = 0
    for name in sorted(found):
        for document in documents(found[name], max_characters):
            number += 1
            if (number % held_out_every == 0) == (split == "held_out"):
                yield Record(f"{name}/{number}", (Turn("text", (document,)),))


def documents(text: str, max_characters: int) -> Iterator[str]:
    """Joins paragraphs up to the limit. Splits a longer paragraph at its last line end that fits, or anywhere."""
    document = ""
    for paragraph in text.strip().split("\n\n"):
        while len(paragraph) > max_characters:
            if document:
                yield document
                document = ""
            cut = paragraph.rfind("\n", 1, max_characters + 1)
            cut = cut if cut > 0 else max_characters
            yield paragraph[:cut]
            paragraph = paragraph[cut:].removeprefix("\n")
        joined = f"{document}\n\n{paragraph}" if document else paragraph
        if len(joined) > max_characters:
            yield document
            joined = paragraph
        document = joined
    if document.strip():
        yield document
