"""JSON files of every layout, encoding and compression, whole and damaged."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import re

import datasets
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from solo.config import ConfigError
from solo.data.readers import Unreadable, json_files
from solo.data.readers.json_scan import pieces


def read_all(path, size=3):
    """Returns what the parts of a file hold, in order."""
    parts = list(json_files.parts(str(path), size, "a test"))
    assert len({part.name for part in parts}) == len(parts)
    return [found for part in parts for found in json_files.elements(part)]


def values(path, size=3):
    found = read_all(path, size)
    assert not [example for example in found if isinstance(example, Unreadable)]
    return [value for _, value in found]


def nested(draw, depth=0):
    if depth > 3 or draw.random() < 0.4:
        return draw.choice(['a"b', "\\", '\\\\"', "é漢[{", "],", "x\n", 1, None, True, 2.5, "\\\\\\", '"', ""])
    if draw.random() < 0.5:
        return [nested(draw, depth + 1) for _ in range(draw.randint(0, 3))]
    return {f'{i}"\\{{': nested(draw, depth + 1) for i in range(draw.randint(0, 3))}


def test_elements_are_found_wherever_blocks_are_cut():
    draw = random.Random(0)
    for _ in range(400):
        wanted = [nested(draw) for _ in range(draw.randint(0, 5))]
        text = json.dumps(wanted, ensure_ascii=draw.random() < 0.5, indent=draw.choice([None, 1])).encode()[1:]
        length = draw.randint(1, 9)
        found = list(pieces([text[i : i + length] for i in range(0, len(text), length)], depth=1))
        assert [json.loads(piece) for kind, piece in found if kind == "element"] == wanted
        assert found[-1] == ("closed", b"")


LAYOUTS = {
    "list": lambda examples: json.dumps(examples),
    "pretty list": lambda examples: json.dumps(examples, indent=2),
    "lines": lambda examples: "\n".join(json.dumps(example, ensure_ascii=False) for example in examples),
    "lines of Windows": lambda examples: "\r\n".join(map(json.dumps, examples)) + "\r\n\r\n",
    "values": lambda examples: "\n".join(json.dumps(example, indent=2) for example in examples),
}
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
PACKERS = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".gz.misnamed": lambda data: gzip.compress(data[:20]) + gzip.compress(data[20:]),
    ".zst.frames": lambda data: zstandard.compress(data[:20]) + zstandard.compress(data[20:]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("packed", PACKERS)
def test_every_layout_encoding_and_compression(tmp_path, layout, encoding, packed):
    examples = [{"id": number, "text": 'é 漢 "[{\\'} for number in range(7)]
    path = tmp_path / f"data.JSON{packed}"
    path.write_bytes(PACKERS[packed](LAYOUTS[layout](examples).encode(encoding)))
    assert values(path) == examples


def test_files_of_other_libraries(tmp_path):
    examples = [{"id": str(number), "said": [{"text": f'é "{number}"'}]} for number in range(10)]
    datasets.Dataset.from_list(examples).to_json(tmp_path / "datasets.jsonl")
    pandas.DataFrame(examples).to_json(tmp_path / "pandas.json", orient="records", indent=1)
    pandas.DataFrame(examples).to_json(tmp_path / "lines.json.gz", orient="records", lines=True)
    for name in ("datasets.jsonl", "pandas.json", "lines.json.gz"):
        assert values(tmp_path / name) == examples


@pytest.mark.parametrize("layout", ["list", "pretty list", "lines", "values"])
@pytest.mark.parametrize("size", [1, 3, 4, 100])
def test_parts_are_read_apart_and_places_are_counted_in_the_file(tmp_path, layout, size):
    examples = [{"id": number, "text": "x" * number} for number in range(12)]
    path = tmp_path / "data.json"
    path.write_text(LAYOUTS[layout](examples))
    parts = list(json_files.parts(str(path), size, "a test"))
    assert len(parts) == -(-12 // size)
    assert [part.name for part in parts][:2] == [f"data.json:{i + 1}-{min(i + size, 12)}" for i in range(0, 12, size)][
        :2
    ]
    found = [[(place.line, value["id"]) for place, value in json_files.elements(part)] for part in reversed(parts)]
    assert [pair for part in reversed(found) for pair in part] == [(number + 1, number) for number in range(12)]


def test_long_examples_make_short_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files.spans, "__defaults__", (100,))
    path = tmp_path / "data.jsonl"
    lengths = [10, 10, 300, 10, 80, 80, 500, 500, 10]
    path.write_text("".join(json.dumps("x" * length) + "\n" for length in lengths))
    parts = list(json_files.parts(str(path), 4, "a test"))
    assert [part.name.split(":")[1] for part in parts] == ["1-2", "3-3", "4-5", "6-6", "7-7", "8-8", "9-9"]
    assert [len(value) for part in parts for _, value in json_files.elements(part)] == lengths


def reasons(path, size=2):
    return [found.reason if isinstance(found, Unreadable) else found[1] for found in read_all(path, size)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ["the file is empty"]),
        (b"\xef\xbb\xbf \n ", ["the file is empty"]),
        (b"[]", []),
        (b"[1, 2,]", [1, 2]),
        (b"[1,, 2]", [1, "there is nothing between two commas", 2]),
        (b'{"a": 1}\n{"a": \n{"a": 2}\n', [{"a": 1}, "it is not valid JSON: expecting value", {"a": 2}]),
        (b'{"a": 1}\n\n\n{"a": 2}', [{"a": 1}, {"a": 2}]),
        (b'{oops\n{"a": 2}', ["it is not valid JSON: expecting property name.*oops", {"a": 2}]),
        (b'{"a": 1},\n{"a": 2}', ["it is not valid JSON: extra data at character 9", {"a": 2}]),
        (b'{"a": 1} {"a": 2}', ["extra data"]),
        (b'{"a": "\xff"}\n{"a": 2}', ["it is not valid UTF-8: byte 0xff at position 7", {"a": 2}]),
        (b'[{"a": "\xff"}, {"a": 2}]', ["it is not valid UTF-8: byte 0xff", {"a": 2}]),
        (b'[{"a": b}, {"a": 2}]', ["it is not valid JSON", {"a": 2}]),
        (b'{"a": 1, "b": 2, "a": 3}', ["it has the key 'a' twice"]),
        (b'[[{"a": 1, "a": 3}], {"b": 2}]', ["it has the key 'a' twice", {"b": 2}]),
        (b"[" * 100_000, ["the file ends within an example"]),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n1", ["nested too deeply", 1]),
        (b"1" * 5000 + b"\n1", ["a number has too many digits", 1]),
        (b'[{"a": 1}, {"a": 2}', [{"a": 1}, "the file ends within an example: it has been cut off"]),
        (b'[{"a": 1}, {"a": 2},', [{"a": 1}, {"a": 2}, "the list is not closed: the file has been cut off"]),
        (b'[{"a": 1}, {"a": 2}, ', [{"a": 1}, {"a": 2}, "the list is not closed: the file has been cut off"]),
        (b'[{"a": 1}, {"a', [{"a": 1}, "the file ends within an example"]),
        (b'[{"a": 1}}, {"a": 2}]', ["the file ends within an example.*bracket is missing"]),
        (b'[{"a": 1}] and more', [{"a": 1}, "text follows the end of the list: 'and more'"]),
        (b'[{"a": 1}]\n[{"a": 2}]\n', [[{"a": 1}], [{"a": 2}]]),
        (b'{"a": 1,\n "b": [\n', ["the file ends within an example"]),
        (b'{"a": NaN}\n{"a": 1e999}', None),
        (b'{"a": "tab\there"}', [{"a": "tab\there"}]),
        (b"\0" * 64 + b'\n{"a": 2}', ["it is not valid", {"a": 2}]),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", ConfigError),
        (b"<!DOCTYPE html><html>", ConfigError),
        (b"PK\x03\x04", ConfigError),
        (b"\x80\x04\x95", ConfigError),
    ],
)
def test_damaged_files(tmp_path, content, expected):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    if expected is ConfigError:
        with pytest.raises(ConfigError, match=r"data\.jsonl is a .*not JSON"):
            reasons(path)
        return
    for size in (1, 100):
        found = reasons(path, size)
        if expected is None:
            assert [str(value) for value in found] == ["{'a': nan}", "{'a': inf}"]
            continue
        assert len(found) == len(expected)
        for value, wanted in zip(found, expected, strict=True):
            if isinstance(wanted, str):
                assert re.search(wanted, value)
            else:
                assert value == wanted


def test_a_parquet_file_under_another_name(tmp_path):
    path = tmp_path / "data.jsonl"
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), path)
    with pytest.raises(ConfigError, match=r"data\.jsonl is a Parquet file, not JSON; use reader 'parquet'"):
        read_all(path)
    (tmp_path / "other.jsonl").write_text("1\n")
    found = read_all(tmp_path / "*.jsonl")
    assert found[0].reason == "it is a Parquet file, not JSON; use reader 'parquet'"
    assert found[1][1] == 1


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress, bz2.compress, lzma.compress])
def test_a_compressed_file_that_is_cut_off_gives_what_precedes(tmp_path, pack):
    examples = [{"id": number, "text": str(random.Random(number).random())} for number in range(40_000)]
    packed = pack("\n".join(map(json.dumps, examples)).encode())
    path = tmp_path / "data.jsonl"
    path.write_bytes(packed[: len(packed) * 2 // 3])
    *good, bad = read_all(path)
    assert bad.reason == "the compressed file ends too early: it has been cut off"
    assert bad.place.line == len(good) + 1
    assert len(good) > 5_000
    assert [value for _, value in good] == examples[: len(good)]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_file_that_is_damaged_is_noticed(tmp_path, pack):
    packed = bytearray(pack(json.dumps([{"text": "x" * 100_000}] * 20).encode()))
    packed[len(packed) // 2] ^= 255
    path = tmp_path / "data.json"
    path.write_bytes(packed)
    bad = read_all(path)[-1]
    assert isinstance(bad, Unreadable)
    assert "cannot be read" in bad.reason


def test_files_that_cannot_be_opened(tmp_path):
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    found = {example.id: example.reason for example in read_all(tmp_path / "*.jsonl")}
    assert found["gone.jsonl"] == "the file does not exist"
    assert "named pipe" in found["pipe.jsonl"]
    assert "it is a folder" in found["folder.jsonl"]


def test_a_line_longer_than_the_limit(tmp_path, monkeypatch):
    for module in ("text_files", "json_files", "json_scan"):
        monkeypatch.setattr(f"solo.data.readers.{module}.MAX_BYTES", 1 << 20)
    for content in (b'{"a": "%s"}\n{"b": 1}', b'[{"a": "%s"}, {"b": 1}]'):
        path = tmp_path / "data.json"
        path.write_bytes(content % (b"x" * (5 << 20)))
        bad, good = read_all(path)
        assert bad.reason == "it has more than 1 MiB"
        assert good[1] == {"b": 1}


def test_files_of_one_name_in_two_folders(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "data.jsonl").write_text("1\n")
    assert len(values(tmp_path / "*" / "data.jsonl")) == 2


def test_zstandard_is_read_in_bounded_pieces(tmp_path):
    path = tmp_path / "bomb.zst"
    path.write_bytes(zstandard.compress(bytes(1 << 26)))
    from solo.data.readers.paths import open_bytes

    with open_bytes(str(path)) as file:
        assert isinstance(file, io.BufferedReader)
        assert sum(len(block) for block in iter(lambda: file.read1(1 << 16), b"")) == 1 << 26
