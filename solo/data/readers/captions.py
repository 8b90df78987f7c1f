"""Records of images with one or several captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from solo.data.record import Image, Place, Record, Turn

Captions = Literal["each", "all", "first"]
"""each: a record per caption. all: one record, a caption per line. first: the first caption alone."""
Form = Literal["caption", "question"]


def caption_records(
    id: str, images: Sequence[Image], captions: Sequence[str], kept: Captions, place: Place | None
) -> Iterator[Record]:
    """Yields records of the images followed by captions. Raises ValueError if there is no image or no caption."""
    texts = [caption.strip() for caption in captions]
    texts = [text for text in texts if text]
    if not images:
        raise ValueError("it has no image")
    if not texts:
        raise ValueError("it has no caption" if not captions else "its caption is empty")
    if kept != "each" or len(captions) == 1:
        yield Record(id, (Turn("text", (*images, "\n".join(texts) if kept == "all" else texts[0])),), place)
        return
    for number, text in enumerate(texts, start=1):
        yield Record(f"{id}/{number}", (Turn("text", (*images, text)),), place)


def labelled(image: Image, text: str, form: Form, question: str) -> tuple[Turn, ...]:
    """Returns an image with its caption, or with a question and the caption as the answer."""
    if form == "caption":
        return (Turn("text", (image, text)),)
    return (Turn("user", (image, question)), Turn("assistant", (text,)))
