"""Rendered lines of English words to read: an endless source without a download."""

from __future__ import annotations

import random
import re
from itertools import count
from typing import Literal

from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from solo.config import ConfigError
from solo.data.readers.registry import Examples, reader
from solo.data.record import Image, Record, Turn, encode_png

QUESTION = "Read the text."


@reader("lines", endless=True)
def lines(
    split: Literal["train", "held_out"] = "train",
    form: Literal["caption", "question"] = "question",
    seed: int = 0,
    min_characters: int = 4,
    max_characters: int = 20,
    cell: int | None = None,
) -> Examples:
    """Yields dark words on a light background, in Pillow's built-in bitmap font of 6 x 11 pixels per character.

    Margins are 2 to 6 pixels wide. With `cell`, there are none: every character is enlarged to cell x 2 cell pixels,
    and the line is shifted by up to an eighth of a cell, so that two patches of side `cell` hold one character.

    The words are those of 2 to 8 letters in Python's own documentation. Record i is a function of (seed, split, i). The
    splits are drawn independently, so a short line can be in both.
    """
    if not 2 <= min_characters <= max_characters:
        found = f"{min_characters} and {max_characters}"
        raise ConfigError(f"reader 'lines': need 2 <= min_characters <= max_characters, found {found}")
    if cell is not None and cell < 6:
        raise ConfigError(f"reader 'lines': cell {cell} is below 6 pixels, the width of a character")
    words, font = _words(), ImageFont.load_default_imagefont()
    for number in count():
        draw = random.Random(f"lines {seed} {split} {number}")
        text = _line(words, draw, draw.randint(min_characters, max_characters))
        yield Record(f"{split}/{number}", _turns(_render(text, font, draw, cell), text, form))


def _turns(image: Image, text: str, form: str) -> tuple[Turn, ...]:
    if form == "caption":
        return (Turn("text", (image, text)),)
    return Turn("user", (image, QUESTION)), Turn("assistant", (text,))


def _words() -> dict[int, list[str]]:
    """Returns words by their number of letters."""
    from pydoc_data.topics import topics

    found = sorted(set(re.findall(r"\b[a-z]{2,8}\b", " ".join(topics.values()))))
    return {letters: [word for word in found if len(word) == letters] for letters in range(2, 9)}


def _line(words: dict[int, list[str]], draw: random.Random, characters: int) -> str:
    """Returns words and single spaces of exactly this many characters."""
    chosen: list[str] = []
    while characters > 0:
        # A word ends the line, or leaves room for a space and a word of two letters.
        letters = draw.choice([n for n in words if characters == n or characters >= n + 3])
        chosen.append(draw.choice(words[letters]))
        characters -= letters + 1
    return " ".join(chosen)


def _render(text: str, font: ImageFont.ImageFont, draw: random.Random, cell: int | None) -> Image:
    left, top, right, bottom = (int(edge) for edge in font.getbbox(text))
    margins = [0] * 4 if cell else [draw.randint(2, 6) for _ in range(4)]
    size = (right - left + margins[0] + margins[1], bottom - top + margins[2] + margins[3])
    ground = draw.randint(220, 255)
    image = PillowImage.new("L", size, ground)
    ImageDraw.Draw(image).text((margins[0], margins[2]), text, fill=draw.randint(0, 60), font=font)
    if cell:
        image = image.resize((len(text) * cell, 2 * cell), PillowImage.Resampling.BICUBIC)
        shift = [draw.randint(-(cell // 8), cell // 8) for _ in range(2)]
        moved = PillowImage.new("L", image.size, ground)
        moved.paste(image, (shift[0], shift[1]))
        image = moved
    return encode_png(image)
