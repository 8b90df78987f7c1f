from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage

from solo.config import ConfigError, FilterConfig, SourceConfig
from solo.data.filters import Filtered, Selection
from solo.data.filters.selection import is_held_out
from solo.data.record import Image, Record, Turn, encode_png

WIDE = encode_png(PillowImage.new("RGB", (60, 20)))


def chat(*texts: str, image: Image | None = None) -> Record:
    roles = ("user", "assistant")
    contents = [(image, text) if image and not number else (text,) for number, text in enumerate(texts)]
    return Record("r", tuple(Turn(roles[number % 2], content) for number, content in enumerate(contents)))


def select(record: Record, **settings):
    images = record.images()
    digests = [hashlib.blake2b(image.data, digest_size=16).digest() for image in images]
    return Selection(**settings).opened()(record, digests, [image.size() for image in images])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"min_side": 21}, "image 1, of 60 x 20 pixels, has a side of 20; min_side is 21"),
        ({"max_side": 59}, "image 1, of 60 x 20 pixels, has a side of 60; max_side is 59"),
        ({"min_pixels": 1201}, "image 1, of 60 x 20 pixels, has 1200 pixels; min_pixels is 1201"),
        ({"max_pixels": 1199}, "image 1, of 60 x 20 pixels, has 1200 pixels; max_pixels is 1199"),
        ({"max_aspect_ratio": 2.9}, "image 1, of 60 x 20 pixels, has sides of 3.00 to 1"),
        ({"min_file_bytes": 10_000}, f"has a file of {len(WIDE.data)} bytes; min_file_bytes is 10000"),
        ({"max_file_bytes": 10}, f"has a file of {len(WIDE.data)} bytes; max_file_bytes is 10"),
        ({"min_images": 2}, "it has 1 images; min_images is 2"),
        ({"max_images": 0}, "it has 1 images; max_images is 0"),
        ({"min_turns": 3}, "it has 2 turns; min_turns is 3"),
        ({"max_turns": 1}, "it has 2 turns; max_turns is 1"),
        ({"min_characters": 11}, "its text has 10 characters; min_characters is 11"),
        ({"max_characters": 9}, "its text has 10 characters; max_characters is 9"),
        ({"must_match": ("cat", r"d.g")}, "its text does not match 'd.g'"),
        ({"must_not_match": (r"a\s+cat",)}, r"its text matches 'a\\s+cat' with 'a cat'"),
    ],
)
def test_each_condition_leaves_out_what_it_names(settings, reason):
    record = chat("why?", "a cat", image=WIDE)
    found = select(record, filters=FilterConfig(**settings))
    assert isinstance(found, Filtered)
    assert found.key == next(iter(settings))
    assert reason in found.reason
    kept = {"min_side": 20, "max_side": 60, "min_pixels": 1200, "max_pixels": 1200, "max_aspect_ratio": 3.0}
    kept |= {"min_images": 1, "max_images": 1, "min_turns": 2, "max_turns": 2, "min_characters": 10}
    kept |= {"max_characters": 10, "must_match": ("cat",), "must_not_match": ("dog",)}
    assert select(record, filters=FilterConfig(**kept)) is record


def test_languages():
    pytest.importorskip("py3langid")
    filters = FilterConfig(languages=("de", "fr"))
    german, english = "Das ist ein Bild einer Katze auf dem Sofa.", "This is a picture of a cat on the sofa."
    assert isinstance(select(chat("?", german), filters=filters), Record)
    assert select(chat("?", english), filters=filters) == Filtered("languages", "its text is 'en'")
    assert isinstance(select(chat("?", "a cat"), filters=filters), Record), "too short to tell"
    with pytest.raises(ConfigError, match=r"filters\.languages: py3langid does not know xx"):
        Selection(FilterConfig(languages=("de", "xx"))).opened()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"filters": {"min_side": 9, "max_side": 8}}, "min_side 9 is above max_side 8"),
        ({"filters": {"must_match": ["("]}}, "'\\(' is not a regular expression"),
        ({"filters": {"max_aspect_ratio": 0.5}}, "max_aspect_ratio"),
        ({"held_out": 0.1}, "held_out and take go together"),
        ({"take": "train"}, "held_out and take go together"),
        ({"similar_bits": 2}, "similar_bits goes with"),
    ],
)
def test_settings_that_mean_nothing_are_refused(section, message):
    with pytest.raises(ValueError, match=message):
        SourceConfig.model_validate_json(json.dumps({"reader": "llava", **section}))


# ----------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("answer", ["", " \n\t", "\u3000", "\u200b\ufeff", "\0"])
def test_empty_answers(answer):
    record = chat("why?", "so", "and?", answer)
    with pytest.raises(ValueError, match=r"turn 4 is to be learned, but has no text \(empty_answers: set_aside\)"):
        select(record)
    assert select(record, empty_answers="learn") is record
    read = select(record, empty_answers="read")
    assert [turn.learned for turn in read.turns] == [True, True, True, False]
    assert [turn.content for turn in read.turns] == [turn.content for turn in record.turns]


def test_reading_empty_answers_leaves_other_turns_as_they_are():
    turns = (Turn("assistant", ("no",), learned=False), Turn("assistant", ("",)), Turn("assistant", ("\u200byes",)))
    read = select(Record("r", turns), empty_answers="read")
    assert [turn.learned for turn in read.turns] == [False, False, True]


def test_only_what_is_learned_needs_text():
    unlearned = Record("r", (Turn("user", (WIDE,)), Turn("assistant", ("",), learned=False), Turn("text", ("a",))))
    assert select(unlearned) is unlearned
    with pytest.raises(ValueError, match="turn 1"):
        select(Record("r", (Turn("text", (WIDE, "\n")),)))


# ---------------------------------------------------------------------------------------- held out


@given(st.lists(st.tuples(st.integers(0, 30), st.text(max_size=3)), max_size=20), st.sampled_from([0.01, 0.3, 0.9]))
def test_two_sources_divide_the_records_exactly(made, share):
    for picture, text in made:
        digests = [hashlib.blake2b(bytes([picture]), digest_size=16).digest()] if picture else []
        record = Record("r", (Turn("text", (*([Image(b"")] if picture else []), text)),))
        sides = [Selection(empty_answers="learn", held_out=share, take=take) for take in ("train", "held_out")]
        selectors = [side.opened() for side in sides]
        taken = [isinstance(one(record, digests, [(1, 1)] * len(digests)), Record) for one in selectors]
        assert sum(taken) == 1


def test_the_same_picture_or_text_is_on_one_side():
    def digest(number: int) -> bytes:
        return hashlib.blake2b(number.to_bytes(4, "big"), digest_size=16).digest()

    captions = [chat("?", "a"), chat("?", "b"), chat("!", "c")]
    sides = [[is_held_out(record, [digest(number)], 0.25) for record in captions] for number in range(2000)]
    assert all(len(set(side)) == 1 for side in sides)
    assert 0.22 < sum(side[0] for side in sides) / 2000 < 0.28
    assert is_held_out(captions[0], [digest(1), digest(2)], 0.5) == is_held_out(
        captions[1], [digest(2), digest(1)], 0.5
    )
    texts = [is_held_out(chat("?", f"text {number}"), [], 0.25) for number in range(2000)]
    assert texts == [is_held_out(chat("? ", f"text\n{number} "), [], 0.25) for number in range(2000)]
    assert 0.22 < sum(texts) / 2000 < 0.28
    larger = [is_held_out(chat("?", f"text {number}"), [], 0.5) for number in range(2000)]
    assert all(held <= more for held, more in zip(texts, larger, strict=True)), "a larger share holds the smaller"
