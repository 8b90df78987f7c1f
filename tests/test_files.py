"""Files that appear whole or not at all."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from solo.files import (
    COMMIT_MARKER,
    JsonLinesFile,
    append_json_line,
    complete_checkpoints,
    read_json_lines,
    write_whole,
)


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


def test_json_lines_follow_on_a_line_cut_short_and_damage_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert read_json_lines(path) == ([], 0)
    append_json_line(path, {"id": "é\n\ud800"})
    with path.open("ab") as file:
        file.write(b'\x00\x00\n[1]\n{"id": "cut sh')
    lines = JsonLinesFile(path)
    lines.write({"id": 2})
    lines.sync()
    lines.write({"id": 3})
    assert read_json_lines(path) == ([{"id": "é\n\ud800"}, {"id": 2}, {"id": 3}], 3)
    lines.close()


def test_a_line_appended_after_one_cut_short_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"b": ')
    append_json_line(path, {"c": 3})
    append_json_line(path, {"d": 4})
    assert read_json_lines(path) == ([{"a": 1}, {"c": 3}, {"d": 4}], 1)


def test_a_full_disk_is_an_error_that_names_the_file() -> None:
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
        append_json_line(Path("/dev/full"), {"a": 1})


def test_only_folders_named_by_a_step_are_checkpoints(tmp_path: Path) -> None:
    for name in ("10", "9", "9.bak", "best", "11"):
        (tmp_path / name).mkdir()
        if name != "11":
            (tmp_path / name / COMMIT_MARKER).touch()
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["9", "10"]
