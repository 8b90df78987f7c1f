"""Handwritten digits: the 1,797 UCI images in scikit-learn, which need no download."""

from __future__ import annotations

import math
import random
from typing import Literal

import numpy as np
from PIL import Image as PillowImage

from solo.data.readers.registry import Examples, reader
from solo.data.record import Image, Record, Turn, encode_png

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
QUESTION = "Which digit is this?"
_HELD_OUT = 359  # a fifth


@reader("digits")
def digits(
    split: Literal["train", "held_out"] = "train",
    form: Literal["caption", "question"] = "caption",
    sizes: tuple[int, ...] = (32,),
    copies: int = 1,
    seed: int = 0,
) -> Examples:
    """Yields digits of 8 x 8 pixels, enlarged to a square with a side from `sizes`.

    `train` yields `copies` variants of every training image, with a side drawn from `sizes`, rotated by up to 10
    degrees, scaled by up to a tenth and shifted by up to half an original pixel. `held_out` yields every held-out image
    once, unchanged, with the first side. The held-out fifth does not depend on the seed.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    # NumPy never changes what RandomState draws, so the split is the same with any version.
    order = np.random.RandomState(0).permutation(len(found.images))
    chosen = sorted(order[:_HELD_OUT] if split == "held_out" else order[_HELD_OUT:])
    for copy in range(copies if split == "train" else 1):
        for number in chosen:
            pixels = PillowImage.fromarray((found.images[number] * (255 / 16)).astype(np.uint8))
            if split == "train":
                draw = random.Random(f"digits {seed} {number} {copy}")
                image = _vary(pixels, draw.choice(sizes), draw)
            else:
                image = _place(pixels, sizes[0])
            word = WORDS[found.target[number]]
            yield Record(f"{split}/{number}/{copy}", _turns(encode_png(image), word, form))


def _turns(image: Image, word: str, form: str) -> tuple[Turn, ...]:
    if form == "caption":
        return (Turn("text", (image, word)),)
    return Turn("user", (image, QUESTION)), Turn("assistant", (word,))


def _vary(pixels: PillowImage.Image, side: int, draw: random.Random) -> PillowImage.Image:
    angle, scale = math.radians(draw.uniform(-10, 10)), draw.uniform(0.9, 1.1)
    return _place(pixels, side, angle, scale, (draw.uniform(-0.5, 0.5), draw.uniform(-0.5, 0.5)))


def _place(
    pixels: PillowImage.Image,
    side: int,
    angle: float = 0.0,
    scale: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
) -> PillowImage.Image:
    """Enlarges to side x side, rotated by `angle` radians about the centre; `shift` is in original pixels."""
    step = pixels.width / side / scale
    cosine, sine, middle = math.cos(angle) * step, math.sin(angle) * step, side / 2
    x = pixels.width / 2 + shift[0] - middle * (cosine - sine)
    y = pixels.height / 2 + shift[1] - middle * (cosine + sine)
    return pixels.transform(
        (side, side),
        PillowImage.Transform.AFFINE,
        (cosine, -sine, x, sine, cosine, y),
        PillowImage.Resampling.BILINEAR,
    )
