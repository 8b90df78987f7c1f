"""Images however a data set names them."""

import base64
import os
import unicodedata

import pytest
from PIL import Image as PillowImage

from solo.data.readers.image_files import load_image
from solo.data.record import Image, encode_png

RED = encode_png(PillowImage.effect_noise((20, 20), 50).convert("RGB"))
TEXT = base64.b64encode(RED.data).decode()
NAMES = ("plain.png", "with space.png", "100%.png", "50%25.png", "sub/é.png", "a+b.png", "#1?.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    (folder / "sub").mkdir()
    for name in NAMES:
        (folder / name).write_bytes(RED.data)
    (folder / "link.png").symlink_to(folder / "plain.png")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_paths_are_taken_as_they_are(folder, name):
    for path in (name, str(folder / name), folder / name, f"sub/../{name}"):
        image = load_image(path, str(folder))
        assert image == RED
        assert os.path.samefile(image.file, folder / name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("with%20space.png", "with space.png"),
        ("sub/%C3%A9.png", "sub/é.png"),
        ("sub\\é.png", "sub/é.png"),
        (unicodedata.normalize("NFD", "sub/é.png"), "sub/é.png"),
        ("a%2Bb.png", "a+b.png"),
        ("link.png", "plain.png"),
    ],
)
def test_other_spellings_of_a_path(folder, text, name):
    assert os.path.samefile(load_image(text, str(folder)).file, folder / name)


def test_urls_of_files(folder):
    for url in ((folder / "with space.png").as_uri(), f"file://{folder}/plain.png", f"file:{folder}/plain.png"):
        assert load_image(url, "/nowhere") == RED


@pytest.mark.parametrize(
    "value",
    [
        RED.data,
        bytearray(RED.data),
        RED,
        f"data:image/png;base64,{TEXT}",
        f"DATA:image/png;charset=x;BASE64,{TEXT}",
        f"data:;base64,{TEXT}",
        f"data:image/png;base64,{TEXT[:50]}\n{TEXT[50:]}",
        "data:image/png," + "".join(f"%{byte:02x}" for byte in RED.data),
        TEXT,
        TEXT.rstrip("="),
        base64.urlsafe_b64encode(RED.data).decode(),
        {"bytes": RED.data, "path": "gone.png"},
        {"bytes": TEXT, "path": None},
        {"bytes": None, "path": "plain.png"},
        {"url": "plain.png"},
        {"type": "base64", "media_type": "image/png", "data": TEXT},
    ],
)
def test_images_in_the_example_itself(folder, value):
    assert load_image(value, str(folder)) == RED


def test_a_pillow_image_is_encoded():
    assert load_image(PillowImage.new("L", (3, 2))).size() == (3, 2)


def test_an_object_store(folder):
    import fsspec

    fsspec.filesystem("memory").pipe("/bucket/images/a.png", RED.data)
    image = load_image("a.png", "memory://bucket/images")
    assert image == RED
    assert image.file == "memory://bucket/images/a.png"
    assert load_image("memory://bucket/images/a.png", str(folder)) == RED
    with pytest.raises(ValueError, match=r"memory://bucket/images/b\.png"):
        load_image("b.png", "memory://bucket/images")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("gone.png", "the file does not exist: .*gone.png"),
        ("http://a/b.png", "it is a web address, and nothing is fetched from the network: http://a/b.png"),
        ("HTTPS://a/b.png", "it is a web address"),
        ({"url": "https://a/b.png"}, "it is a web address"),
        ("//a/b.png", "it is a web address"),
        ("", "path is empty"),
        (" ", "path is empty"),
        ("a\0b", "null character"),
        ("sub", "it is a folder"),
        ("pipe", "named pipe"),
        ("/dev/zero", "device"),
        ("loop", "cannot be read: too many levels of symbolic links"),
        ("dead", "the file does not exist: .*dead"),
        ("x" * 300, "does not exist|cannot be read"),
        ("é" * 5000, "it is neither a path nor base64: .*5,000 characters"),
        ("data:image/png;base64", "needs a comma"),
        ("data:image/png;base64,@@@", "neither a path nor base64"),
        ("data:text/html,<p>", "the data URI holds text/html, not an image"),
        ({"bytes": None}, "must have 'bytes', 'path' or 'url'"),
        ({}, "must have 'bytes', 'path' or 'url'"),
        (None, "not null"),
        (3, "not a number"),
        (["a.png"], "not a list"),
        ("nowhere://a/b.png", "nowhere"),
    ],
)
def test_what_is_no_image(tmp_path, value, reason):
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dead").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=reason):
        load_image(value, str(tmp_path))


def test_an_image_above_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("solo.data.readers.image_files.MAX_BYTES", 10)
    (tmp_path / "a.png").write_bytes(bytes(11))
    with pytest.raises(ValueError, match="the file has more than"):
        load_image("a.png", str(tmp_path))
    assert isinstance(load_image(bytes(11)), Image)
