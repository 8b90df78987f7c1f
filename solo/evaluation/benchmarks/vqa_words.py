"""Normal form of short answers: punctuation, number words, articles and contractions, as the EvalAI server of VQA does.

The harnesses differ, and so do the forms here. For TextVQA, lmms-eval separates possessives and drops commas and
question marks first. It removes every full stop that no digit follows; VLMEvalKit only one without a digit on either
side.
"""

from __future__ import annotations

import re
import string

UNPUNCTUATED = str.maketrans("", "", string.punctuation)
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_COMMAS_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
_STOP = re.compile(r"\.(?!\d)")
_STOP_BESIDE_NO_DIGIT = re.compile(r"(?<!\d)\.(?!\d)")
_MOST_STOPS = 32  # both pass re.UNICODE, which is 32, where re.sub takes the number of replacements
_ARTICLES = ("a", "an", "the")
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}

_CONTRACTED = """
    'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've
    must've mustn't needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's
    there'd there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""


def _misspelt(word: str) -> list[str]:
    """Returns a contraction with each one of its apostrophes left out."""
    return [word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'"]


# The table has no entry for "lets" and "shes", and one entry the wrong way round. Its keys with capitals never match.
_CONTRACTIONS = {wrong: word for word in _CONTRACTED.split() for wrong in _misspelt(word)} | {"somebody'd": "somebodyd"}


def lmms_eval_form(text: str) -> str:
    """Returns the form in which lmms-eval compares answers of TextVQA: that of the EvalAI server, as in MMF."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return plain_form(text)


def plain_form(text: str) -> str:
    """Returns the form in which lmms-eval compares answers of VQAv2."""
    return _words(_without_punctuation(_line(text), _COMMAS_IN_NUMBER, _STOP))


def vlmevalkit_form(text: str) -> str:
    """Returns the form in which VLMEvalKit compares answers of TextVQA: that of the first VQA challenge."""
    return _words(without_punctuation(_line(text)))


def without_punctuation(text: str) -> str:
    """Returns a text without punctuation, as VLMEvalKit does before it looks for words."""
    return _without_punctuation(text, _COMMA_IN_NUMBER, _STOP_BESIDE_NO_DIGIT)


def _line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(text: str, comma: re.Pattern[str], stop: re.Pattern[str]) -> str:
    """Removes punctuation.

    A sign disappears if it stands beside a space anywhere in the text, or if a number has a comma in it. Otherwise a
    space takes its place.
    """
    found = text
    joins = comma.search(text) is not None
    for sign in _PUNCTUATION:
        found = found.replace(sign, "" if joins or f"{sign} " in text or f" {sign}" in text else " ")
    return stop.sub("", found, count=_MOST_STOPS)


def _words(text: str) -> str:
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
