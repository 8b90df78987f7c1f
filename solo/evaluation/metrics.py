"""How well answers agree with references. Scores are in percent."""

from __future__ import annotations

from collections.abc import Sequence


def collapsed(text: str) -> str:
    """The text without space around it, every run of white space in it one space."""
    return " ".join(text.split())


def is_match(answer: str, reference: str) -> bool:
    """Whether both read the same but for white space. Case and punctuation count."""
    return collapsed(answer) == collapsed(reference)


def exact_match(answers: Sequence[str], references: Sequence[str]) -> float:
    """Percentage of answers that match their reference (`is_match`). Raises ValueError where there is none."""
    pairs = _pairs(answers, references)
    return 100 * sum(is_match(answer, reference) for answer, reference in pairs) / len(pairs)


def character_error_rate(answers: Sequence[str], references: Sequence[str]) -> float:
    """Edits that turn the answers into the references, in percent of the references' characters; may pass 100.

    A rate over all examples together, so that long ones weigh more. Both texts are `collapsed` first.

    Raises:
        ValueError: there is no answer, or all references are empty.
    """
    pairs = [(collapsed(answer), collapsed(reference)) for answer, reference in _pairs(answers, references)]
    length = sum(len(reference) for _, reference in pairs)
    if not length:
        raise ValueError("all references are empty: there is no error rate")
    return 100 * sum(edit_distance(answer, reference) for answer, reference in pairs) / length


def edit_distance(first: str, second: str) -> int:
    """Least number of characters to insert, delete or replace to turn one text into the other (Levenshtein 1966)."""
    above = list(range(len(second) + 1))
    for row, left in enumerate(first, start=1):
        current = [row]
        for column, right in enumerate(second, start=1):
            current.append(min(above[column] + 1, current[-1] + 1, above[column - 1] + (left != right)))
        above = current
    return above[-1]


def _pairs(answers: Sequence[str], references: Sequence[str]) -> list[tuple[str, str]]:
    if not answers:
        raise ValueError("there is no answer to score")
    return list(zip(answers, references, strict=True))
