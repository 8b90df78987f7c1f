"""The parts of a benchmark: items, questions to a model about them, and judged answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from solo.data.record import Image, Place, Turn

SEVERAL = "|"
"""Joins the values of a label that an item has several of."""

Convention = Literal["lmms-eval", "VLMEvalKit"]


@dataclass(frozen=True)
class Item:
    """An item of a benchmark.

    id          unique within the benchmark
    images      encoded; decoded when they are needed
    question    as the file has it
    references  the right answers, at least one; the letter of a multiple-choice item
    options     texts of the options by letter, in order; empty for an open question
    labels      labels that scores are grouped by, such as category or split. Several values are joined by `|`
    hint        a text to read before the question
    variants    the same item with its options in other orders, if the file has them (circular evaluation)
    place       the file and row of the item
    """

    id: str
    images: tuple[Image, ...]
    question: str
    references: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    hint: str = ""
    variants: tuple[Item, ...] = ()
    place: Place | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Question:
    """A single question to a model.

    item    the item as it is asked: its options are rotated, if the benchmark is circular
    prompt  the conversation that the model continues
    key     unique within the benchmark: the item's id, with `#1`, `#2`, ... for the further rotations
    """

    item: Item
    prompt: tuple[Turn, ...]
    key: str


@dataclass(frozen=True)
class Scored:
    """A judged answer.

    key        of its question
    answer     as the model wrote it
    extracted  what was compared with the references; None if nothing was found in the answer
    score      from 0 (wrong) to 1 (right); that of a caption may exceed 1
    guessed    whether `extracted` was drawn at random, as some conventions demand when nothing was found
    """

    key: str
    answer: str
    extracted: str | None
    score: float
    guessed: bool = False


class Verdict(NamedTuple):
    """A judgement; see `Scored`."""

    extracted: str | None
    score: float
    guessed: bool = False


class Judged(NamedTuple):
    """An item with the judged answer to each of its questions, in their order."""

    item: Item
    answers: tuple[Scored, ...]
