"""Files that appear whole or not at all."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from solo.files import write_whole


def test_the_folder_is_made_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_whole(tmp_path / "new" / "file.txt", "naïve\n")
    write_whole(tmp_path / "new" / "file.txt", "more\n")
    assert (tmp_path / "new" / "file.txt").read_bytes() == b"more\n"
    assert os.listdir(tmp_path / "new") == ["file.txt"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("before")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "after, with half a character: \ud800")
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_many_writers_at_once_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    contents = [letter * 100_000 for letter in "abcd"]
    write_whole(path, contents[0])

    def write(content: str) -> None:
        for _ in range(25):
            write_whole(path, content)
            assert path.read_text() in contents

    with ThreadPoolExecutor(len(contents)) as pool:
        list(pool.map(write, contents))
    assert os.listdir(tmp_path) == ["file.txt"]
