"""Judges of multiple-choice and yes/no answers. Each returns the letter or word that it found, and 1 or 0."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

from solo.evaluation.benchmarks.item import Item, Verdict
from solo.evaluation.benchmarks.vqa_words import UNPUNCTUATED, without_punctuation

_LETTERS = ("A", "B", "C", "D")


def compared(found: str | None, item: Item, guessed: bool = False) -> Verdict:
    """Returns the verdict on a letter or word that was found in an answer: right if it is the reference."""
    return Verdict(found, float(found is not None and found.lower() == item.references[0].strip().lower()), guessed)


# ------------------------------------------------------------------------------------------ yes or no


def pope(item: Item, answer: str) -> Verdict:
    """lmms-eval's rule of POPE: the whole answer is `yes` or `no`, in any case. "Yes." is neither."""
    given = answer.lower().strip()
    return compared(given if given in ("yes", "no") else None, item)


def mme(item: Item, answer: str) -> Verdict:
    """lmms-eval's rule of MME: `yes`, else `no`, within the first four characters, without full stops."""
    given = answer.lower().strip().replace(".", "")
    if len(given) == 1:
        return compared({"y": "yes", "n": "no"}.get(given), item)
    return compared(next((word for word in ("yes", "no") if word in given[:4]), None), item)


def yes_or_no(item: Item, answer: str) -> Verdict:
    """VLMEvalKit's rule of POPE and MME: one of the words `yes` and `no` occurs, and not the other."""
    words = without_punctuation(answer.lower()).split()
    found = [word for word in ("yes", "no") if word in words]
    return compared(found[0] if len(found) == 1 else None, item)


# --------------------------------------------------------------------------------- letters, lmms-eval


def scienceqa(item: Item, answer: str) -> Verdict:
    """lmms-eval's rule of ScienceQA, LLaVA's: the answer is the letter, or begins with it in upper case and a stop."""
    given = answer.strip()
    if len(given) >= 2 and given[0].isupper() and given[1] == ".":
        return compared(given[0], item)
    return compared(given if len(given) == 1 else None, item)


def ai2d(item: Item, answer: str) -> Verdict:
    """lmms-eval's rule of AI2D: a letter and a stop at the beginning, else the answer but for case and punctuation."""
    found = re.match(r"\s*([A-Z])\.", answer)
    given = found[1] if found else answer.strip().translate(UNPUNCTUATED)
    return compared(given, item)


def first_character(item: Item, answer: str) -> Verdict:
    """lmms-eval's rule of SEED-Bench: the first character is the letter, in any case."""
    return compared(answer.strip()[:1] or None, item)


def ranked_letter(item: Item, answer: str) -> Verdict:
    """lmms-eval's rule of MMStar: the letter from A to D in the most explicit place; see `_ranked`."""
    return compared(_ranked(answer, _LETTERS), item)


def realworldqa(item: Item, answer: str) -> Verdict:
    """lmms-eval's rule of RealWorldQA: `ranked_letter`; a word or number is compared without case and stops."""
    if item.references[0].strip().upper() in _LETTERS:
        return ranked_letter(item, answer)
    return compared(answer.lower().strip().rstrip("."), item)


# In order of trust: how a letter is written, and where.
_WRITTEN: tuple[tuple[int, str], ...] = ((6, "({})"), (5, "{}."), (4, "{}:"), (3, "{})"), (2, "{} "))
_PHRASES = (
    *("the answer is", "answer is", "the correct answer is", "correct answer is", "the best answer is"),
    *("best answer is", "the correct option is", "correct option is", "the best option is", "best option is"),
    *("the choice is", "choice is", "the correct choice is", "correct choice is", "i choose", "i select", "i pick"),
    *("my answer is", "my choice is", "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)


def _ranked(answer: str, letters: Sequence[str]) -> str | None:
    """Returns the letter of the highest rank, and of several the last in the text.

    A letter at the beginning ranks highest, then at the end, after a phrase such as "the answer is", in brackets,
    before a stop, a colon, a closing bracket, and a space. A letter within a word counts only if nothing else is found.
    """
    text = answer.strip()
    for sign in ",.!?;:'\"":
        text = text.strip(sign)
    text = f" {text} "
    bare, lower = text.strip(), text.lower()
    found: list[tuple[int, int, str]] = []  # rank, place, letter
    for rank, written in _WRITTEN:
        found += [(rank, text.rfind(written.format(a)), a) for a in letters if written.format(a) in text]
    for phrase in _PHRASES:
        after = lower.find(phrase)
        if after >= 0:
            places = ((text.find(a, after + len(phrase)), a) for a in letters)
            found += [(7, place, a) for place, a in places if place >= 0]
    found += [(10, 0, a) for a in letters if bare.startswith(a) and not bare[1:2].isalpha()]
    found += [(9, len(text) - 1, a) for a in letters if bare.endswith(a) and not bare[-2:-1].isalpha()]
    found = found or [(0, text.rfind(a), a) for a in letters if a in text]
    return max(found, key=lambda one: one[:2])[2] if found else None


def mmmu(item: Item, answer: str) -> Verdict:
    """MMMU's own rule, which lmms-eval follows: the last letter in brackets, before a space or a stop, or option text.

    If nothing is found, one of the letters is drawn at random, as MMMU does. The draw depends on the item's id alone.
    """
    for sign in ",.!?;:'":
        answer = answer.strip(sign)
    text = f" {answer} "
    letters = list(item.options)
    # How a letter is written, and where it is looked for if there are several.
    for written, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        found = [letter for letter in letters if written.format(letter) in text]
        if found:
            return compared(_last(text, {letter: place.format(letter) for letter in found}), item)
    if len(text.split()) > 5:
        texts = {letter: option.lower() for letter, option in item.options.items() if option.lower() in text.lower()}
        if texts:
            return compared(_last(text.lower(), texts), item)
    drawn = int.from_bytes(hashlib.sha256(item.id.encode()).digest()[:8], "big") % len(letters)
    return compared(letters[drawn], item, guessed=True)


def _last(text: str, looked_for: Mapping[str, str]) -> str:
    """Returns the key of what occurs last in a text; the first key if nothing occurs."""
    return max(looked_for, key=lambda key: text.rfind(looked_for[key]))


# -------------------------------------------------------------------------------- letters, VLMEvalKit

_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_SPACED = {ord(sign): " " for sign in ".()[],:;!*#{}"}
_DECLARED = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)


def inferred(item: Item, answer: str) -> Verdict:
    """VLMEvalKit's rule of all multiple choice without a judge model: a letter, else the text of an option.

    "The answer is a dog" declares the letter A, as it does in VLMEvalKit.
    """
    letter = _inferred_letter(answer, item.options or dict.fromkeys(_LETTERS, ""))
    if letter is None:
        letter = _inferred_text(answer, item.options)
    return compared(letter, item)


def _inferred_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """Returns the only letter among the words, if it is among the last four; else a declared one. Z is a refusal."""
    if any(refusal in answer for refusal in _REFUSALS):
        return "Z"
    words = answer.translate(_SPACED).split()
    found = [letter for letter in options if letter in words]
    if len(found) == 1 and words.index(found[0]) > len(words) - 5:
        return found[0]
    if not found and "Z" in words:
        return "Z"
    declared = _DECLARED.search(answer)
    return declared[1].upper() if declared and declared[1].upper() in options else None


def _inferred_text(answer: str, options: Mapping[str, str]) -> str | None:
    """Returns the letter of the only option whose text occurs in an answer that is not much longer than the options."""
    answer = answer.lower()
    if len(answer) > 2 * sum(map(len, options.values())):
        return None
    found = [letter for letter, text in options.items() if text.lower() in answer]
    return found[0] if len(found) == 1 else None
