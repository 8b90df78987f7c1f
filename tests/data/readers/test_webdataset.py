"""The webdataset reader, on archives that the library webdataset, tarfile and GNU tar write."""

import gzip
import io
import os
import re
import tarfile
from pathlib import Path

import braceexpand
import fsspec
import pytest
import webdataset
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage

from solo.config import ConfigError
from solo.data.readers import Ignored, Unreadable, open_reader, read
from solo.data.readers import webdataset as module
from solo.data.readers.archives import members
from solo.data.readers.paths import expand
from solo.data.readers.webdataset import split_name
from solo.data.record import Place, Record, Turn, encode_png

RED, BLUE = (encode_png(PillowImage.new("RGB", (3, 2), colour)) for colour in ("red", "blue"))
SAID = [{"from": "human", "value": "<image>\nWhy?"}, {"from": "gpt", "value": "So."}]


def write(path, *samples, **options):
    """Writes samples with the library webdataset, which encodes by suffix."""
    with webdataset.TarWriter(str(path), **options) as writer:
        for number, sample in enumerate(samples):
            writer.write({"__key__": f"{number:04d}"} | sample)
    return str(path)


def write_members(path, *files, mode="w"):
    """Writes (name, bytes) or TarInfo members with tarfile."""
    with tarfile.open(path, mode) as archive:
        for file in files:
            info = file if isinstance(file, tarfile.TarInfo) else tarfile.TarInfo(file[0])
            data = b"" if isinstance(file, tarfile.TarInfo) else file[1]
            info.size = info.size if isinstance(file, tarfile.TarInfo) else len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def examples(path, **options):
    return [e for e in read("webdataset", {"path": path} | options) if not isinstance(e, Ignored)]


def refused(path, **options):
    (example,) = examples(path, **options)
    assert isinstance(example, Unreadable)
    return example.reason


def caption(*content):
    return (Turn("text", content),)


CAPTIONED = {"png": RED.data, "txt": "A dog on ice."}


# ------------------------------------------------------------------------------------------- samples


def test_captions_of_img2dataset_know_their_place_and_name_what_is_not_read(tmp_path):
    facts = {"url": "https://x/y.jpg", "width": 3, "height": 2, "sha256": "00", "caption": "from json"}
    path = write(tmp_path / "00000.tar", *[{"png": RED.data, "txt": "A dog.", "json": facts}] * 2)
    found = list(read("webdataset", {"path": path}))
    assert found == [
        Ignored("json", Place(path, 1)),
        Record("0000", caption(RED, "A dog.")),
        Record("0001", caption(RED, "A dog.")),
    ]
    assert [record.place for record in found[1:]] == [Place(path, 1), Place(path, 4)]


@pytest.mark.parametrize(
    ("sample", "options", "turns"),
    [
        (CAPTIONED, {}, caption(RED, "A dog on ice.")),
        ({"JPG": RED.data, "TXT": "A dog."}, {}, caption(RED, "A dog.")),
        ({"png": RED.data, "txt": b"\xef\xbb\xbfA dog.\r\n"}, {}, caption(RED, "A dog.")),
        ({"input.png": RED.data, "outputs.txt": "A dog."}, {}, caption(RED, "A dog.")),
        ({"webp": RED.data, "json": {"caption": "A dog.", "url": "u"}}, {}, caption(RED, "A dog.")),
        (
            {"png": RED.data, "txt": "alt", "json": {"long": "A dog."}},
            {"json_key": "long"},
            caption(RED, "A dog."),
        ),
        ({"png": RED.data, "txt": "alt", "caption": "A dog."}, {"text": "caption"}, caption(RED, "A dog.")),
        ({"png": RED.data, "meta.json": {"text": "A dog."}}, {"text": "meta.json"}, caption(RED, "A dog.")),
        ({"10.png": BLUE.data, "9.png": RED.data, "txt": "Two."}, {}, caption(RED, BLUE, "Two.")),
        (
            {"a.png": RED.data, "b.png": BLUE.data, "txt": "Two."},
            {"image": ["b.png", "a.png"]},
            caption(BLUE, RED, "Two."),
        ),
        ({"a.png": RED.data, "b.png": BLUE.data, "txt": "Two."}, {"image": "*.png"}, caption(RED, BLUE, "Two.")),
        ({"png": RED.data, "seg.png": BLUE.data, "txt": "One."}, {"image": "png"}, caption(RED, "One.")),
        (
            {"png": RED.data, "json": {"image_size": [3, 2], "conversations": SAID}},
            {},
            (Turn("user", (RED, "\nWhy?")), Turn("assistant", ("So.",))),
        ),
        ({"png": RED.data, "json": SAID}, {}, (Turn("user", (RED, "\nWhy?")), Turn("assistant", ("So.",)))),
        (
            {
                "png": RED.data,
                "txt": "alt",
                "json": {"image": "a/b.png", "conversations": SAID, "system": "Be."},
            },
            {},
            (Turn("system", ("Be.",)), Turn("user", (RED, "\nWhy?")), Turn("assistant", ("So.",))),
        ),
        (
            {"png": RED.data, "json": {"chat": SAID, "conversations": []}},
            {"json_key": "chat"},
            (Turn("user", (RED, "\nWhy?")), Turn("assistant", ("So.",))),
        ),
        (
            {"json": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
            {},
            (Turn("user", ("Hi",)), Turn("assistant", ("Ho",))),
        ),
    ],
)
def test_samples(tmp_path, sample, options, turns):
    (record,) = examples(write(tmp_path / "a.tar", sample), **options)
    assert record.turns == turns


@pytest.mark.parametrize(
    ("sample", "options", "reason"),
    [
        ({"txt": "A dog."}, {}, "it has no image; its members are txt, and others of its name must follow"),
        ({"png": RED.data}, {}, "it has no text; its members are png"),
        ({"png": RED.data, "cls": 3}, {}, "it has no text; its members are cls, png"),
        (
            {"0.png": RED.data, "0.txt": "a", "1.png": RED.data, "1.txt": "b"},
            {},
            "no text.*a name ends at its first dot",
        ),
        ({"png": RED.data, "txt": " \n"}, {}, "its text txt is empty"),
        ({"png": RED.data, "txt": b"caf\xe9"}, {}, "its txt is not valid UTF-8"),
        ({"png": RED.data, "json": b'{"caption": '}, {}, "its json: it is not valid JSON"),
        ({"png": RED.data, "json": b'{"caption": "a", "caption": "b"}'}, {}, "its json: .*'caption'.* twice"),
        ({"png": RED.data, "json": {"x": 1}}, {}, "it has no text"),
        ({"png": RED.data, "txt": "a", "json": {"x": 1}}, {"json_key": "y"}, "its json has no y"),
        ({"png": RED.data, "txt": "a", "json": {"x": 1}}, {"json_key": "x"}, "x in its JSON is neither a text nor"),
        ({"png": RED.data, "txt": "a"}, {"text": "caption"}, "it has no member caption; its members are png, txt"),
        ({"png": RED.data, "txt": "a"}, {"image": "jpg"}, "it has no member jpg; its members are png, txt"),
        ({"png": RED.data, "seg.png": RED.data, "txt": "a"}, {}, "several images, png, seg.png: name those to read"),
        ({"png": RED.data, "1.png": RED.data, "txt": "a"}, {}, "several images, 1.png, png: name those to read"),
        ({"a1.png": RED.data, "b2.png": RED.data, "txt": "a"}, {}, "several images, a1.png, b2.png: name those"),
        ({"png": RED.data, "jpg": RED.data, "txt": "a"}, {}, "several images, jpg, png: name those to read"),
        ({"json": SAID}, {}, "1 <image> in the text for 0 images"),
        ({"1.png": RED.data, "2.png": RED.data, "json": SAID}, {}, "1 <image> in the text for 2 images"),
        ({"json": {"text_list": ["One."], "image_info": []}}, {}, "use reader 'interleaved'"),
        ({"json": {"image": "a.jpg", "conversations": SAID}}, {}, "it names an image outside its archive: 'a.jpg'"),
        (
            {"png": RED.data, "json": {"video": "a.mp4", "conversations": SAID}},
            {},
            "its key 'video' is not supported",
        ),
        (
            {"json": [{"role": "user", "content": [{"type": "image", "image": "/etc/hostname"}]}]},
            {},
            "it names an image outside its archive: '/etc/hostname'",
        ),
    ],
)
def test_unreadable_samples(tmp_path, sample, options, reason):
    assert re.search(reason, refused(write(tmp_path / "a.tar", sample), **options))


def test_text_members_may_be_pickles_and_are_never_opened(tmp_path):
    path = write(tmp_path / "a.tar", CAPTIONED | {"pyd": {"a": 1}, "pth": b"\x80\x04."})
    *ignored, record = read("webdataset", {"path": path})
    assert {example.key for example in ignored} == {"pyd", "pth"}
    assert record.turns == caption(RED, "A dog on ice.")


# ----------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("17.jpg", ("17", "jpg")),
        ("./17.jpg", ("./17", "jpg")),
        ("/data/22.0/1.1.PNG", ("/data/22.0/1", "1.png")),
        ("../x/17.seg.png", ("../x/17", "seg.png")),
        ("train.v1/17.jpg", ("train.v1/17", "jpg")),
        ("235342 Track 2.0 (Clean).mp3", ("235342 Track 2", "0 (clean).mp3")),
        ("README", None),
        ("a/.DS_Store", None),
        ("._17.jpg", None),
        ("__meta__/17.jpg", None),
    ],
)
def test_keys(name, expected):
    assert split_name(name) == expected


@given(st.lists(st.sampled_from(["a", "b.c", "17", ".jpg", "/", ".", "x"]), min_size=1, max_size=6).map("".join))
def test_keys_are_those_of_the_library(name):
    library = webdataset.tariterators.base_plus_ext(name)
    ours = split_name(name)
    if ours is not None:
        assert ours == (library[0], library[1].lower())
    elif library[0] is not None:  # the library takes the folder for the key of a hidden file
        assert name.rpartition("/")[2].startswith(".")


def test_groups_are_those_of_the_library(tmp_path):
    names = ["v1.0/a.png", "v1.0/a.txt", "v1.0/b.png", "v1.0/b.txt", "v2.0/b.png", "v2.0/b.txt", "c.png", "c.1.txt"]
    path = write_members(tmp_path / "a.tar", *[(name, RED.data if "png" in name else b"t") for name in names])
    theirs = [sample["__key__"] for sample in webdataset.WebDataset(path, shardshuffle=False)]
    assert [example.id for example in examples(path)] == theirs == ["v1.0/a", "v1.0/b", "v2.0/b", "c"]


def test_members_that_do_not_follow_one_another_are_two_samples(tmp_path):
    path = write_members(tmp_path / "a.tar", ("a.png", RED.data), ("b.txt", b"b"), ("a.txt", b"a"))
    found = examples(path)
    assert [(e.id, e.place.line) for e in found] == [("a", 1), ("b", 2), ("a", 3)]
    assert all("must follow them in the archive" in e.reason for e in found)


def test_files_that_belong_to_no_example_are_named_once(tmp_path):
    names = ["._a.png", "a.png", "a.txt", "README", ".DS_Store", "__meta__/x.txt", "b.png", "b.txt"]
    path = write_members(tmp_path / "a.tar", *[(name, RED.data if name.endswith("png") else b"t") for name in names])
    found = list(read("webdataset", {"path": path}))
    assert [e.id if isinstance(e, Record) else e.key for e in found] == [
        "hidden files",
        "files that belong to no example",
        "a",
        "b",
    ]


def test_duplicate_members(tmp_path):
    path = write_members(tmp_path / "a.tar", ("a.png", RED.data), ("a.png", BLUE.data), ("a.txt", b"a"))
    assert refused(path) == "its member png appears more than once"


def test_names_that_would_leave_the_folder_are_only_names(tmp_path):
    path = write_members(
        tmp_path / "a.tar",
        *[("/etc/a.png", RED.data), ("/etc/a.txt", b"a"), ("../../b.png", RED.data), ("../../b.txt", b"b")],
    )
    before = sorted(os.listdir(tmp_path))
    assert [example.id for example in examples(path)] == ["/etc/a", "../../b"]
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (tarfile.SYMTYPE, "a.txt is a link, which is not followed"),
        (tarfile.LNKTYPE, "a.txt is a link, which is not followed"),
        (tarfile.FIFOTYPE, "a.txt is a device or pipe"),
        (tarfile.CHRTYPE, "a.txt is a device or pipe"),
    ],
)
def test_links_and_devices(tmp_path, kind, reason):
    link = tarfile.TarInfo("a.txt")
    link.type, link.linkname = kind, "/etc/hostname"
    assert refused(write_members(tmp_path / "a.tar", ("a.png", RED.data), link)) == reason


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(tmp_path, form):
    key = "é" * 90 + "/" + "x" * 200
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
        for suffix, data in (("png", RED.data), ("txt", b"a")):
            info = tarfile.TarInfo(f"{key}.{suffix}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    (record,) = examples(str(tmp_path / "a.tar"))
    assert (record.id, record.turns) == (key, caption(RED, "a"))


def test_names_in_another_encoding_become_valid_ids(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as archive:
        for suffix, data in (("png", RED.data), ("txt", b"a")):
            info = tarfile.TarInfo(f"caf\xe9.{suffix}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    (record,) = examples(str(tmp_path / "a.tar"))
    assert record.id == "caf\\udce9"


def test_sparse_members(tmp_path):
    data = b"\0" * 65536 + BLUE.data
    holes = tmp_path / "a.tar"
    # GNU.sparse 1.0 in PAX headers: a map of one data block, then the data.
    map_block = f"1\n65536\n{len(BLUE.data)}\n".encode().ljust(512, b"\0")
    info = tarfile.TarInfo("GNUSparseFile.0/a.png")
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "a.png",
        "GNU.sparse.realsize": str(len(data)),
    }
    info.size = len(map_block) + len(BLUE.data)
    with tarfile.open(holes, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(map_block + BLUE.data))
        text = tarfile.TarInfo("a.txt")
        text.size = 1
        archive.addfile(text, io.BytesIO(b"a"))
    (record,) = examples(str(holes))
    assert record.images()[0].data == data


# ------------------------------------------------------------------------------ compression and paths


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".tar.zst", ".TAR"])
def test_compressed_archives(tmp_path, suffix):
    plain = Path(write(tmp_path / "plain.tar", CAPTIONED, CAPTIONED)).read_bytes()
    packed = {"z": gzip.compress, "t": zstandard.ZstdCompressor().compress}.get(suffix[-1], bytes)(plain)
    (tmp_path / f"a{suffix}").write_bytes(packed)
    assert [e.turns for e in examples(str(tmp_path / f"a{suffix}"))] == [caption(RED, "A dog on ice.")] * 2


def test_shards_by_range_glob_and_folder(tmp_path):
    with webdataset.ShardWriter(str(tmp_path / "shard-%03d.tar"), maxcount=2, verbose=0) as writer:
        for number in range(6):
            writer.write({"__key__": f"{number}", "png": RED.data, "txt": str(number)})
    (tmp_path / "shard-000_stats.json").write_text("{}")
    for path in ("shard-{000..002}.tar", "shard-*.tar", ""):
        found = examples(str(tmp_path / path))
        assert [example.id for example in found] == list("012345")
    parts = list(open_reader("webdataset", {"path": str(tmp_path)}).parts(1, None))
    assert [part.files for part in parts] == [(str(tmp_path / f"shard-00{n}.tar"),) for n in range(3)]
    with pytest.raises(ConfigError, match=r"shard-003\.tar does not exist"):
        examples(str(tmp_path / "shard-{000..003}.tar"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty holds no tar archives"):
        examples(str(tmp_path / "empty"))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_remote_archives(tmp_path, pack):
    plain = Path(write(tmp_path / "plain.tar", CAPTIONED, CAPTIONED)).read_bytes()
    for number in range(2):
        fsspec.filesystem("memory").pipe(f"/{pack.__name__}/{number}.tar", pack(plain))
    found = examples(f"memory://{pack.__name__}/{{0..1}}.tar")
    assert [example.turns for example in found] == [caption(RED, "A dog on ice.")] * 4
    assert found[3].place == Place(f"memory:///{pack.__name__}/1.tar", 3)


@pytest.mark.parametrize("path", ["s-{000..003}.tar", "{a,b}/{1..3}.tar", "{9..11}", "{09..11}", "{1..010}", "x{a,}"])
def test_ranges_are_those_of_the_library(tmp_path, path):
    names = list(braceexpand.braceexpand(path))
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert expand(str(tmp_path / path), "test") == [str(tmp_path / name) for name in names]


@pytest.mark.parametrize(("path", "reason"), [("{3..1}", "counts up"), ("{0..9999999}", "counts up"), ("{a}", "exist")])
def test_ranges_that_are_refused(tmp_path, path, reason):
    with pytest.raises(ConfigError, match=reason):
        expand(str(tmp_path / path), "test")


def test_large_archives_are_split_between_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SPLIT_ABOVE", 0)
    path = write(tmp_path / "a.tar", *[{"png": RED.data, "txt": str(number)} for number in range(7)])
    opened = open_reader("webdataset", {"path": path})
    parts = list(opened.parts(3, None))
    assert [part.name for part in parts] == ["a.tar:1", "a.tar:7", "a.tar:13"]
    found = [list(opened.read(part)) for part in parts]
    assert [[record.id for record in part] for part in found] == [
        ["0000", "0001", "0002"],
        ["0003", "0004", "0005"],
        ["0006"],
    ]
    assert [record for part in found for record in part] == examples(path)
    assert [part.name for part in opened.parts(3, 4)] == ["a.tar:1", "a.tar:7"]
    assert [record.place for part in found for record in part] == [Place(path, 1 + 2 * n) for n in range(7)]


def test_joined_archives_are_read_to_their_end(tmp_path):
    first, second = (Path(write(tmp_path / f"{n}.tar", CAPTIONED)).read_bytes() for n in range(2))
    (tmp_path / "a.tar").write_bytes(first + second)
    assert len(examples(str(tmp_path / "a.tar"))) == 2


# --------------------------------------------------------------------------------------------- damage


def damaged(tmp_path, data):
    (tmp_path / "bad.tar").write_bytes(data)
    return examples(str(tmp_path / "bad.tar"))


@pytest.fixture
def three(tmp_path):
    return Path(write(tmp_path / "three.tar", *[CAPTIONED] * 3)).read_bytes()


def test_every_cut_keeps_the_samples_before_it_and_says_that_the_rest_is_missing(tmp_path, three):
    starts = [member.offset for member in members(str(tmp_path / "three.tar"), lambda name: False)][::2]
    for cut in range(0, len(three.rstrip(b"\0")), 97):
        *whole, last = damaged(tmp_path, three[:cut])
        assert isinstance(last, Unreadable)
        assert re.search("cut short|the file is empty|not a tar archive|may be cut short|no valid header", last.reason)
        # That a sample is whole is known once the next one has begun, with a PAX header, its block and a header.
        expected = sum(cut >= start + 3 * 512 for start in starts[1:])
        assert whole == [Record(f"{number:04d}", caption(RED, "A dog on ice.")) for number in range(expected)]


def test_an_archive_that_was_never_closed(tmp_path, three):
    blocks = [m.offset for m in members(str(tmp_path / "three.tar"), lambda name: True)]
    found = damaged(tmp_path, three[: blocks[4]])
    assert [example.id for example in found] == ["0000", "0001"]
    assert "ends without an end mark" in found[1].reason


def test_a_damaged_header_is_not_the_end(tmp_path, three):
    blocks = [m.offset for m in members(str(tmp_path / "three.tar"), lambda name: True)]
    broken = bytearray(three)
    broken[blocks[4] + 148] ^= 0xFF  # the checksum of the third sample's first header
    found = damaged(tmp_path, bytes(broken))
    assert [example.id for example in found] == ["0000", "0001"]
    assert found[1].reason == "the archive is damaged: member 5 has no valid header; what follows is missing"
    assert found[1].place.line == 3


def test_a_header_with_a_negative_size(tmp_path):
    info = tarfile.TarInfo("a.txt")
    header = bytearray(info.tobuf())
    header[124:136] = b"\xff" * 11 + b"\x00"  # -256 in base 256
    checksum = sum(header[:148]) + sum(header[156:]) + 8 * 32
    header[148:156] = f"{checksum:06o}\0 ".encode()
    (example,) = damaged(tmp_path, bytes(header) + bytes(2048))
    assert isinstance(example, Unreadable)
    assert "damaged" in example.reason


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"PK\x03\x04" + bytes(600), "it is a zip file"),
        (b"<!DOCTYPE html><html>" + b" " * 600, "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"hello" * 200, "it is not a tar archive"),
        (gzip.compress(b"hello" * 200, mtime=0), "it is not a tar archive"),
        (RED.data * 10, "it is a PNG image"),
    ],
)
def test_files_that_are_not_archives(tmp_path, data, reason):
    (example,) = damaged(tmp_path, data)
    assert example.id == "bad.tar"
    assert reason in example.reason


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_compressed_archives_that_are_cut(tmp_path, three, pack):
    noise = os.urandom(400_000)
    path = write(tmp_path / "noise.tar", CAPTIONED, {"png": noise, "txt": "b"}, CAPTIONED)
    packed = pack(Path(path).read_bytes())
    (tmp_path / "cut.tar.gz").write_bytes(packed[: len(packed) // 2])
    found = examples(str(tmp_path / "cut.tar.gz"))
    assert [type(example) for example in found] == [Record, Unreadable]
    assert "cut short" in found[1].reason


def test_a_member_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr("solo.data.readers.archives.LARGEST_MEMBER", 100_000)
    path = write(tmp_path / "a.tar", {"png": RED.data, "txt": b"a" * 200_000}, CAPTIONED)
    found = examples(path)
    assert [type(example) for example in found] == [Unreadable, Record]
    assert found[0].reason == "0000.txt has 200,000 bytes, more than a member may have"


def test_a_named_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(ConfigError, match="neither a file nor a folder"):
        examples(str(tmp_path / "a.tar"))


def test_unknown_options():
    with pytest.raises(ConfigError, match="unknown option 'images'; did you mean 'image'"):
        read("webdataset", {"path": "a.tar", "images": "jpg"})


def test_an_archive_that_is_a_broken_link(tmp_path):
    write(tmp_path / "b.tar", {"png": RED.data, "txt": "a"})
    (tmp_path / "a.tar").symlink_to(tmp_path / "nowhere")
    broken, sound = read("webdataset", {"path": str(tmp_path)})
    assert (type(broken), type(sound)) == (Unreadable, Record)
    with pytest.raises(ConfigError, match=r"a\.tar is neither a file nor a folder"):
        list(read("webdataset", {"path": str(tmp_path / "*.tar")}))
