"""Judges of short answers. Each returns what it compared, and a score from 0 to 1."""

from __future__ import annotations

from collections.abc import Callable

from solo.evaluation.benchmarks.item import Item, Verdict
from solo.evaluation.benchmarks.vqa_words import UNPUNCTUATED, lmms_eval_form, plain_form, vlmevalkit_form
from solo.evaluation.metrics import collapsed, edit_distance

_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
_FORMULAS = ("HME100k", "Handwritten Mathematical Expression Recognition")


def exact(item: Item, answer: str) -> Verdict:
    """lmms-eval's exact match of GQA: equal to the reference but for case and punctuation."""
    given = _bare(answer.strip())
    return Verdict(given, float(any(given == _bare(reference) for reference in item.references)))


def exact_case(item: Item, answer: str) -> Verdict:
    """VLMEvalKit's exact match of GQA: equal to a reference but for case and white space around."""
    given = answer.strip().lower()
    return Verdict(given, float(any(given == reference.strip().lower() for reference in item.references)))


def vqa_accuracy(form: Callable[[str], str]) -> Callable[[Item, str], Verdict]:
    """Returns the judge of VQA accuracy, which compares the `form` of an answer with those of ten annotators.

    An annotator's answer is left out in turn, and the score is the mean of min(1, equal ones among the others / 3).
    """

    def judge(item: Item, answer: str) -> Verdict:
        given = form(answer)
        equal = [form(reference) == given for reference in item.references]
        agreeing = sum(equal)
        return Verdict(given, sum(min(1.0, (agreeing - own) / 3) for own in equal) / len(equal))

    return judge


textvqa = vqa_accuracy(lmms_eval_form)
vqav2 = vqa_accuracy(plain_form)
textvqa_vlmevalkit = vqa_accuracy(vlmevalkit_form)


def anls(item: Item, answer: str) -> Verdict:
    """Average normalised Levenshtein similarity of DocVQA and InfographicVQA; below one half it counts as 0.

    Both harnesses take the distance between texts in lower case with single spaces, and divide it by the length of
    the longer text as it was written.
    """
    answer = answer.strip()
    given = collapsed(answer).lower()
    nearest = 1.0
    for reference in item.references:
        length = max(len(reference.upper()), len(answer.upper()))
        distance = edit_distance(given, collapsed(reference).lower())
        nearest = min(nearest, distance / length if length else 0.0)
    return Verdict(given, 1 - nearest if 1 - nearest >= 0.5 else 0.0)


def relaxed(item: Item, answer: str) -> Verdict:
    """lmms-eval's relaxed accuracy of ChartQA: within 5% of a number, else equal but for case.

    `12%` is 0.12. A reference of 0 is compared as text. White space around a word counts, as in lmms-eval.
    """
    return Verdict(answer, float(any(_close(answer, reference) for reference in item.references)))


def relaxed_stripped(item: Item, answer: str) -> Verdict:
    """VLMEvalKit's relaxed accuracy of ChartQA: as lmms-eval's, but the answer is stripped first."""
    return relaxed(item, answer.strip())


def contained(item: Item, answer: str) -> Verdict:
    """lmms-eval's rule of OCRBench: a reference occurs in the answer. Formulas are compared without spaces."""
    return _contained(item, answer, lambda text: text.translate(_HALF_WIDTH))


def contained_as_is(item: Item, answer: str) -> Verdict:
    """VLMEvalKit's rule of OCRBench: as lmms-eval's, but full-width characters differ from half-width ones."""
    return _contained(item, answer, lambda text: text)


def _contained(item: Item, answer: str, fold: Callable[[str], str]) -> Verdict:
    if item.labels.get("dataset") in _FORMULAS or item.labels.get("category") in _FORMULAS:

        def form(text: str) -> str:
            return text.strip().replace("\n", " ").replace(" ", "")
    else:

        def form(text: str) -> str:
            return fold(text).lower().strip().replace("\n", " ")

    given = form(answer.strip())
    # An empty text occurs in every answer.
    return Verdict(given, float(any(form(reference) in given for reference in item.references if reference.strip())))


def _bare(text: str) -> str:
    return text.lower().translate(UNPUNCTUATED)


def _close(answer: str, reference: str) -> bool:
    given, right = _number(answer), _number(reference)
    if given is None or not right:
        return answer.lower() == reference.lower()
    return abs(given - right) / abs(right) <= 0.05


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
