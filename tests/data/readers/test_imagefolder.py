"""Folders of captioned images."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from solo.config import ConfigError
from solo.data.readers import open_reader, read
from solo.data.record import Place
from tests.data.readers.pictures import BLUE, RED, read_source, write


def lines(*rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_tables_and_what_they_do_not_name(tmp_path):
    rows = [
        {"file_name": "a.png", "text": "red"},
        {"file_name": "./b/c.png", "text": "blue"},
        {"file_name": "no.png", "text": "x"},
    ]
    broken = [{"file_name": "a.png"}, [1]]
    write(tmp_path, {"a.png": RED, "b/c.png": BLUE, "d.png": RED, "notes.md": "-"})
    write(tmp_path, {"metadata.jsonl": lines(*rows) + "{oops\n" + lines(*broken)})
    records, unreadable, _ = read_source("imagefolder", path=str(tmp_path))
    assert records == {"a.png": (RED, "red"), "b/c.png": (BLUE, "blue")}
    assert unreadable["no.png"] == f"the file does not exist: {tmp_path}/no.png"
    assert unreadable["d.png"] == "metadata.jsonl does not name it"
    assert "not valid JSON" in unreadable["metadata.jsonl:4"]
    assert unreadable["metadata.jsonl:5"] == "'text' must be a text or a list of texts, not None"
    assert unreadable["metadata.jsonl:6"] == "a row must be a mapping, not a list"
    places = [example.place for example in read("imagefolder", {"path": str(tmp_path)})]
    assert places[1] == Place(f"{tmp_path}/metadata.jsonl", 2)


def test_as_datasets_writes_and_reads_it(tmp_path):
    """The tables that `datasets` reads give the same texts for the same images here."""
    datasets = pytest.importorskip("datasets")
    rows = [{"file_name": f"{n}.png", "text": f"caption, {n}\nof two lines"} for n in range(3)]
    for kind in ("jsonl", "csv", "parquet"):
        folder = write(tmp_path / kind, {f"{n}.png": (RED, BLUE)[n % 2] for n in range(3)})
        table = datasets.Dataset.from_list(rows)
        path = str(folder / f"metadata.{kind}")
        {"jsonl": table.to_json, "csv": table.to_csv, "parquet": table.to_parquet}[kind](path)
        theirs = datasets.load_dataset(
            "imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache")
        )
        records, unreadable, _ = read_source("imagefolder", path=str(folder))
        assert [content[1] for content in records.values()] == theirs["text"]
        assert [content[0].decode().tobytes() for content in records.values()] == [i.tobytes() for i in theirs["image"]]
        assert not unreadable


def test_several_captions_and_several_images(tmp_path):
    write(tmp_path, {"a.png": RED, "b.png": BLUE})
    write(tmp_path, {"metadata.jsonl": lines({"images_file_names": ["a.png", "b.png"], "cap": ["one", "two"]})})
    for captions, expected in {
        "each": {"a.png/1": (RED, BLUE, "one"), "a.png/2": (RED, BLUE, "two")},
        "all": {"a.png": (RED, BLUE, "one\ntwo")},
        "first": {"a.png": (RED, BLUE, "one")},
    }.items():
        assert read_source("imagefolder", path=str(tmp_path), text="cap", captions=captions)[0] == expected


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"metadata.jsonl": lines({"file_name": "a.png", "caption": "x"})},
            r"no column 'text'; columns: \['file_name', 'caption'\]",
        ),
        ({"metadata.csv": "file,text\na.png,x\n"}, r"has no column 'file_name'; columns: \['file', 'text'\]"),
        (
            {"train/metadata.csv": "file_name,text\n"},
            "has no metadata.jsonl, but train has metadata.csv; set path to .*train",
        ),
        ({"a.txt": "x"}, "has none of metadata.jsonl, .*set beside: .txt"),
        ({"metadata.parquet": "PAR1"}, "cannot read .*metadata.parquet"),
    ],
)
def test_refused(tmp_path, files, message):
    write(tmp_path, {"a.png": RED, **files})
    with pytest.raises(ConfigError, match=message):
        list(read("imagefolder", {"path": str(tmp_path)}))


def test_rows_of_a_csv_without_all_cells(tmp_path):
    write(tmp_path, {"a.png": RED, "metadata.csv": "file_name,text\na.png\na.png,red\na.png,red,more\n"})
    records, unreadable, _ = read_source("imagefolder", path=str(tmp_path))
    assert records == {"a.png": (RED, "red")}
    assert list(unreadable) == ["metadata.csv:2", "metadata.csv:4"]


def test_text_files_beside_images(tmp_path):
    write(tmp_path, {"a.png": RED, "a.txt": " red\n", "x/b.PNG": BLUE, "x/b.txt": "blue", "c.png": RED, "d.txt": "?"})
    write(tmp_path, {"e.png": RED, "e.txt": b"\xff", "f.png": RED, "f.txt": " "})
    records, unreadable, _ = read_source("imagefolder", path=str(tmp_path), beside=".txt")
    assert records == {"a.png": (RED, "red"), "x/b.PNG": (BLUE, "blue")}
    assert unreadable == {
        "c.png": "it has no caption: there is no c.txt",
        "d.txt": "there is no image of its name",
        "e.png": "its caption is not UTF-8: invalid start byte at byte 0",
        "f.png": "its caption is empty",
    }


def test_parts(tmp_path):
    write(tmp_path, {f"{n}.png": RED for n in range(5)})
    write(tmp_path, {"metadata.csv": "file_name,text\n" + "".join(f"{n}.png,{n}\n" for n in range(5))})
    source = open_reader("imagefolder", {"path": str(tmp_path)})
    parts = list(source.parts(2, None))
    assert [len(list(source.read(part))) for part in parts] == [2, 2, 1]
    assert {part.files for part in parts} == {(f"{tmp_path}/metadata.csv",)}
    assert sum(len(part.span) for part in source.parts(2, 3)) == 3


def test_a_table_whose_text_is_not_utf8(tmp_path):
    write(tmp_path, {"a.png": RED})
    text = pyarrow.array([b"\xff"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"file_name": ["a.png"], "text": text}), tmp_path / "metadata.parquet")
    with pytest.raises(ConfigError, match=r"cannot read .*metadata\.parquet: .*utf-8"):
        list(read("imagefolder", {"path": str(tmp_path)}))
