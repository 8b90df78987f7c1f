"""Worked cases of short answers. Expected values are those of the harnesses' own functions."""

import pytest

from solo.evaluation.benchmarks import short_answers, vqa_words
from solo.evaluation.benchmarks.item import Item


def score(judge, answer, *references, **labels):
    return judge(Item("1", (), "", references, labels=labels), answer).score


@pytest.mark.parametrize(
    ("text", "mmf", "plain", "vlmevalkit"),
    [
        ("A Dog", "dog", "dog", "dog"),
        ("Two  dogs", "2 dogs", "2 dogs", "2 dogs"),
        ("none", "0", "0", "0"),
        ("dont", "don't", "don't", "don't"),  # contractions
        ("couldnt've", "couldn't've", "couldn't've", "couldn't've"),
        ("she's", "she 's", "she's", "she's"),  # MMF separates possessives first
        ("lets", "lets", "lets", "lets"),  # not in the table, as "shes" and "Im"
        ("Im", "im", "im", "im"),
        ("somebody'd", "somebodyd", "somebodyd", "somebodyd"),  # the table has it the wrong way round
        ("10,000", "10000", "10000", "10000"),
        ("yes, sir", "yes sir", "yes sir", "yes sir"),
        ("red/green", "red green", "red green", "red green"),  # between letters: a space
        ("red / green", "red green", "red green", "red green"),
        ("red/green 1,000", "red green 1000", "redgreen 1000", "redgreen 1000"),  # a comma in a number joins everything
        ("No. 5", "no 5", "no 5", "no 5"),
        ("5.", "5", "5", "5."),  # VLMEvalKit keeps a stop behind a digit
        ("2.5", "2.5", "2.5", "2.5"),
        ("u.s.a.", "usa", "usa", "usa"),
        ("." * 40, "." * 8, "." * 8, "." * 8),  # 32 stops at most
        ("what?", "what", "what", "what"),
        ("line\nbreak\ttab", "line break tab", "line break tab", "line break tab"),
        ("the", "", "", ""),
    ],
)
def test_forms_of_vqa_answers(text, mmf, plain, vlmevalkit) -> None:
    assert vqa_words.lmms_eval_form(text) == mmf
    assert vqa_words.plain_form(text) == plain
    assert vqa_words.vlmevalkit_form(text) == vlmevalkit


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_accuracy_leaves_each_annotator_out(agreeing, expected) -> None:
    references = ["dont"] * agreeing + ["a cat"] * (10 - agreeing)
    for judge in (short_answers.textvqa, short_answers.vqav2, short_answers.textvqa_vlmevalkit):
        assert score(judge, "Don't!", *references) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("Invoice 12", ["invoice 12"], 1),
        ("invoice  12 ", ["invoice 12"], 1),
        ("kitten", ["sitting"], 1 - 3 / 7),
        ("abc", ["abcdef"], 0.5),  # one half still counts
        ("ab", ["abcde"], 0),  # 0.4 does not
        ("abd", ["xyz", "abc"], 2 / 3),  # the nearest
        ("a          b", ["a c"], 1 - 1 / 12),  # raw lengths: 12 characters, though "a b" is compared
        ("", ["a"], 0),
    ],
)
def test_anls(answer, references, expected) -> None:
    assert score(short_answers.anls, answer, *references) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "reference", "lmms_eval", "vlmevalkit"),
    [
        ("105", "100", 1, 1),
        ("95", "100", 1, 1),
        ("105.01", "100", 0, 0),
        ("-100", "100", 0, 0),
        ("5%", "0.05", 1, 1),
        ("5", "5%", 0, 0),  # 5 is not 0.05
        ("0", "0", 1, 1),  # a reference of 0 is text
        ("0.0", "0", 0, 0),
        ("0.001", "0", 0, 0),
        ("0%", "0", 0, 0),
        ("Yes", "yes", 1, 1),
        ("yes.", "yes", 0, 0),
        ("1,000", "1000", 0, 0),  # not a number
        (" Yes", "yes", 0, 1),  # VLMEvalKit strips first
        (" 100 ", "100", 1, 1),  # a number may have space around it
        ("100 % ", "100", 0, 0),
        ("2018", "2020", 1, 1),  # years are numbers
        ("", "0", 0, 0),
    ],
)
def test_relaxed_accuracy(answer, reference, lmms_eval, vlmevalkit) -> None:
    assert score(short_answers.relaxed, answer, reference) == lmms_eval
    assert score(short_answers.relaxed_stripped, answer, reference) == vlmevalkit


@pytest.mark.parametrize(
    ("answer", "reference", "lmms_eval", "vlmevalkit"),
    [
        ("Dining table.", "dining table", 1, 0),
        (" left ", "left", 1, 1),
        ("t-shirt", "tshirt", 1, 0),
        ("the left", "left", 0, 0),
        ("dining  table", "dining table", 0, 0),
    ],
)
def test_exact_match_of_gqa(answer, reference, lmms_eval, vlmevalkit) -> None:
    assert score(short_answers.exact, answer, reference) == lmms_eval
    assert score(short_answers.exact_case, answer, reference) == vlmevalkit


FORMULA = "Handwritten Mathematical Expression Recognition"


@pytest.mark.parametrize(
    ("answer", "references", "labels", "expected"),
    [
        ("The word is CENTRE.", ["centre"], {}, 1),
        ("two\nlines", ["Two lines"], {}, 1),
        ("two  lines", ["two lines"], {}, 0),
        ("x ^ { 2 }", ["x^{2}"], {"dataset": "HME100k"}, 1),  # without spaces
        ("x ^ { 2 }", ["x^{2}"], {"category": FORMULA}, 1),
        ("X ^ { 2 }", ["x^{2}"], {"dataset": "HME100k"}, 0),  # with case
        ("x ^ { 2 }", ["x^{2}"], {"dataset": "SROIE"}, 0),
        ("no", ["yes", "no"], {}, 1),
        ("anything", ["", "something"], {}, 0),  # an empty reference would be in every answer
        ("", ["a"], {}, 0),
    ],
)
def test_ocrbench(answer, references, labels, expected) -> None:
    for judge in (short_answers.contained, short_answers.contained_as_is):
        assert score(judge, answer, *references, **labels) == expected


def test_lmms_eval_folds_full_width_characters() -> None:
    assert score(short_answers.contained, "ＡＢＣ　１", "abc 1") == 1
    assert score(short_answers.contained_as_is, "ＡＢＣ　１", "abc 1") == 0
