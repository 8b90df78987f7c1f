"""The reader of a source, chosen from its path and its content."""

import gzip
import io
import json
import os
import re
import tarfile

import pyarrow as pa
import pyarrow.parquet
import pytest

from solo.config import ConfigError
from solo.data.readers import choose_reader, open_reader, read
from solo.data.readers.folder import Folder
from tests.data.readers.pictures import RED, read_source, write


def tar(name: str, data: bytes = RED.data) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def parquet(**columns: list) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


CHAT = {"image": "a.png", "conversations": [{"from": "human", "value": "a"}]}
MESSAGES = {"messages": [{"role": "user", "content": "a"}]}
SOLO = [{"role": "assistant", "content": "a"}]
LONG = [{"image_id": n, "id": n, "caption": "c" * 50} for n in range(30_000)]  # more than is looked at
IMAGES = [{"id": n, "file_name": f"{n}.jpg"} for n in range(3)]
PHOTO = parquet(image=[b"x"], caption=["y"])
FILES = [
    ("a.tar", tar("1.png"), "webdataset"),
    ("a.tar", tar("1.json", b'{"text_list": ["a"], "image_info": []}'), "interleaved"),
    ("a.tar", tar("1.json", b'{"caption": "a"}'), "webdataset"),
    ("a.tar.gz", gzip.compress(tar("1.png")), "webdataset"),
    ("named_wrongly.json", tar("1.png"), "webdataset"),
    ("a.parquet", PHOTO, "parquet"),
    ("a.parquet", parquet(images=[[b"x"]], texts=[[{"user": "y", "assistant": "z"}]]), "parquet"),
    ("a.parquet", parquet(images=[[b"x", None]], texts=[[None, "y"]]), "interleaved"),
    (
        "a.parquet",
        parquet(text=[[{"text": "y", "text_idx": "#0"}]], images=[[]], metadata=[[{"url": "u"}]]),
        "interleaved",
    ),
    ("a.jsonl", jsonl({"text": [{"text": "y"}], "images": [], "metadata": [{"node_order": "txt_#0"}]}), "interleaved"),
    ("a.txt", "Hello.\n", "text"),
    ("a.TXT.gz", gzip.compress(b"Hello.\n"), "text"),
    ("a.json", json.dumps([CHAT] * 3), "llava"),
    ("a.json", json.dumps([CHAT] * 3, indent=2), "llava"),
    ("a.JSON", "\ufeff" + json.dumps([CHAT]), "llava"),
    ("a.jsonl", jsonl(CHAT, CHAT), "llava"),
    ("a.jsonl", json.dumps([CHAT, CHAT]), "llava"),
    ("a.jsonl.gz", gzip.compress(jsonl(CHAT).encode()), "llava"),
    ("utf16.jsonl", jsonl(CHAT).encode("utf-16"), "llava"),
    ("a.jsonl", jsonl({**CHAT, "conversations": [{"value": "x" * 2_000_000}]}, CHAT)[:2_500_000], "llava"),
    ("a.jsonl", "{oops\n" + jsonl(CHAT), "llava"),
    ("a.jsonl", jsonl(MESSAGES), "messages"),
    ("a.jsonl", jsonl({"query": "a", "response": "b", "images": ["c.png"]}), "messages"),
    ("a.jsonl", jsonl({"messages": SOLO}, {"messages": SOLO}), "solo"),
    ("a.jsonl", jsonl({"messages": SOLO}, MESSAGES), "messages"),
    ("a.jsonl", jsonl(SOLO, SOLO), "solo"),
    ("a.jsonl", jsonl(*SOLO), "solo"),
    ("a.parquet", parquet(text=["a"], url=["b"]), "text"),
    ("a.jsonl", jsonl({"text": "a"}, {"text": "b", "url": "c"}), "text"),
    ("a.jsonl", jsonl({"text": [{"text": "a"}], "images": [], "metadata": []}), "interleaved"),
    ("a.jsonl", jsonl({"text_list": ["a"], "image_info": []}), "interleaved"),
    ("a.jsonl", jsonl({"frames": ["1.jpg"], "text": "a"}), "frames"),
    ("a.json", json.dumps({"info": {}, "images": IMAGES, "annotations": LONG}), "coco"),
    ("a.json", json.dumps({"annotations": LONG, "images": IMAGES}), None),
    ("a.json", json.dumps({"images": [{"filename": "a", "sentences": []}], "dataset": "coco"}), "coco"),
    ("a.json", json.dumps([{"image": "a.jpg", "caption": "b", "image_id": "c"}]), "coco"),
    ("a.jsonl", jsonl({"image": "a.jpg", "text": "b"}), "coco"),
    ("a.json", json.dumps({"info": {}, "questions": [{"question": "?", "image_id": 1, "question_id": 1}]}), "vqa"),
    ("a.json", json.dumps({"data": [{"question": "?", "answers": ["a"]}]}), "vqa"),
    ("a.json", json.dumps({"1": {"question": "?", "imageId": "2", "answer": "a"}}), "vqa"),
    ("a.json", json.dumps([{"question": "?", "image": "2", "answer": "a"}]), "vqa"),
]


# Numbers, because gzip files contain the time, and workers of one test run must agree on names.
@pytest.mark.parametrize(("name", "content", "reader"), FILES, ids=range(len(FILES)))
def test_files(tmp_path, name, content, reader):
    write(tmp_path, {name: content})
    options = {"path": str(tmp_path / name)}
    if reader is None:
        with pytest.raises(ConfigError, match="no reader is known for"):
            choose_reader("auto", options)
        return
    chosen = choose_reader("auto", options)
    assert (chosen.reader, chosen.options) == (reader, options)
    assert chosen.why.startswith(f"{tmp_path / name}: ")


FOLDERS = [
    (["cat/1.png", "dog/2.png", "names.txt"], "folder", {}),
    (["a.png", "metadata.jsonl"], "imagefolder", {}),
    (["a.png", "metadata.csv", "b/c.png"], "imagefolder", {}),
    (["a.png", "a.txt"], "imagefolder", {"beside": ".txt"}),
    (["1/frame_1.jpg", "1.txt"], "frames", {}),
    (["1/frame_1.jpg", "1/caption.txt"], "frames", {}),
    (["0.tar", "1.tar", "0.parquet", "0_stats.json"], "webdataset", {}),
    (["0/1.jpg", "0/1.txt", "0/1.json", "0/2.jpg", "0/2.txt"], "imagefolder", {"beside": ".txt"}),
    (["0/1.jpg", "0/1.txt", "0.parquet", "0_stats.json"], "imagefolder", {"beside": ".txt"}),
    (["dataset_info.json", "features.json", "x-train.array_record-00000-of-00001"], "tfds", {}),
]


@pytest.mark.parametrize(("names", "reader", "more"), FOLDERS)
def test_folders(tmp_path, names, reader, more):
    write(tmp_path, dict.fromkeys(names, RED))
    chosen = choose_reader("auto", {"path": str(tmp_path)})
    assert (chosen.reader, chosen.options) == (reader, {"path": str(tmp_path), **more})


REFUSED = [
    ({"a.mp4": "x"}, "a.mp4", "it is a .mp4 file; make frames of it"),
    ({"a.zip": "PK\3\4"}, "a.zip", "it is a .zip file; unpack it"),
    ({"a.png": RED}, "a.png", "it is a .png file; set path to the folder"),
    ({"a.csv": "a,b\n"}, "a.csv", "it is a .csv file; write JSONL or Parquet"),
    ({"x.tfrecord-00000-of-00002": "x"}, "x.tfrecord-00000-of-00002", "is a .tfrecord file; prepare"),
    ({"a.arrow": "hello"}, "a.arrow", "no table, though its name ends in .arrow"),
    ({"a.bin": b"\0\1\2"}, "a.bin", "it is neither text nor a file of a known kind"),
    ({"a.json": b"\x80\x04\x95"}, "a.json", "it is a Python pickle, which is never read"),
    ({"a.json": b""}, "a.json", "the file is empty"),
    ({"a.json": "{"}, "a.json", "no example could be parsed"),
    ({"a.json": "[1, 2]"}, "a.json", "its list holds int values, not mappings"),
    ({"a.json": '{"a": 1, "b": 2}'}, "a.json", "its examples have the keys a, b"),
    ({"a.json": '{"annotations": [{"question_id": 1, "answers": []}]}'}, "a.json", "holds the answers of VQA"),
    ({"a.parquet": "hello"}, "a.parquet", "no table, though its name ends in .parquet"),
    ({"a.rst": "hello"}, "a.rst", "a text file of an unknown kind"),
    ({".x": ""}, "", "no file of a known kind"),
    ({"a.png": RED, "b.png": RED}, "", "it holds images without captions"),
    ({"a.mp4": "x", "b.mp4": "x"}, "", "it holds videos (.mp4); make frames"),
    ({"a.jsonl": "x"}, "", "it holds .jsonl files; set path to them, such as"),
    ({"a.json": "[]", "images/1.png": RED}, "", "it holds .json files; set path to them"),
    ({"train/cat/1.png": RED, "val/cat/1.png": RED}, "", "its folders are splits (train, val); set path to"),
    ({"train/metadata.csv": "", "train/1.png": RED}, "", "train is a source of its own; set path to"),
    ({"mnist/1.0.0/features.json": "", "mnist/1.0.0/dataset_info.json": ""}, "", "it holds datasets of TFDS"),
    ({"train.parquet": PHOTO, "test.parquet": PHOTO}, "", "holds the splits test, train; choose one with `split`"),
    ({"0.tar": "", "0.parquet": "", "chats.json": ""}, "", "it holds .tar archives, but also chats.json; set path"),
    ({"docs/a.md": "x"}, "", "its folders hold no images; docs holds .md"),
]


@pytest.mark.parametrize(("files", "path", "message"), REFUSED)
def test_what_no_reader_reads_is_said(tmp_path, files, path, message):
    write(tmp_path, files)
    with pytest.raises(ConfigError, match=re.escape(message)):
        choose_reader("auto", {"path": str(tmp_path / path)})


def test_datasets(tmp_path):
    """Folders of the library `datasets`: as it saves them, and as the Hub has them."""
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"text": ["a", "b"]})
    table.save_to_disk(str(tmp_path / "saved"))
    write(
        tmp_path, {"hub/README.md": "-", "hub/data/train-00000-of-00001.parquet": PHOTO, "hub/data/test.parquet": PHOTO}
    )
    assert choose_reader("auto", {"path": str(tmp_path / "saved")}).reader == "parquet"
    options = {"path": str(tmp_path / "hub"), "split": "train"}
    chosen = choose_reader("auto", options)
    assert (chosen.reader, chosen.options) == ("parquet", options)
    assert chosen.why.endswith("train-00000-of-00001.parquet is a table with the columns image, caption")


def test_what_is_no_file_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ConfigError, match="named pipe"):
        choose_reader("auto", {"path": str(tmp_path / "pipe.json")})
    with pytest.raises(ConfigError, match="gone does not exist"):
        choose_reader("auto", {"path": str(tmp_path / "gone")})


def test_several_files(tmp_path):
    write(tmp_path, {"a/1.jsonl": jsonl(CHAT), "a/2.jsonl": jsonl(CHAT), "a/3.json": json.dumps([CHAT]), "b.txt": "x"})
    assert choose_reader("auto", {"path": f"{tmp_path}/a/*.json*"}).reader == "llava"
    with pytest.raises(ConfigError, match=r"1\.jsonl is read by 'llava', but .*b\.txt is not; make two sources"):
        choose_reader("auto", {"path": [f"{tmp_path}/a/*", f"{tmp_path}/b.txt"]})


def test_auto_opens_what_it_chose(tmp_path):
    write(tmp_path, {"cat/1.png": RED})
    assert isinstance(open_reader("auto", {"path": str(tmp_path)}), Folder)
    assert read_source("auto", path=str(tmp_path), template="{name}!")[0] == {"cat/1.png": (RED, "cat!")}
    assert choose_reader("folder", {"path": "x"}).why == ""
    with pytest.raises(ConfigError, match=r"'folder': unknown option 'imagess'.*chosen because .*: it holds 1 folder"):
        open_reader("auto", {"path": str(tmp_path), "imagess": "."})


@pytest.mark.parametrize("options", [{}, {"path": 3}, {"path": ["a", 3]}, {"name": "mnist", "split": "train"}])
def test_auto_needs_a_path(options):
    with pytest.raises(ConfigError, match=r"options\.path must be a path"):
        read("auto", options)


def test_an_archive_whose_header_claims_exabytes(tmp_path):
    member = tarfile.TarInfo("a.png")
    member.size = 1 << 60
    (tmp_path / "a.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    assert choose_reader("auto", {"path": str(tmp_path / "a.tar")}).reader == "webdataset"
