"""Prompts for items. Each function returns the prompt of one harness's convention."""

from __future__ import annotations

import re
from collections.abc import Callable

from solo.data.record import Image, Turn
from solo.evaluation.benchmarks.item import Item

Prompt = Callable[[Item], tuple[Turn, ...]]

PHRASE = "\nAnswer the question using a single word or phrase."
WORD = "\nAnswer the question with a single word."
LETTER = "\nAnswer with the option's letter from the given choices directly."

MARKER = re.compile(r"<image (\d+)>")
"""The place of an image in a text of MMMU, counted from 1."""

_YES_OR_NO = " Please answer yes or no."


def user(item: Item, text: str) -> tuple[Turn, ...]:
    """Returns one user turn: every image on a line of its own, then the text."""
    lines = [part for image in item.images for part in (image, "\n")]
    return (Turn("user", (*lines, text)),)


def interleaved(item: Item, text: str) -> tuple[Turn, ...]:
    """Returns one user turn with each image where its marker stands; before the text if there are no markers."""
    pieces = MARKER.split(text)
    if len(pieces) == 1:
        return user(item, text)
    content: list[str | Image] = []
    for place, piece in enumerate(pieces):
        if place % 2:
            content.append(item.images[int(piece) - 1])
        elif piece:
            content.append(piece)
    return (Turn("user", tuple(content)),)


def options(item: Item) -> str:
    """Returns a line per option: `A. text`."""
    return "\n".join(f"{letter}. {text}" for letter, text in item.options.items())


def question(suffix: str = "", change: Callable[[str], str] = str) -> Prompt:
    """Returns a prompt of the question, changed, its options if it has any, and a suffix."""

    def ask(item: Item) -> tuple[Turn, ...]:
        listed = f"\n{options(item)}" if item.options else ""
        return user(item, change(item.question) + listed + suffix)

    return ask


def without_request(question: str) -> str:
    """Returns a question of MME or MMStar as lmms-eval asks it: without its own request for a yes or a no."""
    return question.strip().replace(_YES_OR_NO, "")


def scienceqa(item: Item) -> tuple[Turn, ...]:
    """lmms-eval's prompt of ScienceQA: the hint is a context."""
    context = f"Context: {item.hint}\n" if item.hint else ""
    return user(item, f"{context}{item.question}\n{options(item)}{LETTER}")


def mmmu(item: Item) -> tuple[Turn, ...]:
    """lmms-eval's prompt of MMMU."""
    return interleaved(item, f"{item.question}\n{options(item)}\n{LETTER}")


def vlmevalkit_choice(item: Item) -> tuple[Turn, ...]:
    """VLMEvalKit's prompt of multiple choice."""
    return user(item, _vlmevalkit(item))


def vlmevalkit_mmmu(item: Item) -> tuple[Turn, ...]:
    """VLMEvalKit's prompt of MMMU: that of multiple choice, with the images in the text."""
    return interleaved(item, _vlmevalkit(item))


def _vlmevalkit(item: Item) -> str:
    hint = f"Hint: {item.hint}\n" if item.hint else ""
    asked = f"{hint}Question: {item.question}\n"
    if not item.options:
        return asked
    return f"{asked}Options:\n{options(item)}\nPlease select the correct answer from the options above. \n"
