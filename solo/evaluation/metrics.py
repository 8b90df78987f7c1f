"""Metrics that compare answers with references. Scores are in percent."""

from __future__ import annotations

from collections.abc import Sequence


def collapsed(text: str) -> str:
    """Returns the text stripped, with every run of white space replaced by one space."""
    return " ".join(text.split())


def is_match(answer: str, reference: str) -> bool:
    """Returns whether both texts are equal up to white space. Case and punctuation matter."""
    return collapsed(answer) == collapsed(reference)


def exact_match(answers: Sequence[str], references: Sequence[str]) -> float:
    """Returns the percentage of answers that match their reference (`is_match`). Raises ValueError without answers."""
    pairs = _pairs(answers, references)
    return 100 * sum(is_match(answer, reference) for answer, reference in pairs) / len(pairs)


def character_error_rate(answers: Sequence[str], references: Sequence[str]) -> float:
    """Returns the number of edits that turn the answers into the references, in percent of the references' characters.

    The rate may exceed 100. Edits and characters are summed over all examples, so long examples have more weight. Both
    texts are normalised with `collapsed` first.

    Raises:
        ValueError: there are no answers, or all references are empty.
    """
    pairs = [(collapsed(answer), collapsed(reference)) for answer, reference in _pairs(answers, references)]
    length = sum(len(reference) for _, reference in pairs)
    if not length:
        raise ValueError("all references are empty: the error rate is undefined")
    return 100 * sum(edit_distance(answer, reference) for answer, reference in pairs) / length


def edit_distance(first: str, second: str) -> int:
    """Returns the Levenshtein distance: the fewest insertions, deletions and replacements of characters (1966)."""
    above = list(range(len(second) + 1))
    for row, left in enumerate(first, start=1):
        current = [row]
        for column, right in enumerate(second, start=1):
            current.append(min(above[column] + 1, current[-1] + 1, above[column - 1] + (left != right)))
        above = current
    return above[-1]


def _pairs(answers: Sequence[str], references: Sequence[str]) -> list[tuple[str, str]]:
    if not answers:
        raise ValueError("there are no answers to score")
    return list(zip(answers, references, strict=True))
