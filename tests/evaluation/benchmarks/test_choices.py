"""Worked cases of multiple choice and yes/no answers. Expected values are those of the harnesses' own functions."""

import pytest

from solo.evaluation.benchmarks import choices
from solo.evaluation.benchmarks.item import Item

OPTIONS = {"A": "a red kite", "B": "a blue boat", "C": "two dogs", "D": "None"}


def found(judge, answer, reference="B", options=OPTIONS):
    verdict = judge(Item("7", (), "What is it?", (reference,), options), answer)
    assert verdict.score == (verdict.extracted is not None and verdict.extracted.lower() == reference.lower())
    return verdict.extracted


@pytest.mark.parametrize(
    ("answer", "pope", "mme", "words"),
    [
        ("yes", "yes", "yes", "yes"),
        (" No\n", "no", "no", "no"),
        ("Yes.", None, "yes", "yes"),  # POPE compares whole answers
        ("yes, there is", None, "yes", "yes"),
        ("y", None, "yes", None),
        ("N.", None, "no", None),
        ("I say no", None, None, "no"),
        ("ok no", None, None, "no"),  # MME reads four characters
        ("not at all", None, "no", None),  # "no" begins "not"
        ("Know it? Yes", None, "no", "yes"),
        ("No. Yes.", None, "no", None),  # both words
        ("There is no cat, notice", None, None, "no"),
        ("yes/no", None, "yes", None),
        ("", None, None, None),
    ],
)
def test_yes_or_no(answer, pope, mme, words) -> None:
    for judge, expected in ((choices.pope, pope), (choices.mme, mme), (choices.yes_or_no, words)):
        assert found(judge, answer, "yes", {}) == expected


@pytest.mark.parametrize(
    ("answer", "scienceqa", "ai2d", "first"),
    [
        ("B", "B", "B", "B"),
        ("b", "b", "b", "b"),
        ("B. a blue boat", "B", "B", "B"),
        ("b. a blue boat", None, "b a blue boat", "b"),  # lower case before a stop
        (" (B)", None, "B", "("),  # brackets are punctuation in AI2D, and the first character in SEED-Bench
        ("B) boat", None, "B boat", "B"),
        ("Because", None, "Because", "B"),
        ("The answer is B.", None, "The answer is B", "T"),
        ("", None, "", None),
    ],
)
def test_letters_of_lmms_eval(answer, scienceqa, ai2d, first) -> None:
    for judge, expected in ((choices.scienceqa, scienceqa), (choices.ai2d, ai2d), (choices.first_character, first)):
        assert found(judge, answer) == expected


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("A or B", "A"),  # the beginning ranks above the end
        ("It could be A, but it is B", "B"),  # the end
        ("Not (D): the answer is C", "C"),
        ("The answer is C because of (A) here", "A"),  # all letters after a phrase are candidates, and the last wins
        ("Neither (A) nor (C) fits", "C"),  # the last of equal rank
        ("the answer is probably A or C, I think", "C"),  # the last after the phrase
        ("Option B: the boat", "B"),
        ("Cat", "C"),  # within a word, for want of anything else
        ("I think so", None),
        ("b", None),  # lower case
        ("", None),
    ],
)
def test_the_most_telling_letter(answer, letter) -> None:
    assert found(choices.ranked_letter, answer) == letter
    assert found(choices.realworldqa, answer) == letter


def test_realworldqa_compares_words_without_case_and_stops() -> None:
    assert choices.realworldqa(Item("1", (), "", ("Downhill",)), " downhill. ") == ("downhill", 1.0, False)
    assert choices.realworldqa(Item("1", (), "", ("3",)), "3 cars").score == 0


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(A) or rather (C)", "C"),  # the last in brackets
        ("(A) is wrong, so B", "A"),  # brackets come first
        ("Made in the USA for B", "B"),  # "A " within a word is a letter too, but " B " is later
        ("Made in the USA today", "A"),
        ("It shows, as I can see, a red kite", "A"),  # the text of an option, in an answer of more than five words
        ("It shows a red kite then two dogs then", "C"),
        ("none of these five words is", "D"),
    ],
)
def test_mmmu(answer, letter) -> None:
    verdict = choices.mmmu(Item("7", (), "", ("B",), OPTIONS), answer)
    assert verdict == (letter, float(letter == "B"), False)


def test_mmmu_draws_a_letter_if_it_finds_none() -> None:
    drawn = [choices.mmmu(Item(str(number), (), "", ("B",), OPTIONS), "no idea") for number in range(400)]
    assert all(verdict.guessed for verdict in drawn)
    counts = [sum(verdict.extracted == letter for verdict in drawn) for letter in "ABCD"]
    assert min(counts) > 70  # about 100 each
    assert sum(verdict.score for verdict in drawn) == counts[1]
    assert drawn == [choices.mmmu(Item(str(number), (), "", ("B",), OPTIONS), "no idea") for number in range(400)]
    assert choices.mmmu(Item("1", (), "", ("B",), OPTIONS), "it is a red kite").guessed  # five words or fewer


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B. a blue boat", "B"),
        ("b", None),  # lower case
        ("A or B", None),  # two letters
        ("A blue boat", "A"),  # the article is a letter
        ("B is one two", "B"),
        ("B is one two three", None),  # not among the last four words
        ("The answer is B. A kite has strings", "B"),  # declared
        ("The answer is a boat", "A"),  # VLMEvalKit's pattern ignores case, so the article declares A
        ("The correct answer is **C**. Here A is wrong", "C"),
        ("it is a blue boat", "B"),
        ("a blue boat or two dogs", None),  # two options
        (
            "I can see that it is a blue boat on a very wide and quite empty lake, far off the coast",
            None,
        ),  # too long
        ("Sorry, I can't help with images of people yet.", "Z"),
        ("Z", "Z"),
        ("", None),
    ],
)
def test_letters_of_vlmevalkit(answer, letter) -> None:
    assert found(choices.inferred, answer) == letter


def test_vlmevalkit_without_option_texts_knows_letters_alone() -> None:
    assert found(choices.inferred, "C", options={}) == "C"
    assert found(choices.inferred, "", options={}) is None
