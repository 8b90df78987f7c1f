"""COCO captions, Karpathy's splits and lists of pairs."""

import gzip
import json

import pytest

from solo.config import ConfigError
from solo.data.readers import open_reader, read
from solo.data.record import Place
from tests.data.readers.pictures import BLUE, RED, read_source, write

LICENCE = {"license": 3, "width": 3, "height": 2, "coco_url": "http://images/9.jpg", "date_captured": "2013-11-14"}
COCO = {
    "info": {"description": "COCO 2017 Dataset", "year": 2017},
    "licenses": [{"id": 3, "name": "Attribution"}],
    "images": [
        {"id": 9, "file_name": "000000000009.png", **LICENCE},
        {"id": 25, "file_name": "000000000025.png", **LICENCE},
        {"id": 30, "file_name": "000000000030.png", "colour": "red", **LICENCE},
        {"id": 34, "file_name": "missing.png", **LICENCE},
        {"id": 36},
    ],
    "annotations": [
        {"image_id": 25, "id": 1, "caption": "A blue sea.\n"},
        {"image_id": 9, "id": 2, "caption": "A red wall."},
        {"image_id": 9, "id": 3, "caption": "Something red."},
        {"image_id": 34, "id": 4, "caption": "Nothing."},
        {"image_id": 77, "id": 5, "caption": "Which image?"},
        {"image_id": 9, "id": 6, "caption": 7},
    ],
}
KARPATHY = {
    "dataset": "coco",
    "images": [
        {
            "filepath": "val2014",
            "filename": "a.png",
            "split": "test",
            "cocoid": 1,
            "sentences": [{"raw": "one", "tokens": []}],
        },
        {
            "filepath": "val2014",
            "filename": "b.png",
            "split": "train",
            "cocoid": 2,
            "sentences": [{"raw": "two"}, {"raw": "2"}],
        },
        {"filepath": "val2014", "filename": "c.png", "split": "restval", "cocoid": 3},
    ],
}


@pytest.fixture
def coco(tmp_path):
    write(tmp_path / "images", {"000000000009.png": RED, "000000000025.png": BLUE, "000000000030.png": RED})
    write(tmp_path, {"captions.json": json.dumps(COCO)})
    return {"path": str(tmp_path / "captions.json"), "images": str(tmp_path / "images")}


def test_captions(coco):
    records, unreadable, ignored = read_source("coco", **coco)
    assert records == {"9/1": (RED, "A red wall."), "9/2": (RED, "Something red."), "25": (BLUE, "A blue sea.")}
    assert unreadable == {
        "30": "it has no caption",
        "34": f"the file does not exist: {coco['images']}/missing.png",
        "captions.json:5": "an image must have 'id' and 'file_name'",
        "annotation 5": "annotation 5: no image has the id 77",
        "annotation 6": "annotation 6: 'caption' must be a text, not 7",
    }
    assert ignored == {"colour"}
    records, _, _ = read_source("coco", **coco, captions="all")
    assert records == {"9": (RED, "A red wall.\nSomething red."), "25": (BLUE, "A blue sea.")}
    assert read_source("coco", **coco, captions="first")[0]["9"] == (RED, "A red wall.")
    second = [example for example in read("coco", coco) if getattr(example, "id", "") == "25"]
    assert second[0].place == Place(coco["path"], 2)


def test_parts_carry_their_examples(coco, monkeypatch):
    source = open_reader("coco", coco)
    parts = list(source.parts(2, None))
    assert [part.name for part in parts] == [f"captions.json:{span}" for span in ("1-2", "3-4", "5-6", "7-7")]
    json.dumps([part.span for part in parts])
    monkeypatch.setattr("solo.data.readers.annotations.read_json", None)  # reading a part parses no file
    assert sum(len(list(source.read(part))) for part in parts) == 9
    monkeypatch.undo()
    assert [len(part.span[0]) for part in source.parts(2, 3)] == [2, 1]


def test_karpathy(tmp_path):
    write(tmp_path, {"val2014/a.png": RED, "val2014/b.png": BLUE, "dataset_coco.json": json.dumps(KARPATHY)})
    options = {"path": str(tmp_path / "dataset_coco.json"), "images": str(tmp_path)}
    assert read_source("coco", **options, split="test")[0] == {"1": (RED, "one")}
    records, unreadable, _ = read_source("coco", **options, split="train,restval", captions="all")
    assert records == {"2": (BLUE, "two\n2")}
    assert unreadable == {"dataset_coco.json:3": "an image must have 'filename' and 'sentences'"}
    for split, message in (
        (None, r"has splits \['restval', 'test', 'train'\]"),
        ("dev", "has no split 'dev'; splits: "),
    ):
        with pytest.raises(ConfigError, match=message):
            list(read("coco", {**options, "split": split}))


def test_pairs_in_compressed_files(tmp_path):
    pairs = [{"image": "a.png", "caption": "one"}, {"image": "b.png", "caption": ["x", "y"]}, {"image": "c.png"}, "d"]
    write(tmp_path, {"a.png": RED, "b.png": BLUE, "p.json.gz": gzip.compress(json.dumps(pairs).encode())})
    records, unreadable, _ = read_source("coco", path=str(tmp_path / "p.json.gz"), images=str(tmp_path), captions="all")
    assert records == {"a.png:1": (RED, "one"), "b.png:2": (BLUE, "x\ny")}
    assert list(unreadable) == ["3", "4"]


def test_pairs_in_lines(tmp_path):
    lines = ['{"image": "a.png", "text": "one"}', "", "{oops", '{"image_path": "b.png", "caption": "two"}']
    write(tmp_path, {"a.png": RED, "b.png": BLUE, "p.jsonl": "\n".join(lines)})
    options = {"path": str(tmp_path / "p.jsonl"), "images": str(tmp_path)}
    records, unreadable, ignored = read_source("coco", **options)
    assert records == {"a.png:1": (RED, "one"), "b.png:4": (BLUE, "two")}
    assert "not valid JSON" in unreadable["p.jsonl:3"]
    assert not ignored
    assert [example.place.line for example in read("coco", options)] == [1, 3, 4]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": [], "annotations": [{"image_id": 1, "bbox": [], "segmentation": []}]}, "not captions but segments"),
        ({"images": [], "annotations": [{"image_id": 1, "keypoints": []}]}, "not captions but keypoints"),
        ({"images": [], "annotations": [{"segments_info": []}]}, "not captions but panoptic segments"),
        ({"images": [], "annotations": [{"question": "?"}]}, "use reader 'vqa'"),
        ({"images": [{"id": 1, "file_name": "a"}]}, "has no 'annotations', as the files of test splits"),
        ({"images": {}, "annotations": []}, "'images' must be a list"),
        ({"a": 1}, "has no 'images'"),
        ("{", "is not one JSON document"),
        ("[" * 200_000, "nested too deeply|not one JSON document"),
    ],
)
def test_refused(tmp_path, content, message):
    write(tmp_path, {"a.json": content if isinstance(content, str) else json.dumps(content)})
    with pytest.raises(ConfigError, match=message):
        list(read("coco", {"path": str(tmp_path / "a.json")}))
