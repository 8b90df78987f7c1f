import pytest
from hypothesis import given
from hypothesis import strategies as st

from solo.evaluation.metrics import character_error_rate, edit_distance, exact_match, is_match

WORD = st.text("ab ", max_size=8)


def test_white_space_is_all_that_may_differ() -> None:
    assert is_match("  a  red\ncircle ", "a red circle")
    assert not is_match("A red circle", "a red circle")
    assert not is_match("a red circle.", "a red circle")
    assert not is_match("", "a")


def test_exact_match_is_the_percentage_of_matches() -> None:
    assert exact_match(["one", "two ", "3", ""], ["one", "two", "three", "four"]) == 50.0


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("ab", "ba", 2), ("abcd", "bcd", 1)],
)
def test_known_edit_distances(first, second, distance) -> None:
    assert edit_distance(first, second) == distance


@given(WORD, WORD, WORD)
def test_edit_distance_is_a_metric(a, b, c) -> None:
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, b) == edit_distance(b, a)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


def test_character_error_rate_is_over_all_characters() -> None:
    assert character_error_rate(["abcdefgx", "y"], ["abcdefgh", "z"]) == pytest.approx(100 * 2 / 9)
    assert character_error_rate(["a  b"], ["a b"]) == 0
    assert character_error_rate(["far too long"], ["far"]) == 300.0
    assert character_error_rate(["", "ab"], ["", "ab"]) == 0


def test_what_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="no answer"):
        exact_match([], [])
    with pytest.raises(ValueError, match="references are empty"):
        character_error_rate(["a"], [" "])
    with pytest.raises(ValueError, match="zip"):
        exact_match(["a"], ["a", "b"])
