"""Plain text in files, lines, paragraphs, JSON and Parquet."""

import gzip
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from solo.data.readers import Ignored, Unreadable, open_reader, read
from solo.data.record import Turn
from tests.data.fakes import read_records


def texts(path, **options):
    records = read_records("text", None, path=str(path), **options)
    assert all(record.turns == (Turn("text", record.turns[0].content),) for record in records)
    return [(record.id, record.place.line, *record.turns[0].content) for record in records]


def test_a_file_is_a_document(tmp_path):
    (tmp_path / "10.txt").write_bytes("b\r\né".encode())
    (tmp_path / "9.txt").write_bytes(b"\xef\xbb\xbfa\n")
    (tmp_path / "11.txt.gz").write_bytes(gzip.compress("c".encode("utf-16")))
    assert texts(tmp_path / "*.txt*") == [("9.txt", None, "a\n"), ("10.txt", None, "b\r\né"), ("11.txt.gz", None, "c")]
    (part,) = open_reader("text", {"path": str(tmp_path / "*.txt*")}).parts(100, None)
    assert len(part.files) == 3


def test_files_that_are_no_documents(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    (tmp_path / "c.txt").write_bytes(b"%PDF-1.4")
    (tmp_path / "d.txt").symlink_to(tmp_path / "nowhere")
    found = list(read("text", {"path": str(tmp_path / "*.txt")}))
    assert [example.reason for example in found] == [
        "its text is empty",
        "it is not valid UTF-8: byte 0xe9 at position 3; set option 'encoding' if it is in another",
        "it is a PDF file, not text",
        "the file does not exist",
    ]
    assert texts(tmp_path / "b.txt", encoding="latin-1") == [("b.txt", None, "café")]


def test_a_line_is_a_document(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\n\r\n two\n \nthree")
    assert texts(tmp_path / "a.txt", document="line") == [
        ("a.txt:1", 1, "one"),
        ("a.txt:3", 3, " two"),
        ("a.txt:5", 5, "three"),
    ]
    (tmp_path / "a.txt").write_bytes(b"one\ncaf\xe9\nthree\n")
    found = list(read("text", {"path": str(tmp_path / "a.txt"), "document": "line"}))
    assert [isinstance(example, Unreadable) for example in found] == [False, True, False]
    for content in (b"", b"\n \n"):
        (tmp_path / "a.txt").write_bytes(content)
        assert [e.reason for e in read("text", {"path": str(tmp_path / "a.txt"), "document": "line"})] == [
            "the file is empty"
        ]


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_a_paragraph_belongs_to_the_part_in_which_it_begins(tmp_path, size, line_break):
    lines = ["", "a", "b", "", " ", "c", "", "d", "e", "f", ""]
    path = tmp_path / "a.txt"
    path.write_bytes(line_break.join(lines).encode())
    reader = open_reader("text", {"path": str(path), "document": "paragraph"})
    found = [record for part in reader.parts(size, None) for record in reader.read(part)]
    wanted = [(2, line_break.join("ab")), (6, "c"), (8, line_break.join("def"))]
    assert [(record.place.line, *record.turns[0].content) for record in found] == wanted


def test_json_and_parquet(tmp_path):
    rows = datasets.Dataset.from_list([{"id": f"k{i}", "text": f"t{i}", "url": "u"} for i in range(10)])
    rows.to_json(tmp_path / "rows.jsonl")
    rows.to_json(tmp_path / "rows.json", lines=False)
    rows.to_parquet(tmp_path / "rows.parquet", batch_size=3)
    for name in ("rows.jsonl", "rows.json", "rows.parquet"):
        reader = open_reader("text", {"path": str(tmp_path / name)})
        parts = list(reader.parts(4, None))
        assert len(parts) > 1
        found = [list(reader.read(part)) for part in parts]
        assert [e for e in found[0] if isinstance(e, Ignored)] == [Ignored("url", found[0][0].place)]
        records = [e for examples in found for e in examples if not isinstance(e, Ignored)]
        assert [(r.id, r.place.line, *r.turns[0].content) for r in records] == [
            (f"k{i}", i + 1, f"t{i}") for i in range(10)
        ]
    (tmp_path / "strings.json").write_text('["a", "b"]')
    assert [text for _, _, text in texts(tmp_path / "strings.json")] == ["a", "b"]


def test_json_that_has_no_text(tmp_path):
    lines = [
        {"txt": "a"},
        {"text": ["a"]},
        {"text": "a", "image": "b.jpg"},
        {"text": " "},
        3,
        {"text": "a", "image": None},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    *bad, good, ignored = read("text", {"path": str(tmp_path / "a.jsonl")})
    assert [example.reason for example in bad] == [
        "it has no 'text'; its keys are 'txt'",
        "its 'text' is a list; its keys are 'text'",
        "it has 'image', but the reader reads only text",
        "its text is empty",
        "an example must be a mapping or a string, not a number",
    ]
    assert good.turns == (Turn("text", ("a",)),)
    assert ignored.key == "image"


def test_a_parquet_file_that_is_cut_off(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a" * 1000]}), path)
    path.write_bytes(path.read_bytes()[:-10])
    (bad,) = read("text", {"path": str(path)})
    assert bad.id == "a.parquet"
    assert "cannot be read" in bad.reason
