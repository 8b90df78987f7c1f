"""Folders of classes."""

import os

import fsspec
import pytest

from solo.config import ConfigError
from solo.data.readers import open_reader, read
from solo.data.record import Place, Record, Turn
from tests.data.readers.pictures import RED, read_source, write


def test_captions_and_questions(tmp_path):
    write(
        tmp_path, {name: RED for name in ("tabby_cat/2.png", "tabby_cat/10.png", "tabby_cat/deep/3.png", "a-dog/1.png")}
    )
    write(
        tmp_path,
        {
            "README": "hello",
            "tabby_cat/.hidden": RED,
            ".cache/1.png": RED,
            "__MACOSX/._1.png": RED,
            "a-dog/.git/1.png": RED,
        },
    )
    records, unreadable, _ = read_source("folder", path=str(tmp_path), template="a photo of a {name}")
    assert records == {
        "a-dog/1.png": (RED, "a photo of a a dog"),
        "tabby_cat/10.png": (RED, "a photo of a tabby cat"),
        "tabby_cat/2.png": (RED, "a photo of a tabby cat"),
        "tabby_cat/deep/3.png": (RED, "a photo of a tabby cat"),
    }
    assert list(records) == sorted(records)
    assert unreadable == {"README": "it is in no class folder"}
    first = next(e for e in read("folder", {"path": str(tmp_path), "form": "question"}) if isinstance(e, Record))
    assert first.turns == (Turn("user", (RED, "What is in the image?")), Turn("assistant", ("a dog",)))
    assert first.place == Place(f"{tmp_path}/a-dog/1.png")
    assert first.images()[0].file == f"{tmp_path}/a-dog/1.png"


def test_links_are_followed_and_what_cannot_be_read_is_said(tmp_path):
    data = write(tmp_path / "data", {"cat/1.png": RED, "empty/.keep": ""})
    write(tmp_path / "elsewhere", {"2.png": RED, "more/3.png": RED})
    (data / "dog").symlink_to(tmp_path / "elsewhere")
    (data / "cat" / "linked.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    (data / "cat" / "gone.png").symlink_to(tmp_path / "nowhere")
    (data / "cat" / "up").symlink_to(data / "cat")
    (data / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(data / "cat" / "pipe.png")
    records, unreadable, _ = read_source("folder", path=str(data))
    assert list(records) == ["cat/1.png", "cat/linked.png", "dog/2.png", "dog/more/3.png"]
    assert unreadable == {
        "cat/gone.png": "it is a link to a file that does not exist",
        "cat/pipe.png": "it is a named pipe",
        "cat/up": "it is a link to a folder that holds it",
        "empty": "the class folder holds no file",
        "gone": "it is a link to a file that does not exist",
    }


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    write(tmp_path, {"cat/1.png": RED, "locked/1.png": RED})
    scandir = os.scandir  # the tests may run as root, who may read everything

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    records, unreadable, _ = read_source("folder", path=str(tmp_path))
    assert list(records) == ["cat/1.png"]
    assert unreadable == {"locked": "cannot read the folder: Permission denied"}


def test_parts_hold_every_file_once_and_change_alone(tmp_path):
    write(tmp_path, {f"{name}/{number:03d}.png": RED for name in ("cat", "dog") for number in range(100)})
    source = open_reader("folder", {"path": str(tmp_path)})
    before = list(source.parts(8, None))
    assert len(before) > 5
    assert len({part.name for part in before}) == len(before)
    files = [name for part in before for name, _ in part.span]
    assert files == sorted(files)
    assert len(files) == 200
    write(tmp_path, {"cat/000a.png": RED})
    after = list(open_reader("folder", {"path": str(tmp_path)}).parts(8, None))
    assert len(set(after) - set(before)) <= 2
    assert sum(len(part.span) for part in source.parts(8, 13)) == 13


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (
            ["train", "val"],
            {},
            r"the classes would be train, val, .* splits; set path to .*/train, or split_names: true",
        ),
        (["Train"], {}, "the classes would be Train"),
        (["train", "val", "assets"], {}, "the classes would be train, val"),
        (["n01440764", "n01443537"], {}, r"are WordNet ids \(n01440764, n01443537\).*set names to a file"),
        (
            ["n01440764", "n09"],
            {"names": ["tench", "goldfish", "shark"]},
            "no name for 2 of 2 class folders: n01440764, n09",
        ),
        ([], {}, "has no class folders"),
        (["cat"], {"template": "it"}, "template 'it' lacks {name}"),
    ],
)
def test_refused(tmp_path, classes, options, message):
    write(tmp_path, {f"{name}/1.png": RED for name in classes} | {"a.txt": "a"})
    with pytest.raises(ConfigError, match=message):
        list(read("folder", {"path": str(tmp_path), **options}))


@pytest.mark.parametrize(
    ("name", "message"), [("nowhere", "nowhere does not exist"), ("a.png", r"a\.png is not a folder")]
)
def test_no_folder(tmp_path, name, message):
    write(tmp_path, {"a.png": RED})
    with pytest.raises(ConfigError, match=message):
        list(read("folder", {"path": str(tmp_path / name)}))


def test_a_class_may_be_called_train(tmp_path):
    write(tmp_path, {f"{name}/1.png": RED for name in ("train", "bus", "cat")})  # a class of COCO and of Pascal VOC
    records, _, _ = read_source("folder", path=str(tmp_path))
    assert [content[1] for content in records.values()] == ["bus", "cat", "train"]
    write(tmp_path, {"test/1.png": RED})
    assert len(read_source("folder", path=str(tmp_path), split_names=True)[0]) == 4


def test_about_says_the_classes(tmp_path):
    write(tmp_path, {f"{name}/1.png": RED for name in "abcdefg"})
    assert open_reader("folder", {"path": str(tmp_path)}).about() == "7 classes: a, b, c, d, e, ..."


@pytest.mark.parametrize(
    ("names", "folders", "expected"),
    [
        (
            "n01440764 tench, Tinca tinca\nn01443537 goldfish\n",
            ["n01440764", "n01443537"],
            ["tench, Tinca tinca", "goldfish"],
        ),
        (
            '{"0": ["n01443537", "goldfish"], "1": ["n01440764", "tench"]}',
            ["n01440764", "n01443537"],
            ["tench", "goldfish"],
        ),
        (
            '{"n01440764": "tench", "n01443537": ["goldfish", "Carassius auratus"]}',
            ["n01440764", "n01443537"],
            ["tench", "goldfish"],
        ),
        ("a\tfirst class\nb\tsecond class\n", ["a", "b"], ["first class", "second class"]),
        # Labels count from 0, whatever the order of the folders' names; a short list cannot be matched by position.
        ("\ufeffzero\r\none\r\ntwo\r\n", ["0", "2"], ["zero", "two"]),
        ("\n".join(f"name {n}" for n in range(11)), ["10", "9"], ["name 10", "name 9"]),
        ('["tench", "goldfish"]', ["n01440764", "n01443537"], ["tench", "goldfish"]),
    ],
)
def test_names(tmp_path, names, folders, expected):
    write(tmp_path, {"names": names} | {f"data/{name}/1.png": RED for name in folders})
    records, _, _ = read_source("folder", path=str(tmp_path / "data"), names=str(tmp_path / "names"))
    assert [content[1] for content in records.values()] == expected


@pytest.mark.parametrize("names", ["", "[1, 2]", '{"a": 1}', '{"1": "a"}', "{", b"\xff\xff"])
def test_a_file_of_names_that_is_none(tmp_path, names):
    write(tmp_path, {"names": names, "data/cat/1.png": RED})
    with pytest.raises(ConfigError, match="names: "):
        list(read("folder", {"path": str(tmp_path / "data"), "names": str(tmp_path / "names")}))


def test_a_folder_in_an_object_store():
    """Any store that fsspec knows; here one in memory."""
    store = fsspec.filesystem("memory")
    for name in ("cat/1.png", "cat/deep/2.png", "dog/.hidden", "dog/3.png", "a.md"):
        store.pipe(f"/pets/{name}", RED.data)
    records, unreadable, _ = read_source("auto", path="memory://pets")
    names = {name: content[1] for name, content in records.items()}
    assert names == {"cat/1.png": "cat", "cat/deep/2.png": "cat", "dog/3.png": "dog"}
    assert unreadable == {"a.md": "it is in no class folder"}
    store.rm("/pets", recursive=True)
