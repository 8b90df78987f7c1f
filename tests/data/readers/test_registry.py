"""Options of readers, and errors."""

import re

import pytest

from solo.config import ConfigError
from solo.data.readers import read, reader


@pytest.mark.parametrize(
    ("name", "options", "limit", "message"),
    [
        ("scens", {}, 1, r"no reader 'scens'; did you mean 'scenes'\?"),
        ("zzz", {}, 1, r"no reader 'zzz'; readers: \['digits', "),
        ("scenes", {}, None, r"'scenes' never ends: set `limit`"),
        ("scenes", {"min_sid": 3}, 1, r"'scenes': unknown option 'min_sid'; did you mean 'min_side'\?"),
        ("topics", {"zzz": 3}, 1, r"unknown option 'zzz'; options: \['split', "),
        ("scenes", {"min_side": "32"}, 1, r"option 'min_side': .*integer; found \"32\""),
        ("digits", {"split": "test"}, 1, r"option 'split': .*'train' or 'held_out'"),
        ("digits", {"sizes": [24, 2.5]}, 1, r"option 'sizes.1': .*integer"),
        ("llava", {}, None, r"option 'path' is missing"),
    ],
)
def test_faults_are_found_before_reading(name, options, limit, message):
    with pytest.raises(ConfigError, match=message):
        read(name, options, limit)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("scenes", {"min_side": 60, "max_side": 64}, "max_side 64 is not at least 1.25 times min_side 60"),
        ("scenes", {"max_shapes": 9}, "max_shapes 9 is not within 1 to 6"),
        ("lines", {"min_characters": 9, "max_characters": 5}, "found 9 and 5"),
        ("folder", {"path": "/nowhere"}, "/nowhere is not a folder"),
        ("folder", {"path": "/", "template": "it"}, "lacks {name}"),
        ("llava", {"path": "/nowhere.jsonl"}, "/nowhere.jsonl does not exist"),
    ],
)
def test_faults_are_found_on_reading(name, options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        next(read(name, options, 1))


def test_two_readers_cannot_share_a_name():
    with pytest.raises(ValueError, match="two readers named 'digits'"):
        reader("digits")(lambda: iter(()))
