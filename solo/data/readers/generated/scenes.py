"""Coloured shapes with captions and questions: an endless source without a download.

A question and its answer are drawn first, and the scene is built around them. Answers are therefore balanced, and a
model that ignores the image gains little by guessing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, product
from typing import Literal

from PIL import Image as PillowImage
from PIL import ImageDraw

from solo.config import ConfigError
from solo.data.readers.registry import Examples, reader
from solo.data.record import Image, Record, Turn, encode_png

COLOURS = {
    "red": (220, 35, 35),
    "green": (35, 160, 60),
    "blue": (45, 80, 225),
    "yellow": (240, 205, 25),
    "purple": (150, 45, 185),
    "black": (25, 25, 25),
}
KINDS = ("circle", "square", "triangle")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
TOTAL_QUESTION = "How many shapes are there?"
_LEAST_ASPECT = 1.25


@dataclass(frozen=True, slots=True)
class Shape:
    """A shape to draw."""

    colour: str
    kind: str

    def __str__(self) -> str:
        return f"{self.colour} {self.kind}"


SHAPES = tuple(Shape(colour, kind) for colour, kind in product(COLOURS, KINDS))


@dataclass(frozen=True, slots=True)
class Scene:
    """Distinct shapes, from left to right in a wide image and from top to bottom in a tall one."""

    shapes: tuple[Shape, ...]
    wide: bool

    @property
    def relation(self) -> str:
        """Relation of a shape to the next one."""
        return "left of" if self.wide else "above"

    def caption(self) -> str:
        """Returns a caption such as "a red circle left of a blue square"."""
        return f" {self.relation} ".join(f"a {shape}" for shape in self.shapes)


@reader("scenes", endless=True)
def scenes(
    split: Literal["train", "held_out"] = "train",
    form: Literal["caption", "question", "mixed"] = "mixed",
    seed: int = 0,
    min_side: int = 32,
    max_side: int = 64,
    max_shapes: int = 3,
    questions: int = 1,
) -> Examples:
    """Yields one to `max_shapes` circles, squares and triangles in a row on a light background.

    Sides are within [min_side, max_side] pixels, and the longer side is at least 1.25 times the shorter. Shapes stand
    along the longer side. `mixed` yields captions and questions equally often. With `questions`, up to that many are
    asked about a scene; the scene is built around the first. Record i is a function of (seed, split, i).
    """
    if not 8 <= min_side * _LEAST_ASPECT <= max_side:
        raise ConfigError(f"reader 'scenes': max_side {max_side} is not at least 1.25 times min_side {min_side}")
    if not 1 <= max_shapes < len(NUMBERS):
        raise ConfigError(f"reader 'scenes': max_shapes {max_shapes} is not within 1 to {len(NUMBERS) - 1}")
    for number in count():
        draw = random.Random(f"scenes {seed} {split} {number}")
        wide = draw.random() < 0.5
        if form == "caption" or (form == "mixed" and draw.random() < 0.5):
            scene = Scene(tuple(draw.sample(SHAPES, draw.randint(1, max_shapes))), wide)
            turns: tuple[Turn, ...] = (Turn("text", (_render(scene, draw, min_side, max_side), scene.caption())),)
        else:
            question, answer, scene = ask(draw, wide, max_shapes)
            image = _render(scene, draw, min_side, max_side)
            turns = (Turn("user", (image, question)), Turn("assistant", (answer,)))
            for further, its_answer in _further(scene, question, questions - 1, draw):
                turns += (Turn("user", (further,)), Turn("assistant", (its_answer,)))
        yield Record(f"{split}/{number}", turns)


Asked = tuple[str, str, Scene]


def ask(draw: random.Random, wide: bool, most: int) -> Asked:
    """Returns a question with one answer, the answer, and a scene of at most `most` shapes in which it is true."""
    kinds = (_ask_colour, _ask_kind, _ask_total, _ask_number, _ask_neighbour)
    return draw.choice(kinds if most > 1 else kinds[:2])(draw, wide, most)


def _ask_colour(draw: random.Random, wide: bool, most: int) -> Asked:
    target = draw.choice(SHAPES)
    others = _some([shape for shape in SHAPES if shape.kind != target.kind], draw, 0, most - 1)
    return colour_question(target.kind), target.colour, Scene(_mixed([target, *others], draw), wide)


def _ask_kind(draw: random.Random, wide: bool, most: int) -> Asked:
    target = draw.choice(SHAPES)
    others = _some([shape for shape in SHAPES if shape.colour != target.colour], draw, 0, most - 1)
    return kind_question(target.colour), target.kind, Scene(_mixed([target, *others], draw), wide)


def _ask_total(draw: random.Random, wide: bool, most: int) -> Asked:
    shapes = _some(SHAPES, draw, 1, most)
    return TOTAL_QUESTION, NUMBERS[len(shapes)], Scene(tuple(shapes), wide)


def _ask_number(draw: random.Random, wide: bool, most: int) -> Asked:
    what = draw.choice([*COLOURS, *KINDS])
    counted = _some([shape for shape in SHAPES if what in (shape.colour, shape.kind)], draw, 0, most)
    rest = [shape for shape in SHAPES if what not in (shape.colour, shape.kind)]
    others = _some(rest, draw, 0 if counted else 1, most - len(counted))
    return number_question(what), NUMBERS[len(counted)], Scene(_mixed([*counted, *others], draw), wide)


def _ask_neighbour(draw: random.Random, wide: bool, most: int) -> Asked:
    answer, reference, *others = _some(SHAPES, draw, 2, most)
    # All others stand on the far side of the reference, so that the answer is unique.
    scene, side = Scene((answer, reference, *others), wide), "left of" if wide else "above"
    if draw.random() < 0.5:
        scene, side = Scene((*others, reference, answer), wide), "right of" if wide else "below"
    return f"What is {side} the {reference}?", str(answer), scene


def _further(scene: Scene, asked: str, most: int, draw: random.Random) -> Iterator[tuple[str, str]]:
    """Yields up to `most` other questions about a scene, with their answers.

    A kind of question is drawn first, then one of its answers. Few scenes have two or three of anything, so these
    answers are preferred: otherwise nearly every number would be zero or one.
    """
    kinds = [[pair for pair in pairs if pair[0] != asked] for pairs in _askable(scene)]
    for _ in range(most):
        kinds = [pairs for pairs in kinds if pairs]
        if not kinds:
            return
        pairs = draw.choice(kinds)
        answers = sorted({answer for _, answer in pairs})
        (answer,) = draw.choices(answers, [4 if answer in NUMBERS[2:] else 1 for answer in answers])
        pair = draw.choice([pair for pair in pairs if pair[1] == answer])
        pairs.remove(pair)
        yield pair


def _askable(scene: Scene) -> list[list[tuple[str, str]]]:
    """Returns all questions that have one answer in a scene, with the answer, for each kind of question."""
    shapes = scene.shapes
    colours, kinds = ([getattr(shape, part) for shape in shapes] for part in ("colour", "kind"))
    neighbours = []
    for at, shape in enumerate(shapes):
        # Of several shapes on a side, none is the answer.
        sides = (scene.relation, shapes[:at]), ("right of" if scene.wide else "below", shapes[at + 1 :])
        neighbours += [(f"What is {side} the {shape}?", str(there[0])) for side, there in sides if len(there) == 1]
    return [
        [(colour_question(shape.kind), shape.colour) for shape in shapes if kinds.count(shape.kind) == 1],
        [(kind_question(shape.colour), shape.kind) for shape in shapes if colours.count(shape.colour) == 1],
        [(TOTAL_QUESTION, NUMBERS[len(shapes)])],
        [(number_question(what), NUMBERS[[*colours, *kinds].count(what)]) for what in (*COLOURS, *KINDS)],
        neighbours,
    ]


def colour_question(kind: str) -> str:
    """Returns the question for the colour of the only shape of a kind."""
    return f"What colour is the {kind}?"


def kind_question(colour: str) -> str:
    """Returns the question for the kind of the only shape of a colour."""
    return f"What shape is the {colour} one?"


def number_question(what: str) -> str:
    """Returns the question for the number of shapes of a colour or kind."""
    return f"How many {what} shapes are there?" if what in COLOURS else f"How many {what}s are there?"


def _some(shapes: Sequence[Shape], draw: random.Random, least: int, most: int) -> list[Shape]:
    return draw.sample(shapes, draw.randint(least, min(most, len(shapes))))


def _mixed(shapes: list[Shape], draw: random.Random) -> tuple[Shape, ...]:
    return tuple(draw.sample(shapes, len(shapes)))


def _render(scene: Scene, draw: random.Random, min_side: int, max_side: int) -> Image:
    """Draws every shape in its own stretch of the longer side, with a random size and place, clear of the next."""
    short = draw.randint(min_side, int(max_side / _LEAST_ASPECT))
    long = draw.randint(math.ceil(short * _LEAST_ASPECT), max_side)
    shade = draw.randint(200, 255)
    ground = tuple(min(255, shade + draw.randint(-8, 8)) for _ in range(3))
    image = PillowImage.new("RGB", (long, short) if scene.wide else (short, long), ground)
    canvas, stretch = ImageDraw.Draw(image), long / len(scene.shapes)
    for place, shape in enumerate(scene.shapes):
        radius = (min(stretch, short) / 2 - 1) * draw.uniform(0.75, 1)
        along = draw.uniform(place * stretch + radius + 1, (place + 1) * stretch - radius - 1)
        across = draw.uniform(radius, short - radius)
        colour = tuple(max(0, min(255, value + draw.randint(-12, 12))) for value in COLOURS[shape.colour])
        _draw(canvas, shape.kind, (along, across) if scene.wide else (across, along), radius, colour)
    return encode_png(image)


def _draw(
    canvas: ImageDraw.ImageDraw, kind: str, centre: tuple[float, float], radius: float, colour: tuple[int, ...]
) -> None:
    x, y = centre
    box = (x - radius, y - radius, x + radius - 1, y + radius - 1)
    if kind == "circle":
        canvas.ellipse(box, fill=colour)
    elif kind == "square":
        canvas.rectangle(box, fill=colour)
    else:
        canvas.polygon([(x, box[1]), (box[0], box[3]), (box[2], box[3])], fill=colour)
