"""CIDEr of captions, by pycocoevalcap: the code of the COCO caption challenge, which both harnesses use."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.util import find_spec

from solo.config import ConfigError
from solo.evaluation.benchmarks.item import Question, Scored

Pairs = Sequence[tuple[Question, str]]
Texts = dict[str, list[str]]  # captions by key of the question


def cider(answers: Pairs) -> list[Scored]:
    """CIDEr of the COCO caption challenge, as lmms-eval computes it. Its tokenizer is a Java program.

    Raises:
        ConfigError: pycocoevalcap or Java is not installed.
    """
    _check_installed()
    if shutil.which("java") is None:
        raise ConfigError(
            "benchmark 'coco_captions': the tokenizer of the COCO caption challenge is a Java program; install a Java"
            " runtime, or take coco_captions_vlmevalkit, which splits captions at white space"
        )
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    def words(texts: Texts) -> Texts:
        captions = {key: [{"caption": " ".join(text.split())} for text in of] for key, of in texts.items()}
        return dict(PTBTokenizer().tokenize(captions))

    references, given = _texts(answers)
    return _scored(answers, words(references), words(given))


def cider_of_words(answers: Pairs) -> list[Scored]:
    """CIDEr as VLMEvalKit computes it: captions are split at white space, and case and punctuation count.

    Raises:
        ConfigError: pycocoevalcap is not installed.
    """
    _check_installed()
    return _scored(answers, *_texts(answers))


def _texts(answers: Pairs) -> tuple[Texts, Texts]:
    references = {question.key: list(question.item.references) for question, _ in answers}
    return references, {question.key: [answer] for question, answer in answers}


def _scored(answers: Pairs, references: Texts, given: Texts) -> list[Scored]:
    from pycocoevalcap.cider.cider import Cider

    _, scores = Cider().compute_score(references, given)
    found = dict(zip(references, scores, strict=True))
    return [
        Scored(question.key, answer, given[question.key][0], float(found[question.key])) for question, answer in answers
    ]


def _check_installed() -> None:
    if find_spec("pycocoevalcap") is None:
        raise ConfigError("CIDEr needs pycocoevalcap: install solo-vlm[captions]")
